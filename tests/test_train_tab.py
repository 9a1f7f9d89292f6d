"""Uploads and settings of the Train tab, and its part of the API."""

import copy
import io
import json
import socket
import stat
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

import ui.data
from pipelines import TextToImagePipeline
from pipelines.runs.folder import run_lock
from pipelines.scenes import WORLD_NAMES
from pipelines.sources.files import SMALL
from ui.app import launch
from ui.data import add_upload, check_data, data_names, preview
from ui.models import Models
from ui.runs import find_run
from ui.texts import Message, text
from ui.training import MOST_IN_STRIP, delete_run, describe, expected, model_of, plots, rename_run, start_run, strip

MakeZip = Callable[..., Path]
ROWS = [{"file_name": f"{i}.png", "text": f"picture {i}"} for i in range(3)]


def png(grey: int = 0, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (grey, grey, grey)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def make_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeZip:
    """A function that makes a zip of three captioned pictures, in the folder `under`, and of further files."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    (tmp_path / "page").mkdir()
    monkeypatch.chdir(tmp_path / "page")

    def make(files: dict[str | zipfile.ZipInfo, bytes] | None = None, under: str = "", rows: Any = ROWS) -> Path:
        path = tmp_path / "my pictures.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for i in range(3):
                archive.writestr(f"{under}{i}.png", png(80 * i))
            archive.writestr(f"{under}metadata.jsonl", "\n".join(map(json.dumps, rows)))
            for name, content in (files or {}).items():
                archive.writestr(name, content)
        return path

    return make


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


# Uploads


@pytest.mark.parametrize("under", ["", "my pictures/"])
def test_a_zip_of_captioned_pictures_becomes_data_to_train_on(make_zip: MakeZip, under: str) -> None:
    archive = make_zip({"__MACOSX/._0.png": b"x", f"{under}.DS_Store": b"x"}, under)
    assert add_upload(archive) == "data/my-pictures"
    assert sorted(path.name for path in Path("data/my-pictures").iterdir()) == ["0.png", "1.png", "2.png"] + [
        "metadata.jsonl"
    ]
    assert data_names() == [*WORLD_NAMES, "data/my-pictures"]
    found = preview("data/my-pictures", 32)
    assert found.usable and found.findings[0].startswith("3 pictures, 3 different captions")
    assert [(e.caption, int(e.picture[0, 0, 0])) for e in found.examples] == [
        (f"picture {i}", 80 * i) for i in range(3)
    ]
    assert add_upload(archive) == "data/my-pictures-2"


def test_a_zip_may_have_a_text_beside_each_picture(make_zip: MakeZip, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "beside.zip", "w") as archive:
        for i in range(2):
            archive.writestr(f"all/{i}.png", png(99 * i))
            archive.writestr(f"all/{i}.txt", f"picture {i}")
    assert add_upload(tmp_path / "beside.zip") == "data/beside"
    assert data_names() == [*WORLD_NAMES, "data/beside"]
    assert [example.caption for example in preview("data/beside", 32).examples] == ["picture 0", "picture 1"]


def test_the_preview_shows_the_errors_that_prevent_training(make_zip: MakeZip) -> None:
    folder = Path(add_upload(make_zip()))
    (folder / "1.png").write_bytes(b"")
    found = preview(str(folder), 32)
    assert not found.usable and any(
        line.startswith("error: 1.png (metadata.jsonl:2): empty") for line in found.findings
    )
    assert len(found.examples) == 2


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"../outside.png": png()}, "leaves the folder"),
        ({"a/../../outside.png": png()}, "leaves the folder"),
        ({"/tmp/outside.png": png()}, "leaves the folder"),
        ({"C:\\outside.png": png()}, "leaves the folder"),
        ({link("link.png"): b"/etc/passwd"}, "a link or a device"),
        ({"run.sh": b"echo"}, "only pictures"),
        ({"<b>page</b>.html": b"<script>"}, "not every system can store"),
        ({"a:b.png": png()}, "not every system can store"),
        ({"what?.png": png()}, r"'what\?\.png': '\?' in a name, which not every system can store: rename"),
        ({"page.html": b"<script>"}, "only pictures"),
        ({"0.png/1.png": png()}, "'0.png/1.png', which cannot be stored"),
        ({"./0.png": png()}, "'0.png': twice: several files have this name"),
        ({"a\\0.png": png(), "a/0.png": png()}, "twice: several files have this name"),
        ({"3.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, "not a picture in a format that is read"),
        ({"3.png": png(kind="TIFF")}, "not a picture in a format that is read"),
        ({"inner.zip": b"PK"}, "only pictures"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_zip_with_a_file_that_is_not_accepted_is_refused_in_a_line_and_nothing_is_kept(
    make_zip: MakeZip, tmp_path: Path, files: dict, expected: str
) -> None:
    archive = make_zip(files)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=expected) as error:
        add_upload(archive)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    assert list(Path("data").iterdir()) == [] and sorted(tmp_path.iterdir()) == before


def test_a_bomb_is_refused_before_a_byte_is_written(make_zip: MakeZip, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = make_zip({"3.png": bytes(SMALL + 1)})
    with pytest.raises(ValueError, match="the upload unpacks to more than 100 times its size, which pictures do not"):
        add_upload(bomb)
    monkeypatch.setattr(ui.data, "MOST_UNPACKED", SMALL)
    with pytest.raises(ValueError, match="the upload unpacks to 16 MiB, the limit is 16 MiB"):
        add_upload(bomb)
    monkeypatch.setattr(ui.data, "MOST_FILES", 4)
    with pytest.raises(ValueError, match="the upload holds 5 files, the limit is 4"):
        add_upload(bomb)


def test_a_zip_that_declares_less_than_it_holds_is_refused(make_zip: MakeZip) -> None:
    archive = make_zip({"3.png": bytes(100_000)})
    content = archive.read_bytes()
    assert content.count((100_000).to_bytes(4, "little")) == 2  # beside the file and in the list of them all
    archive.write_bytes(content.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(ValueError, match="cannot be unpacked"):
        add_upload(archive)


def test_a_file_that_is_not_a_zip_and_a_zip_without_captions_are_refused(make_zip: MakeZip, tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("not a zip")
    with pytest.raises(ValueError, match="the upload cannot be read as a zip"):
        add_upload(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "bare.zip", "w") as archive:
        archive.writestr("0.png", png())
    with pytest.raises(ValueError, match="the upload has no captions"):
        add_upload(tmp_path / "bare.zip")


@pytest.mark.parametrize("file_name", ["../../secret.png", "/etc/secret.png", "http://127.0.0.1:9/secret.png"])
def test_metadata_that_names_files_elsewhere_is_refused(make_zip: MakeZip, tmp_path: Path, file_name: str) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    with pytest.raises(ValueError, match="the upload"):
        add_upload(make_zip(rows=[*ROWS, {"file_name": file_name, "text": "a secret"}]))
    assert data_names() == list(WORLD_NAMES)


# Data names and settings


@pytest.mark.parametrize("name", ["..", "/etc", "data/none", "elsewhere", ".hidden/set", ""])
def test_only_data_that_is_listed_can_be_named(make_zip: MakeZip, tmp_path: Path, name: str) -> None:
    for folder in (tmp_path / "elsewhere", Path(".hidden") / "set"):
        folder.mkdir(parents=True)
        (folder / "metadata.jsonl").write_text("{}")
    Path("linked").symlink_to(tmp_path / "elsewhere")
    assert data_names() == list(WORLD_NAMES)
    with pytest.raises(ValueError, match="not found: choose one of"):
        check_data(name)
    assert not preview(name, 32).usable


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"name": "../x"}, "name of a run"),
        ({"name": "<img src=x>"}, "name of a run"),
        ({"data": "/etc"}, "not found: choose one of"),
        ({"steps": 0}, "steps must be a whole number from 1 to 100,000, got 0"),
        ({"steps": 1.5}, "steps must be"),
        ({"steps": None}, "steps must be"),
        ({"steps": "3"}, "steps must be"),
        ({"batch_size": 10**9}, "batch size must be"),
        ({"seed": 2**31}, "seed must be"),
        ({"size": 4096}, "size must be"),
        ({"every": -1}, "every must be"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_in_a_line_and_leave_no_folder(
    make_zip: MakeZip, wrong: dict, expected: str
) -> None:
    typed = {"name": "x", "data": "shapes", "steps": 3, "batch_size": 2, "seed": 0, "size": 32, "every": 3}
    with pytest.raises(ValueError, match=expected) as error:
        start_run(**typed | wrong)
    assert "\n" not in str(error.value)
    assert not Path("runs").exists()


# The API


@pytest.fixture(scope="module")
def client(tiny_pipe: TextToImagePipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as server:
        patch.chdir(tmp_path_factory.mktemp("page"))
        port = server.getsockname()[1]
        server.close()
        page = launch(TextToImagePipeline(**copy.deepcopy(tiny_pipe.components)), port=port, block=False)
        client = Client(page.local_url, verbose=False)
        yield client
        client.close()
        page.close()


def test_a_client_trains_three_steps_and_the_model_can_be_opened(
    client: Client, tiny_pipe: TextToImagePipeline
) -> None:
    assert client.predict(api_name="/runs") == []
    begun = client.predict("three", "shapes", 3, 2, 0, 32, 3, api_name="/train")
    assert (begun["name"], begun["state"]) == ("three", "starting")
    with pytest.raises(AppError, match="'three' is being trained: stop it first"):
        client.predict("other", api_name="/train")
    end = time.monotonic() + 120
    while (run := client.predict(api_name="/runs")[0])["state"] in ("starting", "running"):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert (run["state"], run["step"], run["steps"], run["data"]) == ("finished", 3, 3, "shapes")
    assert {"loss", "loss 0.5", "loss 0.5 shuffled", "agreement", "pointing"} <= run["figures"].keys()
    for call in ("/stop", "/resume"):
        with pytest.raises(AppError, match="is finished"):
            client.predict("three", api_name=call)
    models = Models(tiny_pipe)
    assert model_of(models, "three") == "runs/three"
    assert models.get("runs/three").unet.config.sample_size == 32


@pytest.mark.parametrize("call", ["/stop", "/resume"])
@pytest.mark.parametrize("name", ["none", "..", "/etc"])
def test_an_unknown_run_is_refused_in_a_line(client: Client, call: str, name: str) -> None:
    with pytest.raises(AppError, match=r"run 'none' not found|the name of a run") as error:
        client.predict(name, api_name=call)
    assert "\n" not in str(error.value)


# What the tab shows of a run


def write_run(name: str, **more: Any) -> Path:
    """The folder of a run that trained 100 of 400 steps and was stopped, below the folder the test runs in."""
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    settings = {"config": {"data": "shapes", "steps": 400, "size": 64}, "prompts": ["a red circle"]}
    (folder / "run.json").write_text(json.dumps(settings))
    rows = [{"step": step, "loss": 0.5, "seconds": step, "pictures/s": 8.0} for step in (1, 50, 100)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for file, value in more.items():
        (folder / file.replace("_", ".")).write_text(json.dumps(value))
    return folder


def said_of(messages: list[Message], language: str = "en") -> str:
    return "".join(text(key, language, **values) for key, values in messages)


@pytest.mark.parametrize(("rate", "said"), [(0.456, "0.46"), (4.56, "4.6"), (45.6, "46")])
def test_a_running_run_is_described_by_its_progress_of_a_moment_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    progress = {"step": 137, "pictures/s": rate, "seconds left": 263.0}
    with run_lock(write_run("mine", progress_json=progress)):
        line = said_of(describe(find_run(Path("runs"), "mine")))
    assert line.startswith("mine is running at step 137 of 400, on shapes, 1 min 40 s")
    assert f", {said} pictures/s, 4 min 23 s left" in line


def test_a_curve_has_more_than_one_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_run("mine")
    assert plots(find_run(Path("runs"), "mine"))[0] is not None
    (folder / "log.jsonl").write_text(json.dumps({"step": 1, "loss": 0.5, "seconds": 1}) + "\n")
    assert plots(find_run(Path("runs"), "mine"))[0] is None


def test_the_first_sample_is_a_strip_through_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_run("mine")
    (folder / "samples").mkdir()
    rows = ""
    for step in range(1, 101):
        sheet = Image.new("RGB", (32, 32), (step, 0, 0))
        sheet.save(folder / "samples" / f"step-{step:06d}.png")
        rows += json.dumps({"step": step}) + "\n"
        if step == 1:
            (folder / "validation.jsonl").write_text(rows)
            assert strip(find_run(Path("runs"), "mine")) == []
    (folder / "validation.jsonl").write_text(rows)
    shown = strip(find_run(Path("runs"), "mine"))
    assert len(shown) == MOST_IN_STRIP and [shown[0][1], shown[-1][1]] == ["1", "100"]
    assert all(picture.getpixel((0, 0)) == (int(step), 0, 0) for picture, step in shown)


def test_the_expected_time_follows_the_latest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert said_of(expected(4000, 64, 64)) == "About 1 h 0 min on two cores of a CPU."
    write_run("mine")
    assert said_of(expected(400, 64, 64)) == "About 53 min 20 s, at the speed of the run mine."
    assert said_of(expected(400, 64, 32)).endswith("on two cores of a CPU.") and expected(None, 64, 64) == []
    assert said_of(expected(4000, 64, 128), "zh") == "在 CPU 的两个核上约 4 小时 3 分。"


def test_a_run_is_renamed_and_deleted_only_at_rest_and_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_run("mine")
    with run_lock(folder), pytest.raises(ValueError, match="stop it first"):
        rename_run("mine", "other")
    write_run("taken")
    for wrong in ("taken", "../out", ""):
        with pytest.raises(ValueError, match=r"already exists|must be 1 to 64 letters"):
            rename_run("mine", wrong)
    assert rename_run("mine", "other").name == "other" and not folder.exists()
    with pytest.raises(ValueError, match="type its name: other"):
        delete_run("other", "oter")
    delete_run("other", "other")
    assert [path.name for path in Path("runs").iterdir()] == ["taken"]


def test_a_run_begins_only_from_a_listed_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"model '../secret' not found: begin from one of "
        r"emoji, everyday, everyday-fast, shapes, shapes-fast, or none",
    ):
        start_run("mine", "shapes", 10, 2, 0, 32, 10, "../secret")
    assert not Path("runs").exists()
