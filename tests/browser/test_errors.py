"""Every error that the page's inputs can cause, and every finding in data, in Chinese: none is left in English."""

import ast
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from pipelines import TextToImagePipeline
from ui.data import add_upload, check_data, preview
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
ENGLISH = re.compile(r"[A-Za-z]{3,} [a-z]{2,} [a-z]{2,}")
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
    script = files("ui.texts").joinpath("errors.js").read_text("utf-8")
    page = browser.new_context(locale="zh-CN").new_page()
    asked = {"lines": lines, "errors": ERRORS}
    written = "return props.lines.map(sayError);"
    script = f"window.knownErrors = props.errors; {script}\n{written}"
    shown = page.evaluate(f"props => {{ {script} }}", asked)
    page.context.close()
    return shown


def left_in_english(browser: "Browser", lines: list[str]) -> list[tuple[str, str]]:
    """The lines, as they are and as they are shown, that have no Chinese, have English, or are called a library's."""
    return [
        (line, text)
        for line, text in zip(lines, in_chinese(browser, lines), strict=True)
        if not re.search(r"[\u4e00-\u9fff]", text)
        or ENGLISH.search(QUOTED.sub("", text))
        or text.startswith("程序库报错")
    ]


def test_every_error_of_the_inputs_is_written_in_chinese(
    browser: "Browser", lines: list[str], bilingual_lines: list[str]
) -> None:
    asked = [line.encode("utf-8", "replace").decode() for line in dict.fromkeys([*lines, *bilingual_lines])]
    assert len(asked) > 40
    assert left_in_english(browser, asked) == []


@pytest.fixture
def preview_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the preview says of a world, of good pictures and of bad ones."""
    monkeypatch.chdir(tmp_path)
    small, clear = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (40, 32)).save(small, "PNG")
    Image.new("RGBA", (40, 400)).save(clear, "PNG")
    good = {"0.png": small.getvalue(), "1 (1).png": clear.getvalue()}
    same = {f"{i}.png": small.getvalue() for i in range(40)}
    sets = {"good": good, "same": same, "bad": good | {"2.png": b"", "3.png": b"text", "4.png": small.getvalue()[:60]}}
    found = preview("shapes", 32).findings
    for name, pictures in sets.items():
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for file, data in pictures.items():
            (folder / file).write_bytes(data)
        rows = [{"file_name": file, "text": f"圆 number {i}"} for i, file in enumerate(pictures)]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        found += preview(str(folder.relative_to(tmp_path)), 64).findings
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        for file in (tmp_path / "data" / "bad").iterdir():
            if file.name != "2.png":
                archive.write(file, file.name)
        archive.writestr("9.png", small.getvalue()[:60])
    with pytest.raises(ValueError) as error:
        add_upload(tmp_path / "bad.zip")
    return list(dict.fromkeys([*found, str(error.value)]))


def test_every_line_of_a_preview_is_written_in_chinese(browser: "Browser", preview_lines: list[str]) -> None:
    assert len(preview_lines) > 20
    assert left_in_english(browser, preview_lines) == []


SAY_FINDINGS = [
    *("sources.look", "sources.rows", "sources.captioned", "sources.tables", "sources.check", "sources.files"),
    *("pixels", "profiles", "picture_files"),
]
"""The modules of `pipelines` that find something in data."""

FINDERS = ("Finding", "Handling", "PictureError", "find", "refuse")
ALONE = {
    "OSError": "unreadable: {}",
    "ValueError": "colour profile: its colour profile {}: its colours are taken as sRGB",
    "wrong.append": "bad mask: {}",
}
"""Calls that have the details of a finding alone, and what they become."""

SEVERITIES = {"error", "warning", "note"}


def written(node: ast.expr, before: dict[str, ast.expr], module: ModuleType) -> list[str]:
    """The texts that an expression may have; "7" is anything that is not known."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.IfExp():
            return written(node.body, before, module) + written(node.orelse, before, module)
        case ast.Name() if node.id in before:
            return written(before[node.id], before, module)
        case ast.Name() if isinstance(text := getattr(module, node.id, None), str):
            return [text]
        case ast.JoinedStr():
            texts = [""]
            for part in node.values:
                value = part.value if isinstance(part, ast.FormattedValue) else part
                texts = [text + end for text in texts for end in written(value, before, module)]
            return texts
    return ["7"]


def findings_of(name: str) -> Iterator[str]:
    """The findings that the code of a module makes: "kind: details"."""
    module = import_module(f"pipelines.{name}")
    tree = ast.parse(Path(str(module.__file__)).read_text("utf-8"))
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        before: dict[str, ast.expr] = {}
        for node in sorted(ast.walk(function), key=lambda node: getattr(node, "lineno", 0)):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                before[node.targets[0].id] = node.value
            elif isinstance(node, ast.Call | ast.Tuple):
                parts = node.args if isinstance(node, ast.Call) else node.elts
                texts = [written(part, before, module) for part in parts if ast.unparse(part) != "True"]
                texts = [text for text in texts if not SEVERITIES.issuperset(text)]
                call = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                known = [text[0] for text in texts[:-1] if text[0] not in ("", "7")]
                details = [text for text in (texts or [[]])[-1] if " " in text]
                if call in ALONE:
                    yield from map(ALONE[call].format, details)
                elif name == "sources.tables" and not call:
                    yield from map("bad line: {}".format, details)
                elif known and call.rpartition(".")[2] in ("", *FINDERS):
                    mask = "the mask of 7 " if function.name == "_wrong_mask" else ""
                    yield from (f"{known[0]}: {mask}{text}" for text in details)


def test_every_finding_of_the_code_is_written_in_chinese(browser: "Browser") -> None:
    lines = (line for name in SAY_FINDINGS for line in findings_of(name))
    found = list(dict.fromkeys(re.sub(r"^(no|long) 7:", r"\1 caption:", line) for line in lines))
    assert len(found) > 80
    assert left_in_english(browser, found) == []


def test_an_error_of_a_library_is_kept_in_a_chinese_sentence(browser: "Browser") -> None:
    assert in_chinese(browser, ["CUDA out of memory: 2 GiB", ""]) == ["程序库报错：CUDA out of memory: 2 GiB", ""]


def test_no_known_error_has_a_place_in_chinese_alone() -> None:
    for texts in ERRORS:
        english, chinese = (set(re.findall(r"\{(\w+)\}", text)) for text in texts.values())
        assert chinese <= english, texts
