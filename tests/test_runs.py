"""Training as a process: seen, stopped, killed and resumed from outside."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipelines import TextToImagePipeline
from pipelines.runs.checkpoint import last_state
from pipelines.runs.folder import find_trainer, name_trainer, run_lock
from pipelines.runs.rows import append_row, drop_rows_after, read_rows
from pipelines.runs.signals import StopSignals
from pipelines.training.train import TrainConfig, train
from ui import runs
from ui.cli import app

PATIENCE = 300  # seconds without progress; on a busy machine the libraries alone take half a minute to load


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """A run of seconds: thirty steps on two tiny scenes each."""
    return TrainConfig(out=str(tmp_path / "runs" / "tiny"), steps=30, batch_size=2, size=16, every=30)


@pytest.fixture
def options(tiny_pipe: TextToImagePipeline, tmp_path: Path) -> list[str]:
    """The options of a run that trains a tiny model on four pictures for as long as it is left alone."""
    tiny_pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    for i, colour in enumerate(["red", "green", "blue", "white"]):
        Image.new("RGB", (32, 32), colour).save(tmp_path / "data" / f"{i}.png")
        (tmp_path / "data" / f"{i}.txt").write_text(f"a {colour} wall")
    named = {"from": tmp_path / "model", "data": tmp_path / "data", "out": tmp_path / "runs" / "tiny"}
    numbers = {"steps": 100_000, "every": 100_000, "save-every": 40, "batch-size": 2, "size": 32}
    return [f"--{name}={value}" for name, value in (named | numbers).items()]


@contextmanager
def command(options: list[str]) -> Iterator[subprocess.Popen]:
    """The process of `unet-xattn train`, which is killed if it has not ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ui.cli", "train", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(done: Callable[[], bool], what: str, process: int) -> None:
    """Wait as long as a process works; it fails if that ends, or uses no processor for `PATIENCE` seconds."""
    used, since = -1.0, time.monotonic()
    while not done():
        try:
            times = psutil.Process(process).cpu_times()
        except psutil.NoSuchProcess:
            assert done(), f"the process ended before {what}"
            return
        if (now := times.user + times.system) > used + 0.1:
            used, since = now, time.monotonic()
        assert time.monotonic() < since + PATIENCE, f"waited in vain until {what}"
        time.sleep(0.02)


def wait_for_step(out: str | Path, step: int, process: int) -> None:
    wait_until(lambda: any(row["step"] >= step for row in read_rows(Path(out) / "log.jsonl")), f"step {step}", process)


def steps_in(out: str | Path, name: str) -> list[int]:
    return [row["step"] for row in read_rows(Path(out) / name)]


def test_a_run_is_started_seen_stopped_and_resumed_by_its_folder_alone(config: TrainConfig) -> None:
    out = Path(config.out)

    def run() -> runs.Run:
        return runs.find_run(out.parent, "tiny")

    assert runs.start(config).state == "starting"
    trainer = find_trainer(out).process
    wait_for_step(out, 1, trainer)
    assert run().state == "running" and run().steps == 30
    with pytest.raises(ValueError, match=r"^.*is being trained by process \d+: stop that one.*$"):
        train(config, resume=True)
    with pytest.raises(ValueError, match="run 'tiny' already"):
        runs.start(config)
    with pytest.raises(ValueError, match="is running: only a stopped run"):
        runs.resume(run())

    assert runs.stop(run()).state in ("stopping", "stopped")
    with pytest.raises(ValueError, match=r"is stopping already|there is nothing to stop"):
        runs.stop(run())  # a second signal would have ended it without saving
    wait_until(lambda: not run().active, "it has stopped", trainer)
    stopped = run()
    assert stopped.state == "stopped" and 0 < stopped.step < 30
    assert stopped.note.startswith(f"stopped at step {stopped.step} of 30")
    TextToImagePipeline.from_pretrained(out)
    with pytest.raises(ValueError, match="nothing to stop"):
        runs.stop(stopped)

    assert runs.resume(stopped).active
    wait_until(lambda: not run().active, "it has finished", find_trainer(out).process)
    finished = run()
    assert (finished.state, finished.step, finished.samples, finished.note) == ("finished", 30, [30], "")
    assert steps_in(out, "log.jsonl") == [1, 30] and steps_in(out, "validation.jsonl") == [30]
    seconds = [row["seconds"] for row in finished.log]
    assert seconds == sorted(seconds)
    assert 0 <= finished.validation[0]["agreement"] <= 1 and finished.validation[0]["judged"] == 16 == len(
        finished.prompts
    )
    assert (out / "samples" / "words-000030.png").is_file()
    with pytest.raises(ValueError, match="is finished: only a stopped run"):
        runs.resume(finished)


