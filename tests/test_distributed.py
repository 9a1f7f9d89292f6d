"""Several processes train as one does: here two, on CPUs, connected by gloo."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from one_of_several import exact, settings, text_settings
from safetensors.torch import load_file

from pipelines import TextToImagePipeline
from pipelines.runs.checkpoint import checkpoints
from pipelines.training.train import train
from pipelines.training.train_text import train_text
from unet_xattn import CrossAttentionUNet

HERE = Path(__file__).parent


def launch(count: int, *arguments: str, timeout: int = 300, **environment: str) -> subprocess.CompletedProcess:
    """Run `python ARGUMENTS` as `count` processes of one machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *arguments]
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths} | environment
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)


@pytest.fixture(scope="module")
def model(
    tiny_bilingual_pipe: TextToImagePipeline,
    make_unet: Callable[..., CrossAttentionUNet],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """A model with three channels in a group: with one channel in each, only rounding moves the biases before it."""
    unet = make_unet(block_out_channels=(24, 48))
    folder = tmp_path_factory.mktemp("model")
    pipe = tiny_bilingual_pipe
    TextToImagePipeline(pipe.tokenizer, pipe.text_encoder, unet, pipe.scheduler).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of one process in `one` and `one-text`, and of two in `several`, `shards` and `several-text`."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "pairs.tsv").write_text(
        "".join(f"{'so ' * (i % 5)}{i}\t{'so ' * (i % 3)}number {i}\n" for i in range(40))
    )
    with pytest.MonkeyPatch.context() as patch:
        exact(patch)
        AcceleratorState._reset_state()  # it keeps the precision of a process's first run
        train(settings(folder / "one", model))
        train_text(text_settings(folder / "pairs.tsv", folder / "one-text"))
        AcceleratorState._reset_state()
    done = launch(2, str(HERE / "one_of_several.py"), str(folder), model)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def reports(folder: Path) -> list[dict]:
    return [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(2)]


def assert_same_weights(folder: Path, expected: str, found: str, tolerance: float) -> None:
    """Weights, averages and moments are the same, except the keys' biases.

    These add the same to all scores of a query, which the softmax ignores, so only rounding errors move them.
    """
    for file in ("model", "ema", "optimizer"):
        wanted, got = (
            load_file(checkpoints(folder / run / "checkpoints")[0] / f"{file}.safetensors") for run in (expected, found)
        )
        assert got.keys() == wanted.keys()
        off = {name: (got[name] - wanted[name]).abs().max().item() for name in wanted if "to_k.bias" not in name}
        worst = max(off, key=lambda name: off[name])
        assert off[worst] <= tolerance, f"{worst} of {file}: {off[worst]}"


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_processes_leave_the_weights_of_one_though_they_were_stopped_on_the_way(folder: Path) -> None:
    assert_same_weights(folder, "one", "several", 1e-5)


def test_two_processes_with_half_of_each_weight_leave_the_weights_of_one(folder: Path, reports: list[dict]) -> None:
    assert_same_weights(folder, "one", "shards", 1e-5)
    assert sum(report["held"] for report in reports) == reports[0]["all"]
    assert all(report["held"] < 0.6 * report["all"] and report["moments sharded"] for report in reports)
    pipe = TextToImagePipeline.from_pretrained(folder / "shards")  # full weights again
    assert all(torch.isfinite(weight).all() for weight in pipe.unet.parameters())


def test_two_processes_leave_the_text_weights_of_one(folder: Path) -> None:
    assert_same_weights(folder, "one-text", "several-text", 1e-5)
    losses = [rows(folder / run / "validation.jsonl")[0] for run in ("one-text", "several-text")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_each_process_is_asked_for_its_own_half_of_every_batch_and_for_nothing_else(folder: Path) -> None:
    places = [set(map(int, (folder / f"places-{rank}.txt").read_text().split())) for rank in range(2)]
    for rank in range(2):
        assert all(place % 6 // 3 == rank for place in places[rank])
    assert places[0] | places[1] == set(range(24))


def test_the_average_is_the_same_on_every_process(reports: list[dict]) -> None:
    assert len(reports[0]["averages"]) == 3
    assert reports[0]["averages"] == reports[1]["averages"]


def test_a_signal_to_one_process_stops_all_after_the_same_step(reports: list[dict]) -> None:
    assert [report["stopped"].partition(",")[0] for report in reports] == ["stopped at step 2 of 4"] * 2


def test_what_is_logged_is_the_mean_over_all_processes_and_written_once(folder: Path) -> None:
    one, *others = (rows(folder / run / "log.jsonl") for run in ("one", "several", "shards"))
    assert one[0]["gradient norm"] > 1  # so that the gradients were clipped
    for log in others:
        assert len(log) == len(one)
        for name in ("loss", "token loss", "text loss", "gradient norm", "learning rate"):
            assert log[0][name] == pytest.approx(one[0][name], rel=1e-4), name
    wanted, *validations = (rows(folder / run / "validation.jsonl") for run in ("one", "several", "shards"))
    assert [validation == [pytest.approx(row, rel=1e-3) for row in wanted] for validation in validations] == [True] * 2
    for run in ("several", "shards"):
        assert [path.name for path in sorted((folder / run / "samples").iterdir())] == [
            "step-000004.png",
            "words-000004.png",
        ]


def test_a_batch_that_cannot_be_shared_is_refused_and_leaves_nothing(folder: Path, reports: list[dict]) -> None:
    says = "a batch of 5 cannot be shared among 2 processes: give a --batch-size that is a multiple of 2"
    assert [report["refused"] for report in reports] == [says] * 2
    assert not (folder / "refused").exists()
