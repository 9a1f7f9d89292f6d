"""Drawing a file of prompts, with small real models."""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_distributed import launch

import pipelines.prompts
from pipelines import TextToImagePipeline
from pipelines.prompts import StoppedDrawingError, draw_prompts, read_prompt_file
from pipelines.sources.findings import DataError
from ui.cli import main

LINES = [
    {"prompt": "a red circle"},
    {"prompt": "a blue square and a small yellow star above a green triangle", "seed": 7},
    {"prompt": "红色的圆", "steps": 3, "guidance": 1, "id": "round"},
    {"prompt": "a green star", "negative_prompt": "a red star", "seed": 2**64 - 1},
    {"prompt": "a red circle", "seed": 1},
]


def write(path: Path, lines: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n", encoding="utf-8")
    return path


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture).astype(int)


def assert_same_pictures(expected: list[dict], pictures: list[np.ndarray], out: Path) -> None:
    """Assert that `out` has these rows and pictures within 1/255: batches may have been composed differently."""
    for wanted, picture, found in zip(expected, pictures, rows(out), strict=True):
        assert {**found, "sha256": ""} == {**wanted, "sha256": ""}
        assert np.abs(pixels(out / found["file"]) - picture).max() <= 1
        assert found["sha256"] == hashlib.sha256((out / found["file"]).read_bytes()).hexdigest()


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "prompts.jsonl", LINES)