def test_a_killed_run_is_resumed_and_its_log_has_every_step_once(options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "runs" / "tiny"
    with command(options) as process:
        wait_for_step(out, 50, process.pid)
        found = find_trainer(out)
        assert found.held and found.process == process.pid
        process.kill()
        process.wait()
    assert not find_trainer(out).held  # the kernel has given the lock back
    killed = runs.find_run(out.parent, "tiny")
    assert killed.state == "stopped" and killed.step % 40 == 0 < killed.step  # it is back at a checkpoint
    last = killed.step + 30
    train(TrainConfig(out=str(out)), resume=True, changes={"steps": last, "every": 20})
    assert steps_in(out, "log.jsonl") == [1, *(step for step in range(50, last, 50)), last]
    assert steps_in(out, "validation.jsonl") == [*(s for s in range(killed.step + 1, last) if s % 20 == 0), last]
    assert runs.find_run(out.parent, "tiny").state == "finished"


@pytest.mark.usefixtures("default_sigint")  # a child inherits what is ignored
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_command_in_order(options: list[str], tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "runs" / "tiny"
    with command(options) as process:
        wait_for_step(out, 1, process.pid)
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert said.splitlines()[-1].startswith("stopped at step") and "Traceback" not in said
    state = last_state(out / "checkpoints")
    assert 0 < state["step"] < 100_000
    TextToImagePipeline.from_pretrained(out)


def test_data_that_cannot_be_used_makes_a_broken_run_that_says_why_and_leaves_its_name_free(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    config = TrainConfig(data=str(tmp_path / "empty"), out=str(tmp_path / "runs" / "broken"))
    out = tmp_path / "runs" / "broken"
    runs.start(config)
    trainer = find_trainer(out).process
    # It gives the lock back before it prints why it has failed.
    wait_until(lambda: "no pictures" in runs.find_run(out.parent, "broken").note, "it has said why", trainer)
    (broken,) = runs.list_runs(tmp_path / "runs")
    assert broken.state == "broken" and "has no pictures" in broken.note
    assert not (tmp_path / "runs" / "broken" / "run.json").exists()
    again = runs.start(config)
    runs.stop(again)  # before it has trained anything
    wait_until(lambda: not runs.find_run(out.parent, "broken").active, "it is gone", find_trainer(out).process)


# What is said of folders


def folder_with(path: Path, step: int, steps: int = 10) -> Path:
    checkpoint = path / "checkpoints" / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    config = asdict(TrainConfig(steps=steps, out=str(path)))
    (checkpoint / "state.json").write_text(json.dumps({"step": step, "config": config}))
    return path


def test_runs_are_listed_with_their_state_and_other_folders_are_not(tmp_path: Path) -> None:
    assert runs.list_runs(tmp_path / "nowhere") == []
    folder_with(tmp_path / "half", 5)
    folder_with(tmp_path / "whole", 10)
    text = tmp_path / "text" / "checkpoints" / "step-00000001"
    text.mkdir(parents=True)
    (text / "state.json").write_text('{"step": 1, "config": {"pairs": "names.tsv"}}')
    name_trainer(tmp_path / "text", 1, "")
    (tmp_path / "holiday pictures").mkdir()
    (tmp_path / "notes.txt").write_text("")
    found = {run.name: run for run in runs.list_runs(tmp_path)}
    assert {name: run.state for name, run in found.items()} == {"half": "stopped", "whole": "finished"}
    assert (found["half"].step, found["half"].steps, found["half"].data) == (5, 10, "shapes")
    listed = CliRunner().invoke(app, ["runs", str(tmp_path)])
    assert listed.exit_code == 0 and "5/10" in listed.output and "finished" in listed.output
    assert "no runs in" in CliRunner().invoke(app, ["runs", str(tmp_path / "half")]).output


def test_a_run_that_goes_on_says_how_fast_and_how_long_still(tmp_path: Path) -> None:
    run = folder_with(tmp_path / "half", 5)
    append_row(run / "log.jsonl", {"step": 5, "pictures/s": 117.6, "seconds left": 3900.0})
    assert runs.find_run(tmp_path, "half").seconds_left is None  # it was stopped: nobody works on the rest
    assert "118" not in CliRunner().invoke(app, ["runs", str(tmp_path)]).output
    code = "import sys, time; from pathlib import Path; from pipelines.runs.folder import run_lock\n"
    code += f"with run_lock(Path({str(run)!r})): print('held', flush=True); sys.stdin.read()"
    (run / "run.json").write_text(json.dumps({"config": {"data": "shapes", "steps": 10}}))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as trainer:
        assert trainer.stdout.readline() == "held\n"
        assert runs.find_run(tmp_path, "half").seconds_left == 3900
        listed = CliRunner().invoke(app, ["runs", str(tmp_path)]).output
        assert listed.splitlines()[-1] == "half: 118 pictures/s, 1 h 5 min left"
        trainer.communicate()


def test_a_number_of_a_process_that_is_another_one_by_now_is_not_taken_for_the_trainer(tmp_path: Path) -> None:
    run = folder_with(tmp_path / "old", 5)
    name_trainer(run, os.getpid(), "starting")  # it lives, and trains nothing
    old = runs.find_run(tmp_path, "old")
    assert old.state == "stopped"
    with pytest.raises(ValueError, match="nothing to stop"):
        runs.stop(old)


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", "a b", "a.b", "é", "x" * 65, "a\n", None, 3])
def test_only_plain_names_name_a_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"^the name of a run must be 1 to 64 letters, digits, - and _, got .*$"):
        runs.find_run(tmp_path, name)


# The lock, the signals, the logs


def test_a_lock_leaves_nothing_where_nothing_came_of_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path / "run"):
        raise ZeroDivisionError
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    with run_lock(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()
    assert find_trainer(tmp_path / "mine") == (os.getpid(), False, "")


@pytest.mark.usefixtures("default_sigint")
def test_the_first_signal_is_noted_and_the_second_does_what_it_always_did() -> None:
    with StopSignals() as stop:
        assert stop.received is None
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("default_sigint")
def test_a_signal_that_is_ignored_outside_stays_ignored() -> None:
    """A shell ignores SIGINT for the background jobs of a script, which a Ctrl+C for another program reaches too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.received is None
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_in_another_thread_signals_are_left_alone() -> None:
    def use() -> None:
        with StopSignals():
            handlers.append(signal.getsignal(signal.SIGTERM))

    handlers: list[object] = []
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


def test_rows_after_a_step_are_dropped_and_so_is_half_a_row(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    drop_rows_after(path, 5)
    assert not path.exists()
    for step in (1, 5, 6):
        append_row(path, {"step": step})
    with open(path, "a") as file:
        file.write('{"step": 7, "lo')
    drop_rows_after(path, 5)
    append_row(path, {"step": 6})
    assert steps_in(tmp_path, "log.jsonl") == [1, 5, 6]
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]
