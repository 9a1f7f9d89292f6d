"""A run keeps what its weights depend on: its words, its encoders, its random draws and its held-out pictures."""

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

import pipelines.data.batches
from pipelines import TextToImagePipeline, TranslationPipeline
from pipelines.data.pairs import split_pairs
from pipelines.runs.checkpoint import MANIFEST, checkpoints, damage, last_state, save_checkpoint
from pipelines.tokenizer import train_tokenizer
from pipelines.training.config import TextConfig
from pipelines.training.frozen import Frozen
from pipelines.training.objective import TextToImageModel
from pipelines.training.train import TrainConfig, train
from pipelines.training.train_text import train_text
from pipelines.training.vocabulary import kept_in, learn_words, load_tokenizer, tokenizer_files
from ui.runs import find_run
from unet_xattn import CrossAttentionUNet, Transformer
from unet_xattn.words import unknown_words

pytestmark = pytest.mark.usefixtures("small_networks")

MORE = ["zebra", "gold wall", "gold", "a gold gold wall", "a small gold wall", "a grey wall", "żółw"]


def write_pictures(folder: Path, captions: Sequence[str], first: int = 0) -> None:
    """Add a picture for each caption, with a caption file beside it."""
    folder.mkdir(exist_ok=True)
    for i, caption in enumerate(captions, first):
        Image.new("RGB", (16, 16), (i, 255 - i, 0)).save(folder / f"{i:03}.png")
        (folder / f"{i:03}.txt").write_text(caption, encoding="utf-8")


