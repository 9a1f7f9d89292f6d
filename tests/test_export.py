"""What a trace shows, as files."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import TextToImagePipeline, trace
from pipelines.tracing.overlay import step_sheet, word_overlay
from ui.export import DOWNLOADS, download, export, measures, stem
from ui.viewer import document, payload, view_names
from unet_xattn import AttentionTrace

PROMPT = "a red circle, left of a blue square"
HOSTILE = "</script><script>alert(1)</script> ${a} {{7*7}} <img src=x> circle"


def traced(pipe: TextToImagePipeline, prompt: str | list[str] = PROMPT, keep: str = "step") -> AttentionTrace:
    with trace(pipe, keep) as attention:
        pipe(prompt, num_inference_steps=3, generator=torch.Generator().manual_seed(0))
    return attention


def test_a_loaded_trace_exports_what_the_living_one_does(tiny_pipe: TextToImagePipeline, tmp_path: Path) -> None:
    attention = traced(tiny_pipe)
    attention.save(tmp_path / "trace.safetensors")
    files = [
        export(a, tmp_path / name)
        for name, a in (("live", attention), ("loaded", AttentionTrace.load(tmp_path / "trace.safetensors")))
    ]
    names = [path.name for path in files[0]]
    assert names == [path.name for path in files[1]]
    assert names[:3] == ["words.png", "word-01-a.png", "word-02-red.png"]
    assert names[-5:] == ["word-08-square.png", "steps.png", "steps.webp", "measures.csv", "page.html"]
    for live, loaded in zip(*files, strict=True):
        if live.suffix == ".png":  # fp16 on disk
            apart = np.abs(np.asarray(Image.open(live)).astype(int) - np.asarray(Image.open(loaded)).astype(int))
            assert np.mean(apart > 8) < 0.02
    with Image.open(tmp_path / "live" / "steps.webp") as film:
        assert film.n_frames == 3


def test_without_steps_there_is_no_film(tiny_pipe: TextToImagePipeline, tmp_path: Path) -> None:
    names = [path.name for path in export(traced(tiny_pipe, keep="mean"), tmp_path / "new")]
    assert "words.png" in names and not any(name.startswith("steps") for name in names)


@pytest.mark.parametrize("prompt", ["!!!", "。", "+"])
def test_a_prompt_without_words_is_exported_with_its_tokens(
    tiny_pipe: TextToImagePipeline, tmp_path: Path, prompt: str
) -> None:
    attention = traced(tiny_pipe, prompt)
    names = [path.name for path in export(attention, tmp_path / "new")]
    assert names == ["words.png", "steps.webp", "measures.csv", "page.html"]
    assert {row["kind"] for row in measures(attention)} == {"token"}
    assert all(download(attention, 0, kind, {}) for kind in DOWNLOADS if kind != "mask")
    with pytest.raises(ValueError, match="there is no word 0 in the prompt, which has 0"):
        download(attention, 0, "mask", {}, word=0)
    with pytest.raises(ValueError, match="has no words: there are no maps to draw"):
        step_sheet(attention)


@pytest.mark.parametrize("prompt", ["🦆 zebra", "café кошка كلب 红", "a\u0301"])
def test_a_prompt_in_any_script_is_exported(tiny_pipe: TextToImagePipeline, tmp_path: Path, prompt: str) -> None:
    attention = traced(tiny_pipe, prompt)
    names = {path.name for path in export(attention, tmp_path / "new")}
    assert len(names) == len(attention.words) + 5 and "steps.png" in names


def test_nothing_is_written_over(tiny_pipe: TextToImagePipeline, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    attention = traced(tiny_pipe)
    with pytest.raises(ValueError, match="is not empty"):
        export(attention, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ValueError, match="image 3 does not exist"):
        export(attention, tmp_path / "new", image=3)
    assert not (tmp_path / "new").exists()


def test_the_masses_of_a_layer_add_up_to_one_with_what_is_no_word(tiny_pipe: TextToImagePipeline) -> None:
    attention = traced(tiny_pipe, [PROMPT, "a star"])
    for image, tokens in ((0, ["[START]", ",", "[END]"]), (1, ["[START]", "[END]", "[padding]"])):
        rows = measures(attention, image)
        assert {row["text"] for row in rows if row["kind"] == "token"} == set(tokens)
        for layer in ("all", *attention.layers):
            assert sum(row["mass"] for row in rows if row["layer"] == layer) == pytest.approx(1, abs=1e-3)


def test_the_table_survives_a_spreadsheet(tiny_pipe: TextToImagePipeline, tmp_path: Path) -> None:
    attention = traced(tiny_pipe, '=1+1 "a", circle')
    export(attention, tmp_path / "new")
    with open(tmp_path / "new" / "measures.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert not any(row["text"].startswith(("=", "+", "-", "@")) for row in rows)
    circle = next(row for row in rows if row["text"] == "circle" and row["layer"] == "all")
    assert float(circle["mass"]) == pytest.approx(attention.measure("circle").mass, abs=1e-6)


def test_a_word_alone_is_drawn_where_it_landed_with_its_peak(tiny_pipe: TextToImagePipeline) -> None:
    attention = traced(tiny_pipe)
    word = attention.words[2]
    shown = np.asarray(word_overlay(attention, word, side=320).convert("L")).astype(int)
    assert shown.shape == (320 + 28, 320)
    heat = attention.heatmap(word)
    y, x = divmod(int(heat.argmax()), heat.shape[1])
    low_y, low_x = divmod(int(heat.argmin()), heat.shape[1])
    assert shown[y * 10 + 5, x * 10 + 5] > shown[low_y * 10 + 5, low_x * 10 + 5]


def test_the_page_is_whole_and_runs_nothing_a_person_typed(tiny_pipe: TextToImagePipeline) -> None:
    attention = traced(tiny_pipe, HOSTILE)
    page = document(attention)
    assert "http://" not in page and "https://" not in page and "<link" not in page
    (data,) = re.findall(r'<script type="application/json" id="props">(.*?)</script>', page)
    (picture,) = json.loads(data)["value"]["pictures"]
    assert picture["prompt"] == HOSTILE
    assert picture["pieces"] == json.loads(json.dumps(payload(attention)["pieces"]))
    assert set(picture["views"]) == set(view_names(attention))
    assert all(len(view["peaks"]) == 1 + len(attention.steps) for view in picture["views"].values())
    assert page.count("<script") == 2 and page.count("</script") == 2
    assert "default-src 'none'" in page


# One file of one picture


def test_a_picture_carries_what_made_it(tiny_pipe: TextToImagePipeline) -> None:
    attention = traced(tiny_pipe)
    with Image.open(io.BytesIO(download(attention, 0, "png", {"prompt": "圆形 <b>", "seed": "7"}))) as picture:
        assert (picture.text["prompt"], picture.text["seed"]) == ("圆形 <b>", "7")
        assert json.loads(picture.text["settings"]) == {"prompt": "圆形 <b>", "seed": "7"}
        assert (np.asarray(picture) == attention.pictures[0].numpy()).all()


def test_every_download_opens_as_what_it_is(tiny_pipe: TextToImagePipeline, tmp_path: Path) -> None:
    attention = traced(tiny_pipe)
    files = {kind: download(attention, 0, kind, {}, ["data:image/webp;base64,AAAA"], 2) for kind in DOWNLOADS}
    with Image.open(io.BytesIO(files["gif"])) as film, Image.open(io.BytesIO(files["maps"])) as sheet:
        assert (film.format, film.n_frames) == ("GIF", 3)
        assert sheet.width > 500
    with Image.open(io.BytesIO(files["mask"])) as mask, Image.open(io.BytesIO(files["labels"])) as labels:
        assert (np.asarray(mask) == 255 * attention.mask(attention.words[2]).numpy()).all()
        assert (np.asarray(labels) == attention.masks().numpy() + 1).all()
    (tmp_path / "trace").write_bytes(files["trace"])
    assert AttentionTrace.load(tmp_path / "trace").words == attention.words
    assert files["page"].startswith(b"<!doctype html>") and b"data:image/webp;base64,AAAA" in files["page"]


def test_a_large_picture_has_squares_or_smooth_steps(tiny_pipe: TextToImagePipeline) -> None:
    attention = traced(tiny_pipe)
    small = attention.pictures[0].numpy()
    large, smooth = (
        np.asarray(Image.open(io.BytesIO(download(attention, 0, kind, {})))) for kind in ("large", "smooth")
    )
    assert (large == small.repeat(4, 0).repeat(4, 1)).all()
    assert smooth.shape == large.shape and (smooth[:4, :4] != smooth[0, 0]).any()


def test_what_cannot_be_downloaded_is_said(tiny_pipe: TextToImagePipeline) -> None:
    with pytest.raises(ValueError, match="png, large, smooth, maps, mask, labels, gif, trace, page"):
        download(traced(tiny_pipe), 0, "../../etc/passwd", {})
    with pytest.raises(ValueError, match="nothing to animate"):
        download(traced(tiny_pipe, keep="mean"), 0, "gif", {})


@pytest.mark.parametrize("prompt", ["../../x", "a/b\\c", "CON\0", "红色 圆形", "!!!", "<img src=x>", "a" * 2000])
def test_a_file_name_is_a_name_and_no_path(prompt: str) -> None:
    assert re.fullmatch(r"[\w-]{1,80}-seed7", stem(prompt, 7))


def test_concepts_have_a_sheet_a_tile_and_rows_of_their_own(tiny_pipe: TextToImagePipeline, tmp_path: Path) -> None:
    with trace(tiny_pipe, concepts=["green star", "sky"]) as attention:
        tiny_pipe("a red circle", num_inference_steps=1)
    files = [file.name for file in export(attention, tmp_path / "all")]
    assert "concepts.png" in files
    rows = [row for row in measures(attention) if row["layer"] == "all"]
    assert [row["kind"] for row in rows] == ["word"] * 3 + ["token"] * 2 + ["concept"] * 2
    assert rows[-1]["mass"] == pytest.approx(float(attention.heatmap("sky").mean()), abs=1e-6)
    with Image.open(tmp_path / "all/words.png") as sheet:  # six a row: the picture, three words, two concepts; the rest
        assert sheet.width == 6 * (192 + 8) + 8 and sheet.height > 2 * 192
