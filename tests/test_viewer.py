"""The data of the viewer, and its requests for more."""

import base64
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines import TextToImagePipeline, trace
from ui import reading, viewer, vocabulary
from ui.kept import Drawing, Kept
from ui.texts import LANGUAGES, TEXTS
from ui.verdict import read
from ui.viewer.component import attention_viewer
from unet_xattn import AttentionTrace
from unet_xattn.words import unknown_words

PROMPT = "a red circle left of a blue square"
HOSTILE = ["<img src=x onerror=alert(1)>", "${alert(1)}", "{{7*7}}", "`; alert(1)"]


@pytest.fixture(scope="module")
def pipe(tiny_pipe: TextToImagePipeline) -> TextToImagePipeline:
    """The tiny pipeline with a calibration that prefers one head of each layer."""
    calibration = {layer: [0.3, 0.03] for layer in tiny_pipe.unet.attention_layers}
    total = sum(map(sum, calibration.values()))
    weights = {layer: [weight / total for weight in heads] for layer, heads in calibration.items()}
    return TextToImagePipeline(**tiny_pipe.components, calibration=weights)


def record(pipe: TextToImagePipeline, prompt: str | list[str], keep: str = "full", **settings: Any) -> AttentionTrace:
    with trace(pipe, keep) as attention:
        pipe(prompt, num_inference_steps=2, **settings)
    return attention


def shares(view: dict, frame: int = 0) -> np.ndarray:
    """(tokens, rows, columns), as the browser reads them."""
    peaks = np.array(view["peaks"])
    levels = np.frombuffer(base64.b64decode(view["maps"]), np.uint8).reshape(*peaks.shape, *view["grid"])
    return levels[frame] / 255 * peaks[frame][:, None, None]


@pytest.mark.parametrize("prompt", [PROMPT, "A red circle, left of a blue square.", "...", "红色 🟥 circle", *HOSTILE])
def test_pieces_are_the_prompt_and_its_words(pipe: TextToImagePipeline, prompt: str) -> None:
    attention = record(pipe, prompt)
    shown = viewer.payload(attention)
    assert "".join(text for text, _ in shown["pieces"]) == prompt == shown["prompt"]
    assert [text for text, word in shown["pieces"] if word >= 0] == [str(word) for word in attention.words]
    assert shown["words"] == [list(word.tokens) for word in attention.words]