@pytest.fixture(scope="module")
def finished(small_networks: None, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run of two steps on four pictures."""
    data = tmp_path_factory.mktemp("pictures")
    write_pictures(data, ["a red wall", "a green wall", "a grey wall", "a red wall"])
    out = tmp_path_factory.mktemp("runs") / "finished"
    train(TrainConfig(data=str(data), out=str(out), steps=2, batch_size=2, size=16, warmup=1, every=2))
    return TrainConfig(data=str(data), out=str(out))


@pytest.fixture
def copied(finished: TrainConfig, tmp_path: Path) -> TrainConfig:
    """A copy of that run and of its data."""
    shutil.copytree(finished.out, tmp_path / "run")
    shutil.copytree(finished.data, tmp_path / "data")
    return TrainConfig(data=str(tmp_path / "data"), out=str(tmp_path / "run"))


def resume(config: TrainConfig, **changes: object) -> TextToImagePipeline:
    """One step more."""
    wanted = {"data": config.data, "steps": 3} | changes
    return TextToImagePipeline.from_pretrained(train(TrainConfig(out=config.out), True, wanted, allow_changes=True))


def as_if_older(out: str) -> Path:
    """Remove from the checkpoint of a run what older versions did not save."""
    newest = checkpoints(Path(out) / "checkpoints")[0]
    manifest = json.loads((newest / MANIFEST).read_text())
    for name in [name for name in manifest["files"] if name.startswith("tokenizer")]:
        (newest / name).unlink()
        del manifest["files"][name]
    state = json.loads((newest / "state.json").read_text())
    save_state(newest, {name: value for name, value in state.items() if name not in ("first_batch", "validated_on")})
    manifest["files"]["state.json"] = json.loads((newest / MANIFEST).read_text())["files"]["state.json"]
    (newest / MANIFEST).write_text(json.dumps(manifest))
    assert damage(newest) == ""
    return newest


def save_state(checkpoint: Path, state: dict) -> None:
    """Replace the state of a checkpoint, and what its manifest says of it."""
    content = json.dumps(state).encode()
    (checkpoint / "state.json").write_bytes(content)
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"]["state.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


# The words.


@pytest.mark.parametrize("older", [False, True], ids=["", "older"])
def test_a_run_resumed_with_other_captions_keeps_the_id_of_every_token(
    copied: TrainConfig, older: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    before = TextToImagePipeline.from_pretrained(copied.out).tokenizer
    if older:
        as_if_older(copied.out)
    write_pictures(Path(copied.data), MORE, first=4)
    fresh = train_tokenizer(["a red wall", "a green wall", "a grey wall", *MORE])
    assert fresh.get_vocab() != before.get_vocab()  # a new tokenizer would have moved them
    pipe = resume(copied)
    assert pipe.tokenizer.get_vocab() == before.get_vocab()
    assert pipe.tokenizer("a red wall")["input_ids"] == before("a red wall")["input_ids"]
    printed = capsys.readouterr().out.splitlines()
    assert ("from step 2 on: data" in "\n".join(printed)) and sum("older version" in line for line in printed) == older
    assert "3 words (gold, small, zebra) are new to the model's vocabulary, and read in pieces" in printed
    assert "warning: 1 word (żółw) is unread: the model's vocabulary lacks letters" in printed
    assert unknown_words("a small gold zebra, red żółw dog", pipe.tokenizer) == ["żółw", "dog"]
    newest = checkpoints(Path(copied.out) / "checkpoints")[0]
    assert newest.name == "step-00000003" and load_tokenizer(newest).get_vocab() == before.get_vocab()


def test_the_tokenizer_of_an_edited_model_is_not_that_of_its_run(copied: TrainConfig) -> None:
    before = TextToImagePipeline.from_pretrained(copied.out).tokenizer
    other = train_tokenizer(["completely", "different", "words"])
    other.save_pretrained(Path(copied.out) / "tokenizer")
    assert resume(copied).tokenizer.get_vocab() == before.get_vocab()


def test_without_any_tokenizer_that_fits_an_older_run_is_refused_in_one_line(copied: TrainConfig) -> None:
    as_if_older(copied.out)
    folder = Path(copied.out) / "tokenizer"
    train_tokenizer(["other words, more of them"]).save_pretrained(folder)
    for found in (r"one of \d+ tokens", "no tokenizer"):
        with pytest.raises(ValueError, match=rf"^.* saved by an older version, .*holds {found}: .*--out$"):
            resume(copied)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_saved_tokenizer_is_read_back_with_its_words_and_limits(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    for name, content in tokenizer_files(tokenizer).items():
        (tmp_path / name).write_bytes(content)
    loaded, text = load_tokenizer(tmp_path), "a red circle, 一个红色的圆 and ♥ Żółw"
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.model_max_length == tokenizer.model_max_length
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert unknown_words(text, loaded) == unknown_words(text, tokenizer)


def test_learning_nothing_new_changes_and_says_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    known = list(tokenizer.init_kwargs["known_words"])
    assert learn_words(tokenizer, ["a red circle", "A RED circle"]) == []
    assert tokenizer.init_kwargs["known_words"] == known


def test_a_model_trained_further_knows_the_words_of_both_and_its_ids_stay(
    copied: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "more", MORE[:4])
    config = TrainConfig(data=str(tmp_path / "more"), out=str(tmp_path / "further"), begin_from=copied.out)
    config = replace(config, steps=1, batch_size=2, size=16, caption_dropout=0.0)
    further = TextToImagePipeline.from_pretrained(train(config))
    before = TextToImagePipeline.from_pretrained(copied.out)
    assert further.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    assert unknown_words("a red gold small zebra dog", further.tokenizer) == ["small", "dog"]
    said = capsys.readouterr()
    assert "2 words (gold, zebra) are new to the model's vocabulary, and read in pieces" in said.out
    # It was made without caption dropout from one that had it.
    assert before.config.guidable and not further.config.guidable
    assert f"note: {copied.out} can be guided, the new model cannot: --caption-dropout 0.1 would keep" in said.err
    # The model that it started from is another one by now.
    train_tokenizer(["gold walls"]).save_pretrained(Path(copied.out) / "tokenizer")
    resumed = TextToImagePipeline.from_pretrained(train(TrainConfig(out=config.out), True, {"steps": 2}))
    assert resumed.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    assert unknown_words("a red gold small zebra dog", resumed.tokenizer) == ["small", "dog"]


def test_a_calibration_is_not_that_of_a_model_trained_further(copied: TrainConfig, tmp_path: Path) -> None:
    index = Path(copied.out) / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"calibration": {"mid": [0.5, 0.5]}}))
    assert TextToImagePipeline.from_pretrained(copied.out).config.calibration
    config = TrainConfig(data=copied.data, out=str(tmp_path / "further"), begin_from=copied.out, steps=1, size=16)
    further = train(replace(config, batch_size=2))
    assert TextToImagePipeline.from_pretrained(further).config.calibration is None
    assert resume(copied).config.calibration is None


def test_a_run_whose_data_has_translations_by_now_still_fits_its_weights(copied: TrainConfig) -> None:
    rows = [{"file_name": f"{i:03}.png", "text": "a red wall", "translation": "rot"} for i in range(4)]
    for file in Path(copied.data).glob("*.txt"):
        file.unlink()
    (Path(copied.data) / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pipe = resume(copied)
    assert isinstance(pipe.text_encoder, Transformer) and len(pipe.text_encoder.decoder) == 0


# Networks, draws, held-out pictures.


def test_weights_of_other_networks_are_refused_by_one_line_that_names_them(copied: TrainConfig) -> None:
    folder = Path(copied.out) / "checkpoints"
    kept = kept_in(checkpoints(folder)[0], Path(copied.out)).tokenizer
    assert kept is not None
    other = TextToImageModel(Transformer(len(kept)), CrossAttentionUNet(16, block_out_channels=(16, 16, 16, 16)))
    state, optimizer = last_state(folder) | {"step": 3}, torch.optim.SGD(other.parameters())
    save_checkpoint(folder, other, other, optimizer, state, beside=tokenizer_files(kept))
    with pytest.raises(ValueError, match=r"holds other networks than those of this run's settings: .*unet") as said:
        resume(copied, steps=4)
    assert "\n" not in str(said.value) and "version" not in str(said.value)


def make_vae(folder: Path, seed: int) -> None:
    """Save a tiny VAE of factor two."""
    torch.manual_seed(seed)
    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    AutoencoderKL(
        block_out_channels=(4, 4), norm_num_groups=1, down_block_types=down, up_block_types=up
    ).save_pretrained(folder)


def test_another_vae_under_the_same_name_is_noticed_on_resume(finished: TrainConfig, tmp_path: Path) -> None:
    make_vae(tmp_path / "vae", 0)
    config = TrainConfig(data=finished.data, out=str(tmp_path / "run"), vae=str(tmp_path / "vae"), size=32)
    train(replace(config, steps=1, batch_size=2))
    make_vae(tmp_path / "vae", 1)
    with pytest.raises(ValueError, match=r"^the run would resume with a VAE of the fingerprint \w+ instead of \w+:"):
        train(TrainConfig(out=config.out), True, {"steps": 2})


def test_a_frozen_text_encoder_is_known_by_its_weights_and_its_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    def fingerprint(seed: int, vocabulary: PreTrainedTokenizerFast) -> str:
        torch.manual_seed(seed)
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **sizes))
        return Frozen(encoder, None).fingerprints(vocabulary)["text_encoder"]

    other = train_tokenizer(["other words"])
    assert fingerprint(0, tokenizer) == fingerprint(0, deepcopy(tokenizer))
    assert len({fingerprint(0, tokenizer), fingerprint(1, tokenizer), fingerprint(0, other)}) == 3
    assert Frozen(None, None).fingerprints(tokenizer) == {}


def test_other_random_draws_are_noticed_on_resume(copied: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        seed_of = pipelines.data.batches.seed_of
        patch.setattr(pipelines.data.batches, "seed_of", lambda *numbers: seed_of(*numbers, 1))
        with pytest.raises(
            ValueError, match=r"resume with a first batch that is drawn .* data, \w+ instead of \w+: .*--allow-ch"
        ):
            train(TrainConfig(out=copied.out), True, {"steps": 3})
        resume(copied)  # allowed
    train(TrainConfig(out=copied.out), True, {"steps": 4, "batch_size": 3}, allow_changes=False)  # expected to differ


@pytest.fixture(scope="module")
def wide(small_networks: None, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run of one step on wide pictures whose left and right differ."""
    data = tmp_path_factory.mktemp("wide")
    write_pictures(data, ["a red wall", "a green wall", "a grey wall", "a black wall"])
    for i, file in enumerate(sorted(data.glob("*.png"))):
        Image.linear_gradient("L").rotate(90).resize((64, 48 - i)).save(file)
    out = tmp_path_factory.mktemp("runs") / "wide"
    config = TrainConfig(data=str(data), out=str(out), steps=1, batch_size=4, size=48, warmup=1, caption_dropout=0.0)
    train(config)
    return config


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 3}, {"buckets": True}, {"caption_dropout": 1.0}, {"fit": "pad"}, {"flip": True}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_setting_that_the_batches_depend_on_can_change_on_resume(
    wide: TrainConfig, tmp_path: Path, changes: dict
) -> None:
    shutil.copytree(wide.out, tmp_path / "run")
    train(TrainConfig(out=str(tmp_path / "run")), True, {"steps": 2} | changes)
    states = [last_state(Path(out) / "checkpoints") for out in (wide.out, tmp_path / "run")]
    assert states[0]["first_batch"] != states[1]["first_batch"]  # and yet nothing was refused


