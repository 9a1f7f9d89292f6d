"""The command as a person types it: a process of its own, what it prints, its exit code, what it leaves on disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.train import TrainConfig, train


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ui.cli", *map(str, arguments)]
    # No hub, no network: what is bundled or local has to do.
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}, timeout=300
    )


def fails(*arguments: str | Path) -> str:
    """The one line a failing command prints."""
    done = run(*arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def tiny_model(tiny_pipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipe.save_pretrained(folder)
    return folder


def test_generate_writes_the_picture_and_its_word_sheet(tiny_model: Path, tmp_path: Path) -> None:
    arguments = ("generate", "A red circle!", "--model", tiny_model, "--steps", "2", "--out", tmp_path / "new")
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    picture, sheet = (Path(line) for line in done.stdout.split())
    assert Image.open(picture).size == (32, 32)
    assert Image.open(sheet).width > 32

    before = picture.read_bytes()
    assert "already exists" in fails(*arguments)
    assert picture.read_bytes() == before


def test_generate_with_bundled_model_needs_no_network(tmp_path: Path) -> None:
    done = run("generate", "a red circle and an elephant", "--steps", "2", "--seed", str(2**64 - 1), "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "elephant" in done.stderr  # a word it has never read is said, and which
    assert "circle" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["   "], "empty"),
        (["red " * 25_000], "long"),
        (["red " * 100], "tokens"),
        (["a red circle", "--steps", "0"], "between 1 and 1000"),
        (["a red circle", "--seed", "-1"], "seed"),
        (["a red circle", "--seed", str(2**64)], "seed"),
        (["a red circle", "--model", "no-such-model"], "shapes"),
    ],
    ids=["empty", "huge", "too long", "no steps", "negative seed", "seed too large", "no such model"],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments: list[str], says: str, tmp_path: Path) -> None:
    assert says in fails("generate", *arguments, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_train_refuses_a_folder_in_use_and_data_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert "--resume" in fails("train", "--out", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert "nothing to resume" in fails("train", "--out", tmp_path / "none", "--resume")
    assert "no captions" in fails("train", "--data", tmp_path / "mine", "--out", tmp_path / "new")
    assert "no-such-data" in fails("train", "--data", "no-such-data", "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_trained_folder_of_pictures_generates(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    with open(folder / "metadata.jsonl", "w") as file:
        for i in range(4):
            Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)).save(folder / f"{i}.png")
            file.write(json.dumps({"file_name": f"{i}.png", "text": f"noise number {i}"}) + "\n")
    run_folder = train(
        TrainConfig(data=str(folder), out=str(tmp_path / "run"), steps=2, batch_size=2, size=32, every=2)
    )
    done = run("generate", "noise number 2", "--model", run_folder, "--steps", "2", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "never read" not in done.stderr


def test_evaluate_prints_a_table_and_writes_json(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    done = run("evaluate", tiny_model, "--prompts", "2", "--steps", "1", "--json", file)
    assert done.returncode == 0, done.stderr
    assert "all" in done.stdout and "held" in done.stdout
    assert json.loads(file.read_text())
    assert "already exists" in fails("evaluate", tiny_model, "--json", file)