def test_a_word_is_the_sum_of_its_tokens(pipe: TextToImagePipeline) -> None:
    attention = record(pipe, "a reddish circle")
    shown = viewer.payload(attention)
    (word,) = (w for w in attention.words if len(w.tokens) > 1)
    heat = attention.heatmap(word).numpy()
    rows, columns = shown["views"]["mean||"]["grid"]
    cells = heat.reshape(rows, heat.shape[0] // rows, columns, -1).mean(axis=(1, 3))
    assert shares(shown["views"]["mean||"])[list(word.tokens)].sum(axis=0) == pytest.approx(cells, abs=0.01)


@pytest.mark.parametrize("size", [{}, {"height": 16, "width": 32}])
@pytest.mark.parametrize("which", [{}, {"reduce": "calibrated"}, {"step": 1}, {"reduce": "calibrated", "step": 0}])
def test_the_viewer_and_words_at_give_the_same_numbers(pipe: TextToImagePipeline, size: dict, which: dict) -> None:
    attention = record(pipe, PROMPT, **size)
    view = viewer.view(attention, 0, f"{which.get('reduce', 'mean')}||")
    rows, columns = view["grid"]
    height, width = attention.size
    assert rows / columns == height / width
    maps, cell = shares(view, 1 + which["step"] if "step" in which else 0), height // rows
    for row, column in [(0, 0), (rows - 1, 1), (1, columns - 1)]:
        box = (column * cell, row * cell, (column + 1) * cell, (row + 1) * cell)
        expected = {word.start: share for word, share in attention.words_at(box, **which)}
        for word in attention.words:
            assert maps[list(word.tokens), row, column].sum() == pytest.approx(expected[word.start], abs=0.004)


def test_a_layer_and_a_head_are_shown_on_their_own_grid(pipe: TextToImagePipeline) -> None:
    attention = record(pipe, PROMPT)
    for layer in attention.layers:
        for head, name in ((None, f"mean|{layer}|"), (1, f"mean|{layer}|1")):
            view = viewer.view(attention, 0, name)
            assert view["grid"] == list(attention.recording.grids[layer])
            for frame, step in enumerate([None, 0, 1]):
                expected = attention.maps(layer, head=head, step=step).numpy()
                assert shares(view, frame) == pytest.approx(expected, abs=1 / 255)


def test_view_names_lists_all_views_and_no_other(pipe: TextToImagePipeline) -> None:
    attention = record(pipe, PROMPT)
    names = viewer.view_names(attention)
    assert len(set(names)) == (1 + len(attention.layers)) * 3 + 1
    assert all(viewer.view(attention, 0, name)["maps"] for name in names)
    for name in ("", "mean", "mean|nowhere|", "mean||7", "calibrated|mid|", "__class__"):
        with pytest.raises(ValueError, match="has no view"):
            viewer.view(attention, 0, name)
    assert viewer.view_names(record(pipe, PROMPT, keep="mean"))[0] == "mean||"


def test_the_payload_describes_the_requested_image(pipe: TextToImagePipeline) -> None:
    with trace(pipe) as attention:
        pictures = pipe([PROMPT, "a green star"], num_inference_steps=2).images
    shown = viewer.payload(attention, image=1)
    assert shown["prompt"] == "a green star"
    assert "[padding]" not in shown["tokens"] and len(shown["tokens"]) < attention.recording.tokens
    png = base64.b64decode(shown["picture"].partition(",")[2])
    assert (np.asarray(Image.open(io.BytesIO(png))) == np.asarray(pictures[1])).all()


def test_the_payload_of_the_bundled_model_is_small_and_json() -> None:
    pipe = TextToImagePipeline.from_pretrained("shapes")
    pipe.set_progress_bar_config(disable=True)
    shown = viewer.payload(
        record(pipe, "a big red circle and a small blue square and a star on a black background " * 2)
    )
    assert len(json.dumps(shown)) < 300_000
    assert set(shown["views"]) == {"mean||", "calibrated||"}


@pytest.mark.parametrize("make", [attention_viewer, reading.reading, lambda: vocabulary.vocabulary({})])
def test_templates_hold_nothing_that_gradio_would_run(make: Any) -> None:
    component = make()
    for template in (component.html_template, component.css_template):
        assert not any(mark in template for mark in ("${", "{{", "`", "\\"))


# Kept drawings


def drawing(pipe: TextToImagePipeline, prompt: str = PROMPT) -> Drawing:
    return Drawing(record(pipe, prompt), [["data:image/webp;base64,AAAA"] * 2], [{"seed": "5"}])


def test_finer_maps_and_files_need_the_key(pipe: TextToImagePipeline) -> None:
    kept = Kept()
    ask = {function.__name__: function for function in kept.functions()}
    made = drawing(pipe)
    asked = {"key": kept.add(made), "image": 0}
    assert ask["view"](asked | {"name": "mean|mid|1"}) == viewer.view(made.attention, 0, "mean|mid|1")
    assert ask["frames"](asked) == {"frames": made.frames[0], "view": viewer.view(made.attention, 0, "mean||")}
    saved = ask["save"](asked | {"kind": "png"})
    assert saved["name"] == "a-red-circle-left-of-a-blue-square-seed5.png"
    assert base64.b64decode(saved["content"]).startswith(b"\x89PNG")
    mask = ask["save"](asked | {"kind": "mask", "word": 2})
    assert mask["name"] == "a-red-circle-left-of-a-blue-square-seed5-circle-mask.png"
    assert [found["word"] for found in ask["masks"](asked)["masks"]] == PROMPT.split()


@pytest.mark.parametrize(
    "asked",
    [None, [], "key", {}, {"key": "guess", "image": 0}, {"key": ["x"]}, {"image": 1}, {"image": "0"}, {"image": -1}],
)
def test_a_malformed_request_gets_an_error_of_one_line(pipe: TextToImagePipeline, asked: Any) -> None:
    kept = Kept()
    key = kept.add(drawing(pipe))
    if isinstance(asked, dict) and "image" in asked and "key" not in asked:
        asked = asked | {"key": key}
    for function in kept.functions():
        assert list(function(asked)) == ["error"]
    for wrong in ({"name": 5}, {"kind": "exe"}):
        assert "error" in kept.functions()[0 if "name" in wrong else 2]({"key": key, "image": 0} | wrong)


def test_the_oldest_drawing_is_dropped_when_memory_is_full(pipe: TextToImagePipeline) -> None:
    first = drawing(pipe)
    kept = Kept(budget=int(2.5 * first.bytes))
    keys = [kept.add(first), kept.add(drawing(pipe)), kept.add(drawing(pipe))]
    assert len(set(keys)) == 3
    for key, is_kept in zip(keys, (False, True, True), strict=True):
        if is_kept:
            kept.get({"key": key, "image": 0})
        else:
            with pytest.raises(ValueError, match="no longer keeps this picture"):
                kept.get({"key": key, "image": 0})


# The line below the prompt


def test_unknown_words_are_named_once_with_the_nearest_known_ones(tiny_pipe: TextToImagePipeline) -> None:
    others = {"emoji": TextToImagePipeline.from_pretrained("emoji").tokenizer}
    prompt = "😀 a crimson <b>zebra</b>, left of a blue cirkle <b>"
    result = reading.read(prompt, tiny_pipe.tokenizer, others)
    found = {one["text"]: (one["instead"], one["model"]) for one in result["unknown"]}
    assert found == {
        "😀": (None, None),
        "crimson": ("red", None),
        "b": (None, None),
        "zebra": (None, "emoji"),
        "cirkle": ("circle", None),
    }
    assert all(prompt[one["start"] : one["end"]] == one["text"] for one in result["unknown"])
    assert reading.read(PROMPT, tiny_pipe.tokenizer)["unknown"] == []


def test_one_model_is_offered_for_all_unknown_words_where_one_knows_them_all(tiny_pipe: TextToImagePipeline) -> None:
    others = {name: TextToImagePipeline.from_pretrained(name).tokenizer for name in ("emoji", "everyday")}
    for prompt, model in (("a giraffe and two bananas", "everyday"), ("two bananas", "emoji")):
        unknown = reading.read(prompt, tiny_pipe.tokenizer, others)["unknown"]
        assert unknown and {one["model"] for one in unknown} == {model}, prompt


@pytest.mark.parametrize("prompt", ["a " * 1500, "circle " * 200, "half \ud83d a smile"])
def test_an_unusable_prompt_gets_an_error_while_it_is_typed(tiny_pipe: TextToImagePipeline, prompt: str) -> None:
    result = reading.read(prompt, tiny_pipe.tokenizer)
    assert result["unknown"] == [] and 10 < len(result["error"]) < 120


# What a model can draw


@pytest.mark.parametrize("name", ["shapes", "emoji", "everyday"])
def test_a_model_is_described_and_surprised_by_the_words_it_knows(name: str) -> None:
    tokenizer = TextToImagePipeline.from_pretrained(name).tokenizer
    known = vocabulary.describe(tokenizer)
    prompts = [*known["examples"], *(vocabulary.surprise(tokenizer, random.Random(i)) for i in range(50))]
    assert known["examples"] and known["groups"]
    assert [text for text in prompts if unknown_words(text, tokenizer)] == []
    assert [text for text in prompts if read(text)[0] is None] == []
    assert not any(unknown_words(word, tokenizer) for _, words in known["groups"] for word in words)


def test_each_text_has_all_languages_with_the_same_places() -> None:
    for key, texts in TEXTS.items():
        assert set(texts) == set(LANGUAGES) and all(texts.values()), key
        places = [set(re.findall(r"\{(\w+)\}", text)) for text in texts.values()]
        assert places[0] == places[1], key


def test_every_text_that_is_asked_for_exists_and_is_used() -> None:
    root = Path(viewer.__file__).parents[1]
    code = "".join(file.read_text("utf-8") for kind in ("py", "js", "html") for file in root.rglob(f"*.{kind}"))
    subjects = "|".join({key.split(".")[0] for key in TEXTS})
    asked = set(re.findall(rf"""[(=]["']((?:{subjects})\.[a-z0-9. ]*[a-z0-9])["']""", code))
    assert asked - set(TEXTS) <= {"page.css", "page.js"}
    # The code puts these together, or matches them.
    built = (
        "viewer.at.",
        "viewer.box.",
        "viewer.tag.",
        "viewer.word.scale.",
        "verdict.",
        "training.",
        "error.",
        "finding.",
        "toast.",
    )
    assert [key for key in TEXTS if f'"{key}"' not in code and not key.startswith(built)] == []
