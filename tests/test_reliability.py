"""No run is ever lost: processes are killed at random moments and at every write of a save, and disks fail.

Each training and each save is a process of its own, forked from a server that has loaded the libraries. The short tests
always run, the long ones with `-m long`.
"""

import errno
import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from test_checkpoint import Run, assert_identical, saved

import pipelines.data.batches
import pipelines.runs.checkpoint
import pipelines.training.train_text
from pipelines import TextToImagePipeline
from pipelines.data.emoji_folder import write_emoji
from pipelines.runs.checkpoint import FILES, checkpoints, damage, find_checkpoint, load_state, save_checkpoint
from pipelines.training.config import TextConfig
from pipelines.training.train import TrainConfig, train
from pipelines.training.train_text import train_text

if sys.platform == "win32":
    pytest.skip("the tests use signals of POSIX", allow_module_level=True)

SERVER = multiprocessing.get_context("forkserver")
PRELOADED = ["pytest", "pipelines.training.train", "pipelines.training.train_text", "pipelines.data.emoji_folder"]
SERVER.set_forkserver_preload(PRELOADED)

REFUSED = 3  # exit code of a process here that caught an error of the disk


def run_process(target: Callable[..., Any], *arguments: object) -> int | None:
    """The exit code of a process that calls a function; minus the signal if one killed it."""
    process = SERVER.Process(target=target, args=arguments)
    process.start()
    process.join(600)  # seconds
    if process.is_alive():
        process.kill()
    return process.exitcode


# One save, and all of its calls that touch the disk.


class Disk:
    """Calls `fault` at operation `at` on the disk, and, if `lasting`, at all operations after it.

    It counts opening, creating, renaming and removing (Python's audit events), each half of each write, and fsync. It
    is for processes that end soon, because an audit hook cannot be removed.
    """

    def __init__(self, at: int, fault: Callable[[], None], lasting: bool = False):
        self.at, self.fault, self.lasting, self.count = at, fault, lasting, 0
        self.bytes_left = sys.maxsize
        os.fsync = lambda _: self.touched()  # there is no power cut here, so nothing has to wait for the disk
        pipelines.runs.checkpoint.open = lambda path, mode: Torn(open(path, mode), self)  # noqa: SIM115
        sys.addaudithook(self.heard)

    def heard(self, event: str, arguments: tuple) -> None:
        if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir") or (event == "open" and arguments[1] != "r"):
            self.touched()

    def touched(self) -> None:
        self.count += 1
        if self.count == self.at or (self.lasting and self.count > self.at):
            self.fault()


class Torn(io.RawIOBase):
    """A file that is written in two halves, on a disk that may be full."""

    def __init__(self, file: io.BufferedIOBase, disk: Disk):
        self.file, self.disk = file, disk

    def write(self, content: bytes) -> int:  # type: ignore[override]
        half = len(content) // 2
        for part in (content[:half], content[half:]):
            fits = min(len(part), self.disk.bytes_left)
            self.file.write(part[:fits])
            self.file.flush()
            self.disk.bytes_left -= fits
            if fits < len(part):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.disk.touched()
        return len(content)

    def read(self, size: int = -1) -> bytes | None:
        return self.file.read(size)

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        self.file.close()
        super().close()


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(number: int) -> Callable[[], None]:
    def fault() -> None:
        raise OSError(number, os.strerror(number))

    return fault


