"""The description of a machine, the version of the code, and the figures of a run."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

import pipelines.runs.machine
from pipelines.runs.machine import Pace, brief, code_version, in_words, machine


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that shows its only number."""
    now = [100.0]
    monkeypatch.setattr(pipelines.runs.machine.time, "monotonic", lambda: now[0])
    return now


def test_the_rate_is_of_the_last_interval_and_the_time_left_of_the_whole_run(clock: list[float]) -> None:
    pace = Pace(first=10, last=110, batch_size=4)  # a run resumed at step 10
    clock[0] += 20
    assert pace.read(20)["pictures/s"] == 2  # 10 steps of 4 pictures in 20 s
    clock[0] += 5
    figures = pace.read(30)
    assert figures["pictures/s"] == 8
    assert figures["seconds left"] == pytest.approx(80 * 25 / 20)  # 80 steps, 20 took 25 s


def test_a_validation_counts_in_the_time_left_and_not_in_the_rate(clock: list[float]) -> None:
    pace = Pace(first=0, last=20, batch_size=2)
    clock[0] += 10
    pace.read(10)
    clock[0] += 1000
    pace.restart(10)
    clock[0] += 5
    figures = pace.read(15)
    assert figures["pictures/s"] == 2
    assert figures["seconds left"] == pytest.approx(5 * 1015 / 15)


def test_memory_is_that_of_this_process() -> None:
    pace = Pace(0, 2, 1)
    before = pace.read(1)["memory GiB"]
    held = bytearray(b"x" * 2**28)  # a quarter of a GiB, every page of it touched
    assert 0.2 < pace.read(2)["memory GiB"] - before < 0.4
    assert brief({"pictures/s": 117.6, "memory GiB": 1.94}) == "118 pictures/s, 1.9 GiB"
    assert len(held) == 2**28


def test_the_commit_is_named_in_a_checkout_and_the_version_outside(tmp_path: Path) -> None:
    assert "CPU" in machine()
    alone = tmp_path / "site-packages" / "pipelines"
    alone.mkdir(parents=True)
    (alone / "machine.py").write_text(Path(pipelines.runs.machine.__file__).read_text())
    spec = importlib.util.spec_from_file_location("elsewhere", alone / "machine.py")
    elsewhere = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(elsewhere)
    found = elsewhere.code_version
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "thesis.txt").write_text("years of work")
    subprocess.run([*git, "add", "thesis.txt"], check=True)
    subprocess.run([*git, "commit", "-qm", "Mine"], check=True)
    assert found().startswith("unet-xattn")  # in a checkout, but not tracked there
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "All"], check=True)
    assert re.fullmatch(r"commit [0-9a-f]{12}", found())
    (alone / "machine.py").write_text((alone / "machine.py").read_text() + "\n")
    assert re.fullmatch(r"commit [0-9a-f]{12}-dirty", found())
    assert code_version()


@pytest.mark.parametrize(("seconds", "words"), [(7.6, "8 s"), (200, "3 min 20 s"), (3900, "1 h 5 min")])
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
