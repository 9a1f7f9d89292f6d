"""The commands for finished runs: what they print, write and refuse."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import pipelines.training.card
from pipelines import TextToImagePipeline
from pipelines.data.pictures import is_validation_picture
from ui.cli import app


@pytest.fixture(scope="module")
def model(tiny_pipe: TextToImagePipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipe.save_pretrained(folder)
    return folder


def test_memorised_prints_two_shares_and_writes_the_sheet_and_the_figures(
    model: Path, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_folder("twenty", ["a red circle"] * 20)
    for i in range(1000):  # until one is held out, which depends on its hash
        file = data / "another.png"
        Image.new("RGB", (32, 32), (i % 256, i // 256, 0)).save(file)
        if is_validation_picture(hashlib.sha256(file.read_bytes()).hexdigest()):
            break
    with open(data / "metadata.jsonl", "a") as rows:
        rows.write('\n{"file_name": "another.png", "text": "a red circle"}\n')
    sheet, figures = tmp_path / "new" / "sheet.png", tmp_path / "report.json"
    arguments = ["memorised", str(model), "--data", str(data), "--out", str(sheet), "--json", str(figures)]
    done = CliRunner().invoke(app, [*arguments, "--prompts", "2"])
    assert done.exit_code == 0, done.exception
    report = json.loads(figures.read_text())
    for name in ("training", "validation"):
        entry = report[f"{name}_captions"]
        assert f"{entry['k']} of {entry['n']} samples drawn from captions of" in done.output
    with Image.open(sheet) as picture:
        assert picture.width > 4 * 96
    assert "already exists" in str(CliRunner().invoke(app, arguments).exception)
    refused = CliRunner().invoke(app, [*arguments[:4], "--out", "sheet.txt"])
    assert "must end in .png" in str(refused.exception) and "twenty" not in str(refused.exception)
    endless = CliRunner().invoke(app, ["memorised", str(model), "--data", "shapes", "--out", str(tmp_path / "b.png")])
    assert "scenes without end" in str(endless.exception) and not (tmp_path / "b.png").exists()


def test_publish_prints_the_address_and_refuses_a_folder_that_is_not_a_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def arrive(repo_id: str, folder_path: Path, **_: object) -> None:
        shutil.copytree(folder_path, tmp_path / "hub")

    class Address(str):
        repo_id = "me/mine"

    monkeypatch.setattr(pipelines.training.card, "create_repo", lambda *_, **__: Address("https://hub/me/mine"))
    monkeypatch.setattr(pipelines.training.card, "upload_folder", arrive)
    refused = CliRunner().invoke(app, ["publish", str(model), "--to", "me/mine"])
    assert "has no run.json" in str(refused.exception) and not (tmp_path / "hub").exists()
    own = tmp_path / "own"
    shutil.copytree(model, own)
    (own / "README.md").write_text("Mine.")
    done = CliRunner().invoke(app, ["publish", str(own), "--to", "me/mine"])
    assert done.exit_code == 0 and done.stdout.splitlines()[-1] == "https://hub/me/mine"
    assert (tmp_path / "hub" / "README.md").read_text() == "Mine."


def test_without_a_network_publish_fails_with_a_plain_error(model: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(model, own)
    (own / "README.md").write_text("Mine.")
    failed = CliRunner().invoke(app, ["publish", str(own), "--to", "me/mine"])
    assert isinstance(failed.exception, OSError | ValueError), failed.exception
