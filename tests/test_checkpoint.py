"""A checkpoint is written completely or not at all and read back bit for bit; a damaged one is never loaded."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import pipelines.runs.checkpoint
from pipelines.runs.checkpoint import (
    FILES,
    checkpoints,
    damage,
    find_checkpoint,
    last_state,
    load_checkpoint,
    load_state,
    save_checkpoint,
)
from pipelines.training.config import Saving
from pipelines.training.muon import Muon
from pipelines.training.recipe import power_function_ema


class Run:
    """A small training run: model, average and optimizer, after some steps on fixed data."""

    def __init__(self, seed: int, steps: int = 0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2))
        self.model = self.model.to(memory_format=torch.channels_last)
        self.ema = AveragedModel(self.model, multi_avg_fn=power_function_ema(0.1))
        kernel, *others = self.model.parameters()
        self.optimizer = Muon([{"params": [kernel], "orthogonal": True}, {"params": others}], 0.05)
        self.data = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        self.steps = 0
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        (self.model(self.data) - 1).square().mean().backward()
        self.optimizer.step()
        self.ema.update_parameters(self.model)
        self.steps += 1

    def save(self, folder: Path, keep: int = 2, milestone: bool = False) -> Path:
        return save_checkpoint(folder, self.model, self.ema, self.optimizer, {"step": self.steps}, keep, milestone)

    def load(self, path: Path) -> None:
        load_checkpoint(path, self.model, self.ema, self.optimizer)

    def everything(self) -> dict[str, Tensor]:
        moments = {
            f"{name}|{key}": value
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state[parameter].items()
        }
        return {k: v.clone() for k, v in (self.model.state_dict() | self.ema.state_dict() | moments).items()}


def saved(folder: Path, *steps: int, keep: int = 9) -> dict[int, dict[str, Tensor]]:
    """Save checkpoints of one run after these steps; returns their tensors."""
    run, held = Run(seed=0), {}
    for step in steps:
        while run.steps < step:
            run.step()
        run.save(folder, keep)
        held[step] = run.everything()
    return held


def assert_identical(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]), name


def test_a_loaded_run_is_the_saved_one_and_continues_like_it(tmp_path: Path) -> None:
    run = Run(seed=0, steps=3)
    path = run.save(tmp_path / "checkpoints")
    other = Run(seed=1)
    other.load(path)
    assert_identical(other.everything(), run.everything())
    assert load_state(path) == {"step": 3}
    for _ in range(2):
        run.step()
        other.step()
    assert_identical(other.everything(), run.everything())


def test_loading_changes_the_weights_the_optimizer_holds(tmp_path: Path) -> None:
    path = Run(seed=0, steps=3).save(tmp_path)
    other = Run(seed=1)
    parameters = list(other.model.parameters())
    other.load(path)
    assert all(a is b for a, b in zip(parameters, other.model.parameters(), strict=True))


def test_nothing_on_disk_is_a_pickle(tmp_path: Path) -> None:
    path = Run(seed=0, steps=1).save(tmp_path)
    assert {file.name for file in path.iterdir()} == {*FILES, "manifest.json"}
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}


def test_the_last_checkpoints_and_the_milestones_are_kept(tmp_path: Path) -> None:
    run = Run(seed=0)
    for step in range(1, 8):
        run.step()
        run.save(tmp_path, keep=2, milestone=step % 3 == 0)
    assert [path.name for path in checkpoints(tmp_path)] == [f"step-{step:08d}" for step in (7, 6, 3)]
    run.step()
    run.save(tmp_path, keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == [f"step-{step:08d}" for step in (8, 6, 3)]


def test_old_checkpoints_are_removed_only_after_the_new_one_was_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = saved(tmp_path, 1, 2, keep=1)
    run = Run(seed=0, steps=3)
    rename = os.replace

    def rename_and_spoil(source: Path, target: Path) -> None:
        rename(source, target)
        (target / "ema.safetensors").write_bytes(b"what the disk made of it")

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"was not written correctly.*ema\.safeten"):
        patch.setattr(os, "replace", rename_and_spoil)
        run.save(tmp_path, keep=1)
    path, said = find_checkpoint(tmp_path)
    assert load_state(path) == {"step": 2} and len(said) == 1
    other = Run(seed=1)
    other.load(path)
    assert_identical(other.everything(), held[2])
    run.save(tmp_path, keep=1)  # replaces the damaged one
    assert find_checkpoint(tmp_path) == (tmp_path / "step-00000003", [])


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut loses the page cache, unlike a SIGKILL, so only the order of writes protects a checkpoint."""
    saved(tmp_path, 1)
    done: list[tuple[str, str]] = []
    sync, rename, remove = os.fsync, os.replace, shutil.rmtree

    def name_of(descriptor: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name

    monkeypatch.setattr(os, "fsync", lambda file: (done.append(("sync", name_of(file))), sync(file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(("rename", Path(b).name)), rename(a, b)))
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: (done.append(("remove", path.name)), remove(path)))
    monkeypatch.setattr(pipelines.runs.checkpoint, "damage", lambda path: done.append(("verify", path.name)) or "")
    Run(seed=0, steps=2).save(tmp_path, keep=1)
    new = "step-00000002"
    files = [("sync", name) for name in (*FILES, "manifest.json")]
    ends = [
        ("sync", f"{new}.new"),
        ("rename", new),
        ("sync", tmp_path.name),
        ("verify", new),
        ("remove", "step-00000001"),
    ]
    assert done == [*files, *ends]


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=f"nothing to resume in {folder}"):
            find_checkpoint(folder / "checkpoints")
        assert last_state(folder / "checkpoints") == {}