def test_a_validation_on_other_pictures_is_told(copied: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(Path(copied.data), [f"wall {i}" for i in range(120)], first=4)
    resume(copied)
    assert "from step 2 on: validated on" in (said := capsys.readouterr().out)
    assert "held-out pictures instead of its 4 training pictures" in said
    run = find_run(Path(copied.out).parent, "run")
    assert run.samples == [3] and set(run.prompts) <= {f"wall {i}" for i in range(120)}  # at step 2 they were others


# Text alone.


@pytest.fixture
def text(tmp_path: Path) -> TextConfig:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"a {i} red wall\teine {i} rote Wand\n" for i in range(30)), encoding="utf-8")
    sizes = {"width": 16, "layers": 1, "batch_size": 8, "warmup": 1, "every": 2}
    return TextConfig(pairs=str(pairs), out=str(tmp_path / "text"), steps=2, **sizes)


@pytest.mark.parametrize("older", [False, True], ids=["", "older"])
def test_a_text_run_resumed_with_other_pairs_keeps_its_tokenizer_and_looks_anew_for_the_best(
    text: TextConfig, older: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    out = train_text(text)
    before = TranslationPipeline.from_pretrained(out).tokenizer
    if older:
        as_if_older(text.out)
    state = last_state(out / "checkpoints")
    save_state(checkpoints(out / "checkpoints")[0], state | {"best": 0.0, "waited": 5})
    with open(text.pairs, "a", encoding="utf-8") as file:
        file.writelines(f"Zebra zebra {i}\tGold gold {i}\n" for i in range(30))
    train_text(text, True, {"steps": 4}, allow_changes=True)
    after = TranslationPipeline.from_pretrained(out).tokenizer
    assert after.get_vocab() == before.get_vocab()
    printed = capsys.readouterr().out
    assert "the held-out pairs are others than before: the best loss is looked for anew" in printed
    assert re.search(r"\d+ words \((\d+, )*gold, zebra\) are new to the model's vocabulary", printed)
    assert unknown_words("gold zebra wall dog", after) == ["dog"]
    assert last_state(out / "checkpoints")["best"] > 0  # losses on other pairs cannot be compared


def test_other_pairs_never_move_a_pair_between_training_and_validation() -> None:
    pairs = [(f"word {i}", str(i)) for i in range(200)]
    trained, held_out = map(set, split_pairs(pairs))
    assert 10 <= len(held_out) <= 30 and trained | held_out == set(pairs)
    more_trained, more_held_out = map(set, split_pairs([("new", "first"), *pairs[5:][::-1]]))
    assert not more_trained & held_out and not more_held_out & trained
