"""The model card of a run and the upload to the hub; only the network is replaced."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import diffusers.pipelines.pipeline_utils
import diffusers.utils.hub_utils
import numpy as np
import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from PIL import Image

import pipelines.training.card
from pipelines import TextToImagePipeline
from pipelines.training.card import plain, publish, write_card
from pipelines.training.train import TrainConfig, train

NASTY = [
    "<script>alert(1)</script> a cat",
    "![x](http://e.com/a.png) [here](javascript:alert(1))",
    "a dog\n\n# Heading\n\n<img src=x onerror=alert(1)>",
    "```\n</code></pre> **bold** `code` &amp; | --- |",
    "www.example.com and me@example.com and ~~gone~~",
]
COMPONENTS = {"tokenizer", "text_encoder", "unet", "scheduler"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on 100 pictures with nasty captions, in a folder whose path must stay private."""
    import datasets

    folder = tmp_path_factory.mktemp("secret") / "pictures <b>"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i in range(100):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": NASTY[i // 20]}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        datasets.disable_progress_bars()
        out = tmp_path_factory.mktemp("runs") / "_mine_"
        return train(TrainConfig(data=str(folder), out=str(out), steps=2, batch_size=2, size=16, every=1))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that receives uploads, under the id of the repository."""

    def create_repo(repo_id: str, **_: object) -> SimpleNamespace:
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(repo_id: str, folder_path: str | Path, **_: object) -> str:
        shutil.copytree(folder_path, tmp_path / "hub" / repo_id)
        return f"hub/{repo_id}"

    for module in (pipelines.training.card, diffusers.utils.hub_utils, diffusers.pipelines.pipeline_utils):
        monkeypatch.setattr(module, "create_repo", create_repo)
    for module in (pipelines.training.card, diffusers.utils.hub_utils):
        monkeypatch.setattr(module, "upload_folder", upload_folder)
    return tmp_path / "hub"


def parts(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_on_a_folder_ends_with_a_card_and_a_search_for_copies(run: Path) -> None:
    assert {"README.md", "sample.png", "model_index.json", "samples", "run.json"} <= parts(run)
    assert {"memorised.png", "memorised.json"} <= parts(run / "samples")
    card = (run / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert (head["library_name"], head["pipeline_tag"]) == ("diffusers", "text-to-image")
    assert "unet-xattn" in head["tags"] and "license" not in head
    settings = json.loads((run / "run.json").read_text())
    data = settings["data"]
    assert data["pictures"] + data["held out"] == 100 and data["held out"] > 0
    for text in (
        "2 of 2 steps of 2 pictures",
        f"pictures of the data: {data['pictures']}",
        data["fingerprint"],
        '"learning_rate": 0.004',
        "from_pretrained",
    ):
        assert text in card, text
    assert plain(settings["code"]) in card and plain(settings["machine"]) in card
    losses = json.loads((run / "validation.jsonl").read_text().splitlines()[-1])
    assert f"| 0.5 | {losses['loss 0.5']:.4f} | {losses['loss 0.5 shuffled']:.4f} |" in card
    copied = json.loads((run / "samples" / "memorised.json").read_text())["training_captions"]
    assert f"{copied['k']} of {copied['n']}" in card
    assert (run / "sample.png").read_bytes() == (run / "samples" / "step-000002.png").read_bytes()


def test_captions_and_names_in_a_card_are_text_and_never_markup(run: Path) -> None:
    card = (run / "README.md").read_text().split("---", 2)[2]
    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    inline = [token for block in markdown.parse(card) for token in (block.children or [])]
    blocks = markdown.parse(card)
    assert not [token for token in blocks if token.type == "html_block"]
    assert not [token for token in inline if token.type in ("html_inline", "link_open", "strong_open", "s_open")]
    assert [token.attrs["src"] for token in inline if token.type == "image"] == ["sample.png"]
    headings = [blocks[i + 1].content for i, token in enumerate(blocks) if token.type == "heading_open"]
    assert headings[1:] == ["How it was made", "Figures", "Does it copy?", "Limits"]
    items = [
        "".join(child.content for child in blocks[i + 2].children)
        for i, token in enumerate(blocks)
        if token.type == "list_item_open"
    ]
    prompts = json.loads((run / "run.json").read_text())["prompts"]
    assert set(prompts) == set(NASTY)
    assert [" ".join(prompt.split()) for prompt in prompts] == items[: len(prompts)]  # their exact text
    assert "www.example" not in card  # many sites turn it into a link


def test_a_card_contains_no_paths(run: Path) -> None:
    card = (run / "README.md").read_text()
    assert "secret" not in card and str(run.parent) not in card


def test_a_card_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "README.md").write_text("Mine.")
    with pytest.raises(ValueError, match="exists already"):
        write_card(copy, copy)
    train(TrainConfig(out=str(copy)), resume=True)
    assert (copy / "README.md").read_text() == "Mine."


def test_the_published_pipeline_has_its_card_and_draws_the_same(run: Path, hub: Path) -> None:
    publish(run, "me/mine")
    sent = hub / "me" / "mine"
    assert parts(sent) == COMPONENTS | {"model_index.json", "README.md", "sample.png"}
    assert (sent / "README.md").read_bytes() == (run / "README.md").read_bytes()
    pictures = []
    for folder in (run, sent):
        pipe = TextToImagePipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        seed = torch.Generator().manual_seed(0)
        pictures.append(pipe("a cat", num_inference_steps=2, generator=seed, output_type="np").images)
    assert np.array_equal(*pictures)


def test_a_stopped_run_gets_a_card_for_the_upload_only(run: Path, hub: Path, tmp_path: Path) -> None:
    copy = tmp_path / "stopped"
    shutil.copytree(run, copy)
    for file in ("README.md", "sample.png", "samples/memorised.json"):
        (copy / file).unlink()
    publish(copy, "me/stopped")
    assert parts(hub / "me" / "stopped") == COMPONENTS | {"model_index.json", "README.md", "sample.png"}
    assert "Does it copy" not in (hub / "me" / "stopped" / "README.md").read_text()
    assert not (copy / "README.md").exists()


def test_diffusers_own_push_uploads_the_pipeline_without_the_card(run: Path, hub: Path, tmp_path: Path) -> None:
    pipe = TextToImagePipeline.from_pretrained(run)
    pipe.push_to_hub("me/plain")
    assert parts(hub / "me" / "plain") == COMPONENTS | {"model_index.json", "README.md"}
    assert "This is the model card of a" in (hub / "me" / "plain" / "README.md").read_text()
    TextToImagePipeline.from_pretrained(hub / "me" / "plain")


def test_folders_that_are_not_runs_are_not_published(tiny_pipe: TextToImagePipeline, hub: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    tiny_pipe.save_pretrained(tmp_path / "bare")
    for name, reason in (("none", "is not a folder"), ("empty", "holds no model"), ("bare", "has no run.json")):
        with pytest.raises(ValueError, match=reason):
            publish(tmp_path / name, "me/mine")
    assert not hub.exists()


@pytest.mark.parametrize("text", NASTY)
def test_plain_text_is_one_line_with_the_original_words(text: str) -> None:
    line = plain(text)
    assert "\n" not in line
    rendered = MarkdownIt("commonmark", {"html": True}).parse(line)
    assert "".join(child.content for child in rendered[1].children) == " ".join(text.split())
