from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipelines.checkpoint import load_checkpoint, load_state, save_checkpoint
from pipelines.muon import Muon
from pipelines.train import power_function_ema


class Run:
    """A small training run: model, average and optimizer, after some steps on fixed data."""

    def __init__(self, seed: int, steps: int = 0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2))
        self.model = self.model.to(memory_format=torch.channels_last)
        self.ema = AveragedModel(self.model, multi_avg_fn=power_function_ema(0.1))
        kernel, *others = self.model.parameters()
        self.optimizer = Muon([kernel], others, 0.05)
        self.data = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        (self.model(self.data) - 1).square().mean().backward()
        self.optimizer.step()
        self.ema.update_parameters(self.model)

    def save(self, folder: Path, **state: object) -> None:
        save_checkpoint(folder, self.model, self.ema, self.optimizer, state)

    def load(self, folder: Path) -> None:
        load_checkpoint(folder, self.model, self.ema, self.optimizer)

    def everything(self) -> dict[str, Tensor]:
        moments = {
            f"{name}|{key}": value
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state[parameter].items()
        }
        return {k: v.clone() for k, v in (self.model.state_dict() | self.ema.state_dict() | moments).items()}


def assert_identical(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]), name


def test_what_is_loaded_is_what_was_saved_and_goes_on_the_same_way(tmp_path: Path) -> None:
    run = Run(seed=0, steps=3)
    run.save(tmp_path / "checkpoint", step=3)
    other = Run(seed=1)
    other.load(tmp_path / "checkpoint")
    assert_identical(other.everything(), run.everything())
    assert load_state(tmp_path / "checkpoint") == {"step": 3}
    for _ in range(2):
        run.step()
        other.step()
    assert_identical(other.everything(), run.everything())


def test_loading_changes_the_weights_the_optimizer_holds(tmp_path: Path) -> None:
    Run(seed=0, steps=3).save(tmp_path / "checkpoint")
    other = Run(seed=1)
    parameters = list(other.model.parameters())
    other.load(tmp_path / "checkpoint")
    assert all(a is b for a, b in zip(parameters, other.model.parameters(), strict=True))


def test_a_later_checkpoint_takes_the_place_of_the_last(tmp_path: Path) -> None:
    run = Run(seed=0, steps=1)
    run.save(tmp_path / "checkpoint", step=1)
    run.step()
    run.save(tmp_path / "checkpoint", step=2)
    assert load_state(tmp_path / "checkpoint") == {"step": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_nothing_on_disk_is_a_pickle(tmp_path: Path) -> None:
    Run(seed=0, steps=1).save(tmp_path / "checkpoint")
    assert {path.suffix for path in (tmp_path / "checkpoint").iterdir()} == {".safetensors", ".json"}


def test_a_run_stopped_while_writing_still_has_its_last_checkpoint(tmp_path: Path) -> None:
    run = Run(seed=0, steps=1)
    run.save(tmp_path / "checkpoint", step=1)
    expected = run.everything()
    half = tmp_path / "checkpoint.new"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half a fi")
    assert load_state(tmp_path / "checkpoint") == {"step": 1}
    other = Run(seed=1)
    other.load(tmp_path / "checkpoint")
    assert_identical(other.everything(), expected)
    other.save(tmp_path / "checkpoint", step=2)  # and the half one is in nobody's way
    assert load_state(tmp_path / "checkpoint") == {"step": 2}


def test_a_run_stopped_between_the_two_renames_still_has_its_last_checkpoint(tmp_path: Path) -> None:
    run = Run(seed=0, steps=1)
    run.save(tmp_path / "checkpoint", step=1)
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")
    assert load_state(tmp_path / "checkpoint") == {"step": 1}
    other = Run(seed=1)
    other.load(tmp_path / "checkpoint")
    assert_identical(other.everything(), run.everything())


def test_where_there_is_no_checkpoint_there_is_nothing_to_resume(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=f"nothing to resume in {folder}"):
            load_state(folder / "checkpoint")


@pytest.mark.parametrize(
    ("file", "tensor"),
    [("model", "0.weight"), ("ema", "module.3.bias"), ("ema", "n_averaged"), ("optimizer", "3.bias|exp_avg_sq")]
    + [("optimizer", "0.weight|momentum")],
)
@pytest.mark.parametrize("damage", ["missing", "of another shape"])
def test_a_tensor_that_is_missing_or_does_not_fit_is_an_error(
    tmp_path: Path, file: str, tensor: str, damage: str
) -> None:
    Run(seed=0, steps=2).save(tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / f"{file}.safetensors"
    tensors = load_file(path)
    tensors[tensor] = torch.zeros(7)
    if damage == "missing":
        del tensors[tensor]
    save_file(tensors, path)
    with pytest.raises(ValueError, match=tensor.split("|")[0].replace(".", r"\.")):
        Run(seed=1).load(tmp_path / "checkpoint")