def fork_and_save(folder: Path, at: int, number: int | None, room: int) -> int:
    """The exit code of a process that saves a third checkpoint beside the two in a folder, with a fault."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        run = Run(seed=0, steps=3)
        disk = Disk(at, kill_myself if number is None else refuse(number), lasting=number is not None)
        disk.bytes_left = room
        save_checkpoint(folder, run.model, run.ema, run.optimizer, {"step": 3}, keep=1)
        os._exit(0)
    except OSError:
        os._exit(REFUSED)
    finally:
        os._exit(1)


def assert_whole_and_going_on(folder: Path, held: dict[int, dict]) -> int:
    """The newest intact checkpoint is one that was saved, bit for bit, and the next save cleans up."""
    path, _ = find_checkpoint(folder)
    step = load_state(path)["step"]
    run = Run(seed=1)
    run.load(path)
    assert_identical(run.everything(), held[step])
    Run(seed=0, steps=3).save(folder, keep=1)
    assert [each.name for each in folder.iterdir()] == ["step-00000003"] and damage(folder / "step-00000003") == ""
    return step


def end_at_every_write(folder: Path, number: int | None) -> None:
    """In a process of its own: save repeatedly, each time with a fault one write later than the time before."""
    torch.set_num_threads(1)  # torch would wait for ever for threads that do not exist in a fork
    held = saved(folder / "first", 1, 2) | saved(folder / "third", 3)
    left = {2: 0, 3: 0}
    for at in range(1, 100):
        shutil.copytree(folder / "first", folder / f"{at}")
        code = fork_and_save(folder / f"{at}", at, number, sys.maxsize)
        if code == 0:
            break  # a save has no more operations
        assert code == (-signal.SIGKILL if number is None else REFUSED)
        left[assert_whole_and_going_on(folder / f"{at}", held)] += 1
    assert code == 0 and left[2] >= 20 and left[3] >= 5, left  # before the rename, and while removing
    print(f"{at - 1} places where a save was interrupted: {left}")


def fill_at_every_tenth(folder: Path) -> None:
    """In a process of its own: save on disks with room for a tenth of a checkpoint, two tenths, and so on."""
    torch.set_num_threads(1)  # as above
    held = saved(folder / "first", 1, 2) | saved(folder / "third", 3)
    size = sum(file.stat().st_size for file in (folder / "first" / "step-00000002").iterdir())
    for tenth in range(10):
        there = folder / f"{tenth}"
        shutil.copytree(folder / "first", there)
        assert fork_and_save(there, 0, None, size * tenth // 10) == REFUSED
        assert not list(there.glob("*.new"))  # the space is free again
        assert assert_whole_and_going_on(there, held) == 2


@pytest.mark.parametrize("number", [None, errno.EIO, errno.EROFS], ids=["SIGKILL", "EIO", "EROFS"])
def test_a_save_that_is_interrupted_at_any_write_loses_nothing(tmp_path: Path, number: int | None) -> None:
    assert run_process(end_at_every_write, tmp_path, number) == 0


def test_a_disk_that_is_full_at_any_tenth_of_a_save_loses_nothing(tmp_path: Path) -> None:
    assert run_process(fill_at_every_tenth, tmp_path) == 0


# Runs that are killed and resumed.


def tensors(out: Path) -> dict[str, np.ndarray]:
    """Weights, average and moments at the end of a run."""
    newest = checkpoints(out / "checkpoints")[0]
    assert damage(newest) == ""
    return {f"{name} {key}": value for name in FILES[:3] for key, value in load_file(newest / name).items()}


def different(out: Path, other: Path) -> list[str]:
    one, two = tensors(out), tensors(other)
    assert one.keys() == two.keys()
    return [key for key in one if one[key].tobytes() != two[key].tobytes()]


def quietly(work: Callable[..., Any], *arguments: object) -> None:
    """In a process of its own: train without output."""
    multiprocessing.set_start_method(None, force=True)  # else a server of its own would start the loader's workers
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    work(*arguments)


def unseeded(config: TextConfig, resume: bool = False) -> None:
    """A careless implementation: dropout depends on a random generator whose state is not saved."""
    pipelines.training.train_text.seed_of = lambda *_: int.from_bytes(os.urandom(7), "big")  # type: ignore[assignment]
    train_text(config, resume)


def kill_and_resume(work: Callable[..., Any], config: Any, kills: int, seed: int) -> int:
    """Train with `kills` SIGKILLs at random moments; returns how many of them interrupted a save.

    A save is interrupted while it writes a checkpoint or removes an older one. The run saves at every step. After each
    resume two checkpoints show how long a step takes with its save, and the signal follows after a random part of that
    time: a fixed delay would always interrupt the same work.
    """
    rng, folder, halves = np.random.default_rng(seed), Path(config.out) / "checkpoints", 0

    def reached() -> int:
        return max((int(path.name[5:]) for path in checkpoints(folder)), default=0)

    for kill in range(kills):
        before = reached()
        process = SERVER.Process(target=quietly, args=(work, config, before > 0))
        process.start()
        times = []
        for goal in (before + 1, before + 2):
            while reached() < goal:
                assert process.is_alive(), f"it ended by itself after {kill} kills"
                time.sleep(0.001)
            times.append(time.monotonic())
        time.sleep(float(rng.uniform(0, times[1] - times[0])))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        halves += any(folder.glob("*.new")) or any(map(damage, checkpoints(folder)))
    assert run_process(quietly, work, config, True) == 0
    return halves


@pytest.fixture
def text(tmp_path: Path) -> TextConfig:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"number {i}\tNummer {i}\n" for i in range(50)))
    settings = {"steps": 80, "batch_size": 8, "width": 32, "layers": 1, "every": 20, "warmup": 5, "save_every": 1}
    return TextConfig(pairs=str(pairs), out=str(tmp_path / "whole"), **settings)


def test_a_run_that_is_killed_repeatedly_ends_bit_for_bit_like_one_that_is_not(text: TextConfig) -> None:
    whole, out = Path(text.out), Path(text.out + "-parts")
    assert run_process(quietly, train_text, text) == 0
    kill_and_resume(train_text, replace(text, out=str(out)), kills=4, seed=0)
    assert different(whole, out) == []
    assert (whole / "validation.jsonl").read_text() == (out / "validation.jsonl").read_text()
    # The comparison would notice a single unseeded random generator.
    careless = replace(text, out=text.out + "-careless")
    kill_and_resume(unseeded, careless, kills=1, seed=1)
    assert len(different(whole, Path(careless.out))) > 20


def test_a_full_disk_ends_a_run_with_one_line_that_names_the_saved_step(
    text: TextConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes, write = iter(range(100)), pipelines.runs.checkpoint._write

    def full(path: Path, content: bytes) -> dict:
        if next(writes) == 7:  # in the second save
            write(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(pipelines.runs.checkpoint, "_write", full)
    with pytest.raises(OSError, match=r"^.*No space left on device; the run in \S+ has step 1 saved: --resume"):
        train_text(text)
    assert [path.name for path in (Path(text.out) / "checkpoints").iterdir()] == ["step-00000001"]


# The long tests.


KILLS = 500
"""SIGKILLs of one run. Its networks are so small that it saves about as long as it trains."""


def assert_kills_leave_no_trace(work: Callable[..., Any], config: Any) -> None:
    config = replace(config, steps=4 * KILLS, every=2 * KILLS)  # each kill allows it two or three steps
    whole, parts, other = (Path(config.out) / name for name in ("whole", "parts", "other"))
    assert run_process(quietly, work, replace(config, out=str(whole))) == 0
    halves = kill_and_resume(work, replace(config, out=str(parts), save_every=1), KILLS, seed=0)
    changed, count = different(whole, parts), len(tensors(whole))
    print(f"\n{KILLS} kills, {halves} of them during a save: {len(changed)} of {count} tensors differ", flush=True)
    assert changed == [] and KILLS / 10 < halves < KILLS * 9 / 10
    assert run_process(quietly, work, replace(config, out=str(other), seed=1)) == 0
    assert len(different(whole, other)) > count // 2


@pytest.mark.long
def test_hundreds_of_kills_of_a_text_training_leave_no_trace(text: TextConfig, tmp_path: Path) -> None:
    assert_kills_leave_no_trace(train_text, replace(text, out=str(tmp_path), save_every=0))


@pytest.mark.long
def test_hundreds_of_kills_of_a_picture_training_leave_no_trace(
    tiny_bilingual_pipe: TextToImagePipeline, tmp_path: Path
) -> None:
    data, model = tmp_path / "emoji", tmp_path / "model"
    write_emoji(data, 24)
    tiny_bilingual_pipe.save_pretrained(model)
    settings = {"batch_size": 2, "size": 16, "warmup": 5, "accumulate": 2}
    assert_kills_leave_no_trace(
        train, TrainConfig(data=str(data), out=str(tmp_path), begin_from=str(model), **settings)
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A function of a size in bytes -> a file system of that size. It needs root."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True)
        if made.returncode:
            pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)


def save_there(folder: Path, step: int) -> None:
    """In a process of its own: save a checkpoint of a few megabytes."""
    import torch

    torch.manual_seed(step)
    net = torch.nn.Linear(400, 400)
    try:
        save_checkpoint(folder, net, net, torch.optim.SGD(net.parameters()), {"step": step})
    except OSError as error:
        os._exit(REFUSED if error.errno in (errno.ENOSPC, errno.EROFS) else 1)
    os._exit(0)


@pytest.mark.long
def test_a_disk_that_is_really_full_at_any_tenth_of_a_save(small_disk: Callable[[int], Path], tmp_path: Path) -> None:
    assert run_process(save_there, tmp_path / "ample", 1) == 0
    size = sum(file.stat().st_blocks * 512 for file in (tmp_path / "ample").rglob("*"))
    for tenth in range(10):
        folder = small_disk(size + 65_536 + size * tenth // 10) / "checkpoints"
        assert run_process(save_there, folder, 1) == 0
        before = {file.name: file.read_bytes() for file in (folder / "step-00000001").iterdir()}
        assert run_process(save_there, folder, 2) == REFUSED
        assert {file.name: file.read_bytes() for file in (folder / "step-00000001").iterdir()} == before
        assert find_checkpoint(folder) == (folder / "step-00000001", [])


@pytest.mark.long
def test_a_folder_that_is_really_read_only(small_disk: Callable[[int], Path], text: TextConfig) -> None:
    place = small_disk(2**28)
    config = replace(text, out=str(place / "run"), steps=4)
    assert run_process(quietly, train_text, config) == 0
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    assert run_process(save_there, place / "run" / "checkpoints", 9) == REFUSED
    command = [
        sys.executable,
        "-m",
        "ui.cli",
        "train-text",
        f"--pairs={config.pairs}",
        f"--out={config.out}",
        "--resume",
    ]
    ended = subprocess.run([*command, "--steps=9"], capture_output=True, text=True)
    assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1
    assert "Read-only file system" in ended.stderr
    assert find_checkpoint(place / "run" / "checkpoints")[0].name == "step-00000004"
