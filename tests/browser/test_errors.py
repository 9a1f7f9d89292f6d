"""Every error that the page's inputs can cause, in Chinese: none is left in English."""

import io
import re
import zipfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from pipelines import TextToImagePipeline
from ui.data import add_upload, check_data
from ui.drawing import linked, viewer_updates
from ui.generate_tab import Request
from ui.inspect_tab import look_at_picture, look_at_text, record_inputs
from ui.kept import Kept
from ui.language import ERRORS
from ui.models import Models
from ui.picture_tab import look
from ui.reading import read
from ui.runs import find_run
from ui.training import delete_run, model_of, rename_run, resume_run, start_run, stop_run
from ui.translate_tab import translate, translator

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HALF = "a \ud800 circle"
LONG, LONGER = "circle " * 300, "a" * 20_000
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


@pytest.fixture
def lines(tiny_pipe: TextToImagePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The errors of every function that a tab calls, for wrong values of each of its inputs."""
    monkeypatch.chdir(tmp_path)
    models, kept, found = Models(tiny_pipe), Kept(), []

    def wrong(act: Callable[..., Any], *values: Any, **named: Any) -> None:
        with pytest.raises((ValueError, OSError)) as error:
            answer = act(*values, **named)
            if isinstance(answer, dict) and answer.get("error"):
                raise ValueError(answer["error"])
            for _ in answer if hasattr(answer, "__next__") else ():
                pass
        found.append(" ".join(str(error.value).split()))

    # Generate, and the line below its prompt.
    for setting in (
        {"prompt": " "},
        {"prompt": LONG},
        {"prompt": LONGER},
        {"prompt": HALF},
        {"negative_prompt": HALF, "guidance_scale": 3.0},
        {"negative_prompt": LONG, "guidance_scale": 3.0},
        {"seed": "x"},
        {"seed": "-1"},
        {"num_inference_steps": 0},
        {"num_inference_steps": 1.5},
        {"num_images_per_prompt": 9},
        {"guidance_scale": 101.0},
        {"guidance_scale": "much"},
        {"guidance_low": 0.7, "guidance_high": 0.3},
        {"sampler": "DDIM"},
        {"model": "nope"},
    ):
        wrong(viewer_updates, models, kept, Request(**{"prompt": "a red circle", "num_inference_steps": 1} | setting))
    for changes in (
        *(
            {"edits": edits}
            for edits in ("paint", "louder red", "reweight red", "reweight red=much", "reweight red=-1")
        ),
        *(
            {"edits": edits}
            for edits in ("replace red=", "replace star=cross", "replace red=crimsonish", "remove star")
        ),
        *({"edits": edits} for edits in ("paint red=1,2", "paint red=0,0,999,9", "withhold a; " * 99, "pin of")),
        *({"regions": regions} for regions in ("4,4,8,8", "circle=4", "red=0,0,9,9; red=1,1,8,8", "red=0,0,0,0")),
    ):
        wrong(viewer_updates, models, kept, Request(**{"prompt": "a red circle", "num_inference_steps": 1} | changes))
    found += [read(text, tiny_pipe.tokenizer)["error"] for text in (LONG, LONGER, HALF)]
    for query in ({"steps": "3"}, {"num_inference_steps": "many"}, {"model": "nope"}):
        wrong(linked, query, models)
    asks = {function.__name__: function for function in kept.functions()}
    wrong(asks["view"], {"key": "gone", "image": 0, "name": "mean||"})
    wrong(asks["stop"], {"ticket": "gone"})
    # Your picture.
    pictures = {"empty.png": b"", "text.png": b"a text", "cut.png": b"\x89PNG\r\n\x1a\n" + bytes(40)}
    large, small = io.BytesIO(), io.BytesIO()
    Image.new("1", (9000, 9000)).save(large, "PNG")
    Image.new("L", (8, 8)).save(small, "PNG")
    pictures |= {"large.png": large.getvalue(), "small.png": small.getvalue()}
    for name, data in pictures.items():
        (tmp_path / name).write_bytes(data)
        if name != "small.png":
            wrong(look, models, kept, str(tmp_path / name), "a red circle", "", False)
    wrong(look, models, kept, None, "a red circle", "", False)
    for caption in ("", LONG, LONGER, HALF):
        wrong(look, models, kept, str(tmp_path / "small.png"), caption, "", False)
    # Translate and Inspect.
    wrong(translator, tiny_pipe)
    for prompt, seed, steps in ((" ", "0", 2), ("a red circle", "x", 2), ("a red circle", "0", 101), (LONG, "0", 2)):
        wrong(record_inputs, tiny_pipe, prompt, seed, steps)
    wrong(look_at_picture, tiny_pipe, record_inputs(tiny_pipe, "a red circle", "0", 2), 0, "nowhere")
    # Train.
    chosen = {"data": "shapes", "name": "x", "steps": 2, "batch_size": 2, "seed": 0, "size": 64, "every": 1}
    for name, value in {"name": "a/b", "steps": 0, "batch_size": 1.5, "seed": -1, "data": "nope"}.items():
        wrong(start_run, **chosen | {name: value})
    wrong(start_run, **chosen, begin_from="nope")
    wrong(check_data, "nope")
    for act in (stop_run, resume_run):
        wrong(act, "nope")
    wrong(find_run, Path("runs"), "nope")
    wrong(rename_run, "nope", "other")
    wrong(delete_run, "nope", "nope")
    wrong(model_of, models, None)
    (tmp_path / "no.zip").write_bytes(b"no zip")
    for name, members in {
        "bare": {"0.png": small.getvalue()},
        "program": {"run.exe": b""},
        "none": {"a.txt": b""},
    }.items():
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)
    for name in ("no", "bare", "program", "none"):
        wrong(add_upload, tmp_path / f"{name}.zip")
    return list(dict.fromkeys(found))


@pytest.fixture
def bilingual_lines(tiny_bilingual_pipe: TextToImagePipeline) -> list[str]:
    """Those of Translate and Inspect where the model has a text decoder."""
    pipe, found = translator(tiny_bilingual_pipe), []
    for act, values in (
        (translate, (pipe, " ")),
        (translate, (pipe, LONG)),
        (translate, (pipe, HALF)),
        (translate, (pipe, "a red circle", HALF)),
        (translate, (pipe, "a red circle", LONG)),
        (translate, (pipe, "a red circle", "", 9)),
        (look_at_text, (tiny_bilingual_pipe, "", "decoder.0")),
        (look_at_text, (tiny_bilingual_pipe, "a red circle", "nowhere")),
    ):
        with pytest.raises(ValueError) as error:
            answer = act(*values)
            for _ in answer if hasattr(answer, "__next__") else ():
                pass
        found.append(" ".join(str(error.value).split()))
    return found


def in_chinese(browser: "Browser", lines: list[str]) -> list[str]:
    """The lines as a component of the page writes them."""
    script = files("ui.texts").joinpath("texts.js").read_text("utf-8")
    page = browser.new_context(locale="zh-CN").new_page()
    asked = {"texts": {}, "lines": lines, "errors": ERRORS}
    written = "return props.lines.map(sayError);"
    script = f"window.knownErrors = props.errors; const element = document.body; {script}\n{written}"
    shown = page.evaluate(f"props => {{ {script} }}", asked)
    page.context.close()
    return shown


def test_every_error_of_the_inputs_is_written_in_chinese(
    browser: "Browser", lines: list[str], bilingual_lines: list[str]
) -> None:
    asked = list(dict.fromkeys([*lines, *bilingual_lines]))
    assert len(asked) > 40
    shown_lines = in_chinese(browser, [line.encode("utf-8", "replace").decode() for line in asked])
    left = [
        (line, text)
        for line, text in zip(asked, shown_lines, strict=True)
        if not re.search(r"[\u4e00-\u9fff]", text)
        or re.search(r"[A-Za-z]{3,} [a-z]{2,} [a-z]{2,}", QUOTED.sub("", text))
    ]
    assert left == []


def test_no_known_error_has_a_place_in_chinese_alone() -> None:
    for texts in ERRORS:
        english, chinese = (set(re.findall(r"\{(\w+)\}", text)) for text in texts.values())
        assert chinese <= english, texts