@pytest.fixture(scope="module")
def tiny_model(tiny_pipe: TextToImagePipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def drawn(tiny_pipe: TextToImagePipeline, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The prompts of each batch drawn during the test."""
    calls: list[list[str]] = []
    call = TextToImagePipeline.__call__

    def noted(self: TextToImagePipeline, prompt: list[str], **settings: object) -> object:
        calls.append(prompt)
        return call(self, prompt, **settings)

    monkeypatch.setattr(TextToImagePipeline, "__call__", noted)
    return calls


def test_every_prompt_has_its_picture_the_same_as_alone_and_a_row(
    tiny_pipe: TextToImagePipeline, file: Path, tmp_path: Path, drawn: list
) -> None:
    out = tmp_path / "out"
    assert draw_prompts(tiny_pipe, file, out, seed=5, steps=2, model="tiny") == out / "results.jsonl"
    assert sorted(map(len, drawn)) == [1, 4]  # prompts with the same settings together
    for index, (row, line) in enumerate(zip(rows(out), LINES, strict=True)):
        expected = {"seed": 5, "steps": 2, "guidance": 3.0, "negative_prompt": "", "id": ""} | line
        assert {name: row[name] for name in expected} == expected
        assert (row["index"], row["model"]) == (index, "tiny")
        assert row["sha256"] == hashlib.sha256((out / row["file"]).read_bytes()).hexdigest()
        alone = tiny_pipe(
            line["prompt"],
            negative_prompt=line.get("negative_prompt"),
            num_inference_steps=row["steps"],
            guidance_scale=row["guidance"],
            generator=torch.Generator().manual_seed(row["seed"]),
        ).images[0]
        assert np.abs(pixels(out / row["file"]) - np.asarray(alone).astype(int)).max() <= 1
    assert rows(out)[2]["file"] == "pictures/round.png"
    assert sorted(path.name for path in out.iterdir()) == ["pictures", "plan.json", "results.jsonl"]
    assert len(list((out / "pictures").iterdir())) == len(LINES)


def test_a_text_file_has_a_prompt_a_line(tiny_pipe: TextToImagePipeline, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes("\ufeffa red circle\r\n\r\n  红色的圆 \n".encode())
    prompts = read_prompt_file(tmp_path / "prompts.txt", tiny_pipe.tokenizer, seed=3)
    assert [(p.index, p.prompt, p.seed, p.file) for p in prompts] == [
        (0, "a red circle", 3, "pictures/000000.png"),
        (1, "红色的圆", 3, "pictures/000001.png"),
    ]


@pytest.mark.usefixtures("default_sigint")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_whole_batches_and_the_same_call_draws_only_the_rest(
    tiny_pipe: TextToImagePipeline,
    file: Path,
    tmp_path: Path,
    drawn: list,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    monkeypatch.setattr(pipelines.prompts, "BATCH", 2)
    draw_prompts(tiny_pipe, file, whole, steps=2, model="tiny")
    drawn.clear()

    append_row = pipelines.prompts.append_row

    def stopped(path: Path, row: dict) -> None:
        append_row(path, row)
        if row["index"] == 0:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch, pytest.raises(StoppedDrawingError, match="2 of 5 pictures") as error:
        patch.setattr(pipelines.prompts, "append_row", stopped)
        draw_prompts(tiny_pipe, file, out, steps=2, model="tiny")
    assert error.value.received == number
    assert [row["index"] for row in rows(out)] == [0, 1]
    draw_prompts(tiny_pipe, file, out, steps=2, model="tiny")
    assert len(drawn) == 3
    assert rows(out) == rows(whole)
    before = contents(out / "pictures")
    draw_prompts(tiny_pipe, file, out, steps=2, model="tiny")  # nothing left to draw
    assert len(drawn) == 3 and contents(out / "pictures") == before


def test_damaged_and_lost_results_are_drawn_again_and_nothing_else(
    tiny_pipe: TextToImagePipeline, file: Path, tmp_path: Path, drawn: list
) -> None:
    out = tmp_path / "out"
    draw_prompts(tiny_pipe, file, out, steps=2, model="tiny")
    expected = rows(out)
    pictures = [pixels(out / row["file"]) for row in expected]
    text = (out / "results.jsonl").read_text()
    (out / "results.jsonl").write_text(text[:-30])  # killed within the last line
    (out / expected[0]["file"]).unlink()
    (out / expected[2]["file"]).write_bytes(b"half a pic")
    # The rows of another process of a killed run count as well.
    (out / "part-1-results.jsonl").write_text(json.dumps(expected[3]) + '\n{"index": 4, "pro')
    drawn.clear()
    draw_prompts(tiny_pipe, file, out, steps=2, model="tiny")
    assert sorted(prompt for batch in drawn for prompt in batch) == ["a red circle", "a red circle", "红色的圆"]
    assert_same_pictures(expected, pictures, out)
    assert sorted(path.name for path in out.iterdir()) == ["pictures", "plan.json", "results.jsonl"]


def test_lines_whose_guidance_the_model_cannot_follow_are_listed_before_anything_is_drawn(
    tiny_pipe: TextToImagePipeline, tmp_path: Path
) -> None:
    pipe = TextToImagePipeline(**tiny_pipe.components, num_inference_steps=1, guidance_scale=1.0, guidable=False)
    lines = {"prompt": "a star"}, {"guidance": 3}, {"guidance": 3, "negative_prompt": "a circle"}
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "a star"} | line) for line in lines))
    with pytest.raises(DataError, match="1 lines cannot be used: line 2: guidance 3 with an empty negative prompt"):
        draw_prompts(pipe, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_bad_lines_are_named_at_once_and_nothing_is_drawn(
    tiny_pipe: TextToImagePipeline, tmp_path: Path, drawn: list
) -> None:
    lines = [
        b'{"prompt": "a red circle", "id": "one"}',
        b"no json",
        b"",
        b'{"text": "a red circle"}',
        b'{"prompt": "  "}',
        b'{"prompt": 3}',
        b'{"prompt": "a star", "seed": -1}',
        b'{"prompt": "a star", "seed": true}',
        b'{"prompt": "a star", "steps": 0}',
        b'{"prompt": "a star", "guidance": NaN}',
        b'{"prompt": "a star", "guidence": 2}',
        b'{"prompt": "a star", "id": "../../star"}',
        b'{"prompt": "a star", "id": "ONE"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "a star", "seed": ' + b"1" * 5000 + b"}",
        b'{"prompt": "a star", "a\\nb": 1}',
        json.dumps({"prompt": "red " * 100}).encode(),
        json.dumps({"prompt": "a star", "negative_prompt": "r" * 10_001}).encode(),
    ]
    says = ["not JSON", 'not an object with a "prompt"', "the prompt is empty", "must be a string", "seed", "seed"]
    says += ["steps", "guidance", "unknown field guidence", "id is up to", "that of line 1", "half a character"]
    says += ["not UTF-8", "not JSON", "unknown field a b:", "tokens", "10,001 characters"]
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError) as error:
        draw_prompts(tiny_pipe, path, tmp_path / "out")
    named = str(error.value).partition("used: ")[2].split("; line ")
    assert len(named) == len(says) and "17 lines cannot be used" in str(error.value)
    for number, complaint, expected in zip([2, *range(4, 20)], named, says, strict=True):
        assert complaint.removeprefix("line ").startswith(f"{number}: ") and expected in complaint
    assert drawn == [] and not (tmp_path / "out").exists()


def test_another_file_or_setting_is_refused_and_so_is_a_folder_of_something_else(
    tiny_pipe: TextToImagePipeline, file: Path, tmp_path: Path, drawn: list
) -> None:
    out = tmp_path / "out"
    draw_prompts(tiny_pipe, file, out, steps=2, model="tiny")
    before = contents(out)
    with pytest.raises(DataError, match="drawn with another steps and guidance: choose another --out"):
        draw_prompts(tiny_pipe, file, out, steps=3, guidance=1.0, model="tiny")
    write(file, LINES[1:])
    with pytest.raises(DataError, match=r"drawn with another .*prompts\.jsonl: choose another --out"):
        draw_prompts(tiny_pipe, file, out, steps=2, model="tiny")
    assert contents(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="is not empty"):
        draw_prompts(tiny_pipe, file, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(("name", "says"), [("none.txt", "not found"), ("a.csv", "neither"), ("b.txt", "holds no")])
def test_a_file_that_is_not_a_list_of_prompts_is_refused(
    tiny_pipe: TextToImagePipeline, tmp_path: Path, name: str, says: str
) -> None:
    if name != "none.txt":
        (tmp_path / name).write_text("\n")
    with pytest.raises(DataError, match=says):
        read_prompt_file(tmp_path / name, tiny_pipe.tokenizer)


def test_two_processes_draw_what_one_draws(
    tiny_pipe: TextToImagePipeline, tiny_model: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command itself; the batches differ from one process's by the prompt that needs other settings."""
    draw_prompts(tiny_pipe, file, tmp_path / "one", steps=2, model=str(tiny_model))
    out = tmp_path / "two"
    arguments = ("--prompts", str(file), "--out", str(out), "--model", str(tiny_model), "--steps", "2")
    done = launch(2, "-m", "ui.cli", "generate", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(out / "results.jsonl")]
    expected = rows(tmp_path / "one")
    assert_same_pictures(expected, [pixels(tmp_path / "one" / row["file"]) for row in expected], out)
    assert sorted(path.name for path in out.iterdir()) == ["pictures", "plan.json", "results.jsonl"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["unet-xattn", "generate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), *capsys.readouterr()

    return run


def test_the_command_takes_a_prompt_or_a_file_of_them(command: Callable, file: Path, tmp_path: Path) -> None:
    for arguments, says in [
        (["a red circle", "--prompts", file], "give a PROMPT or --prompts"),
        (["--prompts", file, "--keep", "full"], "give a PROMPT or --prompts"),
        ([], "give a PROMPT or --prompts"),
        (["--prompts", tmp_path / "none.txt"], "none.txt not found"),
    ]:
        code, _, err = command(*arguments, "--out", tmp_path / "out")
        assert code == 1 and err.startswith("error: ") and says in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("default_sigint")
def test_the_command_ends_with_the_signals_code_and_says_how_to_go_on(
    command: Callable, file: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.prompts, "BATCH", 1)
    append_row = pipelines.prompts.append_row

    def stopped(path: Path, row: dict) -> None:
        append_row(path, row)
        os.kill(os.getpid(), signal.SIGINT)

    arguments = ("--prompts", file, "--out", tmp_path / "out", "--model", tiny_model, "--steps", "1")
    with monkeypatch.context() as patch:
        patch.setattr(pipelines.prompts, "append_row", stopped)
        code, _, err = command(*arguments)
    assert code == 130
    assert err.splitlines()[-1] == "stopped with 1 of 5 pictures drawn: the same command draws the rest"
    code, out, _ = command(*arguments)
    assert code == 0 and out.strip() == str(tmp_path / "out" / "results.jsonl")
    assert [row["index"] for row in rows(tmp_path / "out")] == list(range(5))