def test_other_files_and_half_written_checkpoints_are_ignored(tmp_path: Path) -> None:
    held = saved(tmp_path, 1)
    for name in ("step-00000009.new", "step-00000002.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half a fi")
    for name in ("step-7", "step-abc", "step-00000003.bak", "notes"):
        (tmp_path / name).mkdir()
    for name in ("step-00000005", "step-00000004.new", "step-x.new", ".DS_Store", "step-00000001.json"):
        (tmp_path / name).write_text("mine")
    path, said = find_checkpoint(tmp_path)
    assert (path.name, said) == ("step-00000001", [])
    other = Run(seed=1)
    other.load(path)
    assert_identical(other.everything(), held[1])
    strays = {"step-7", "step-abc", "step-00000003.bak", "notes", "step-x.new", ".DS_Store", "step-00000001.json"}
    saved(tmp_path, 2)
    assert strays <= {path.name for path in tmp_path.iterdir()}
    assert find_checkpoint(tmp_path)[0].name == "step-00000002"


def test_of_200_damaged_checkpoints_none_is_loaded_and_each_is_reported(tmp_path: Path) -> None:
    held = saved(tmp_path, 1, 2)
    good, newest = tmp_path / "step-00000001", tmp_path / "step-00000002"
    whole = {name: (newest / name).read_bytes() for name in (*FILES, "manifest.json")}
    rng = np.random.default_rng(0)
    loaded = {"older": 0, "the same": 0}
    for trial in range(200):
        name = [*FILES, "manifest.json"][trial % 5]
        content = bytearray(whole[name])
        how = ("flip", "cut", "gone", "longer", "zeroed")[trial // 5 % 5]
        at = int(rng.integers(len(content)))
        if how == "flip":
            content[at] ^= 1 << int(rng.integers(8))
        elif how == "cut":
            del content[at:]
        elif how == "longer":
            content += b"\0"
        elif how == "zeroed":
            content[at:] = bytes(len(content) - at)
        (newest / name).write_bytes(content)
        if how == "gone":
            (newest / name).unlink()
        path, said = find_checkpoint(tmp_path)
        run = Run(seed=1)
        run.load(path)
        assert_identical(run.everything(), held[load_state(path)["step"]])  # never a mixture of both
        if path == good:
            (line,) = said
            assert line.startswith(f"{newest} is damaged, ") and line.endswith("resuming from step-00000001")
            assert name in line or (how == "flip" and name == "manifest.json")
            loaded["older"] += 1
        else:  # white space of the manifest, for example: no tensor has changed
            assert name == "manifest.json" and said == []
            loaded["the same"] += 1
        (newest / name).write_bytes(whole[name])
    assert damage(newest) == "" and loaded["older"] >= 190, loaded


def test_when_all_are_damaged_the_error_names_each(tmp_path: Path) -> None:
    saved(tmp_path / "checkpoints", 1, 2)
    for step in (1, 2):
        (tmp_path / "checkpoints" / f"step-0000000{step}" / "ema.safetensors").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"nothing intact to resume in .*step-00000002 .*0 bytes.*step-00000001"
    ) as error:
        find_checkpoint(tmp_path / "checkpoints")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "tensor"),
    [("model", "0.weight"), ("ema", "module.3.bias"), ("ema", "n_averaged"), ("optimizer", "3.bias|exp_avg_sq")]
    + [("optimizer", "0.weight|momentum")],
)
@pytest.mark.parametrize("wrong", ["missing", "of another shape"])
def test_a_tensor_that_is_missing_or_does_not_fit_is_an_error(
    tmp_path: Path, file: str, tensor: str, wrong: str
) -> None:
    folder = Run(seed=0, steps=2).save(tmp_path)
    path = folder / f"{file}.safetensors"
    tensors = load_file(path)
    tensors[tensor] = torch.zeros(7)
    if wrong == "missing":
        del tensors[tensor]
    save_file(tensors, path)
    with pytest.raises(ValueError, match=tensor.split("|")[0].replace(".", r"\.")):
        Run(seed=1).load(folder)


@pytest.mark.parametrize(
    "setting", [{"keep": 0}, {"save_every": -1}, {"save_minutes": float("nan")}, {"milestone": -1}]
)
def test_a_setting_out_of_its_range_is_refused_by_name(setting: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(setting)).replace("_", "-")):
        Saving(**setting)


def test_it_saves_by_steps_by_minutes_and_at_milestones() -> None:
    saving: Callable[..., list[int]] = lambda **how: [n for n in range(1, 13) if Saving(**how).due(n, 6 * n)]  # noqa: E731
    assert saving(save_minutes=0) == []
    assert saving(save_every=5, save_minutes=0) == [5, 10]
    assert saving(milestone=6, save_minutes=0) == [6, 12]
    assert saving(save_minutes=1) == [10, 11, 12]  # the caller passes the seconds since the last one
