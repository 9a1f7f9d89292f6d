"""Shapes: B batch, T tokens, h×w pixels."""

import json
import math
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from transformers import PreTrainedTokenizerFast

import pipelines.training.train
import pipelines.training.validate
from pipelines import TextToImagePipeline
from pipelines.components import to_tensor
from pipelines.data.batches import Batch, Collator
from pipelines.data.pictures import PictureExamples
from pipelines.data.scenes import SceneExamples
from pipelines.data.stream import seed_of
from pipelines.runs.checkpoint import checkpoints, last_state, save_checkpoint
from pipelines.runs.failures import DivergedError
from pipelines.runs.resume import check_unchanged
from pipelines.runs.signals import StoppedError
from pipelines.sources.check import check
from pipelines.sources.findings import DataError
from pipelines.training.objective import Losses, TextToImageModel
from pipelines.training.recipe import bf16_is_fast, power_function_ema, schedule
from pipelines.training.state import TrainState
from pipelines.training.train import TrainConfig, forward_backward, train
from pipelines.training.validate import LEVELS, draw_samples, sheet_of, validate
from unet_xattn import CrossAttentionUNet, Transformer, flow, grounding

pytestmark = pytest.mark.usefixtures("small_networks")

MakeFolder = Callable[..., Path]
CPU = torch.device("cpu")
CAPTIONS = ["a black night", "a dark wall", "Some fog.", "a grey cat"]


def settings(data: str | Path, out: Path, **changes: object) -> TrainConfig:
    """A run of four steps on tiny pictures, with a checkpoint after two."""
    defaults = {"steps": 4, "batch_size": 2, "size": 32, "warmup": 1, "every": 2}
    return TrainConfig(data=str(data), out=str(out), **(defaults | changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(small_networks: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainConfig]:
    """A run of four steps on a folder, uninterrupted."""
    import datasets

    folder = tmp_path_factory.mktemp("pictures")
    for i, _ in enumerate(CAPTIONS):
        Image.new("RGB", (32, 32), (60 * i, 60 * i, 60 * i)).save(folder / f"{i}.png")
    rows = [json.dumps({"file_name": f"{i}.png", "text": text}) for i, text in enumerate(CAPTIONS)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        datasets.disable_progress_bars()
        config = settings(folder, tmp_path_factory.mktemp("runs") / "finished")
        assert train(config) == Path(config.out)
        yield config


@pytest.fixture
def copied(finished: TrainConfig, tmp_path: Path) -> TrainConfig:
    """A copy of the finished run."""
    shutil.copytree(finished.out, tmp_path / "copied")
    return replace(finished, out=str(tmp_path / "copied"))


# Whole runs.


def test_a_run_saves_a_pipeline_samples_losses_and_checkpoints(finished: TrainConfig) -> None:
    out = Path(finished.out)
    pipe = TextToImagePipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a black night", num_inference_steps=1).images[0].size == (32, 32)
    assert [path.name for path in sorted((out / "samples").iterdir())] == [
        f"{kind}-00000{step}.png" for kind in ("step", "words") for step in (2, 4)
    ]
    with Image.open(out / "samples" / "step-000004.png") as sheet:
        assert sheet.size == (4 * 32, 32)
    lines = [json.loads(line) for line in (out / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert "agreement" not in lines[0]  # what its captions describe is unknown
    assert any((out / "logs").rglob("events.out.tfevents.*"))
    assert [path.name for path in checkpoints(out / "checkpoints")] == ["step-00000004", "step-00000002"]
    state = last_state(out / "checkpoints")
    assert (state["step"], state["seen"], state["processes"]) == (4, 8, 1)


def test_speed_and_memory_are_in_the_log_and_in_tensorboard_even_of_a_short_run(finished: TrainConfig) -> None:
    rows = [json.loads(line) for line in (Path(finished.out) / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 4]
    assert all(row["pictures/s"] > 0 and row["memory GiB"] > 0.1 for row in rows)
    assert rows[0]["seconds left"] > 0 == rows[1]["seconds left"]
    logged = EventAccumulator(str(next((Path(finished.out) / "logs").rglob("events.out.tfevents.*")).parent)).Reload()
    for name in ("pictures/s", "seconds left", "memory GiB"):
        assert [event.value for event in logged.Scalars(name)] == pytest.approx([row[name] for row in rows])


def test_without_tensorboard_only_its_logs_are_missing_and_a_message_says_so(tmp_path: Path) -> None:
    arguments = f"data='shapes', out={str(tmp_path / 'run')!r}, steps=1, batch_size=2, size=16"
    code = f"""
import sys
sys.modules["tensorboard"] = sys.modules["tensorboardX"] = None  # as if it were not installed
from pipelines.training.config import TrainConfig
from pipelines.training.train import train
train(TrainConfig({arguments}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no TensorBoard logs") == 1
    assert not (tmp_path / "run" / "logs").exists()
    assert (tmp_path / "run" / "log.jsonl").is_file() and (tmp_path / "run" / "model_index.json").is_file()


def test_the_pipeline_holds_the_averaged_weights(finished: TrainConfig) -> None:
    out = Path(finished.out)
    newest = checkpoints(out / "checkpoints")[0]
    averaged, last = (load_file(newest / f"{name}.safetensors") for name in ("ema", "model"))
    pipe = TextToImagePipeline.from_pretrained(out)
    for part in ("unet", "text_encoder"):
        for name, weight in getattr(pipe, part).state_dict().items():
            assert torch.equal(weight, averaged[f"module.{part}.{name}"]), name
    assert any(not torch.equal(last[name], averaged[f"module.{name}"]) for name in last)


class PowerCutError(Exception):
    """A power cut."""


def test_a_resumed_run_ends_bit_for_bit_like_one_that_was_never_stopped(
    finished: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = TrainState.save

    def save_and_stop(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        raise PowerCutError

    config = replace(finished, out=str(tmp_path / "run"))
    with monkeypatch.context() as patch, pytest.raises(PowerCutError):
        patch.setattr(TrainState, "save", save_and_stop)
        train(config)
    assert last_state(tmp_path / "run" / "checkpoints")["step"] == 2
    for scramble in (torch.manual_seed, np.random.seed, random.seed):  # whatever happens in between
        scramble(12345)
    # Only the folder is given: the run resumes with its own settings.
    assert train(TrainConfig(out=config.out), resume=True) == tmp_path / "run"

    assert_ended_alike(finished.out, config.out)


def test_a_run_that_a_signal_stops_saves_its_step_and_resumes_bit_for_bit(
    finished: TrainConfig, tmp_path: Path, stop_in_step: Callable[[int], None]
) -> None:
    config = replace(finished, out=str(tmp_path / "run"))
    stop_in_step(3)
    with pytest.raises(StoppedError, match="stopped at step 3 of 4, and saved"):
        train(config)
    assert last_state(tmp_path / "run" / "checkpoints")["step"] == 3
    train(TrainConfig(out=config.out), resume=True)
    assert_ended_alike(finished.out, config.out)


def assert_ended_alike(expected: str, found: str) -> None:
    """Two runs of four steps have the same weights and moments, bit for bit, and the same validation losses."""
    folders = [Path(folder) for folder in (expected, found)]
    for name in ("model", "ema", "optimizer"):
        wanted, got = (load_file(checkpoints(folder / "checkpoints")[0] / f"{name}.safetensors") for folder in folders)
        assert got.keys() == wanted.keys()
        assert [key for key in wanted if not torch.equal(got[key], wanted[key])] == [], name
    assert last_state(folders[1] / "checkpoints")["step"] == 4
    losses = [(folder / "validation.jsonl").read_text() for folder in folders]
    assert losses[0] == losses[1]


def test_a_run_is_a_function_of_its_settings_whatever_was_drawn_before(finished: TrainConfig, tmp_path: Path) -> None:
    torch.manual_seed(12345)
    train(replace(finished, out=str(tmp_path / "again")))
    assert_ended_alike(finished.out, str(tmp_path / "again"))
    train(replace(finished, out=str(tmp_path / "other"), seed=1, steps=1))
    first, other = (
        load_file(checkpoints(Path(out) / "checkpoints")[-1] / "model.safetensors")
        for out in (finished.out, tmp_path / "other")
    )
    assert not torch.allclose(first["text_encoder.embedding.weight"], other["text_encoder.embedding.weight"], atol=0.01)


def test_resuming_a_finished_run_leaves_its_weights_as_they_are(copied: TrainConfig) -> None:
    before = contents(Path(copied.out) / "checkpoints")
    train(TrainConfig(out=copied.out), resume=True)
    assert contents(Path(copied.out) / "checkpoints") == before


def test_a_run_on_scenes_reports_pointing_and_agreement(tmp_path: Path) -> None:
    train(settings("shapes", tmp_path / "run", steps=1))
    (report,) = map(json.loads, (tmp_path / "run" / "validation.jsonl").read_text().splitlines())
    assert 0 <= report["pointing"] <= 1
    assert (report["agreement"], report["judged"]) == (0, 16)  # after a single step


def test_a_saved_model_draws_stochastically_and_without_guidance(finished: TrainConfig, tmp_path: Path) -> None:
    """It can be guided after caption dropout, which pictures have and scenes do not."""
    scenes = train(settings("shapes", tmp_path / "run", steps=1))
    for run, guidable in ((scenes, False), (finished.out, True)):
        left = TextToImagePipeline.from_pretrained(run)
        assert left.scheduler.config.stochastic_sampling and left.config.guidance_scale == 1.0
        assert left.config.guidable == guidable


def test_agreement_is_the_share_of_samples_that_are_all_correct(
    tiny_pipe: TextToImagePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = SceneExamples(32, 0).validation(4)
    assert all(e.scene is not None and e.scene.caption == e.caption for e in examples)
    seen = iter([True, False, True, True])
    monkeypatch.setattr(pipelines.training.validate, "judge", lambda *_: SimpleNamespace(all_correct=next(seen)))
    assert draw_samples(tiny_pipe, examples, tmp_path, 7) == {"agreement": 0.75, "judged": 4}
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000007.png", "words-000007.png"]
    assert draw_samples(tiny_pipe, [replace(e, scene=None) for e in examples], tmp_path, 8) == {}


def test_a_sheet_has_every_picture_in_its_place() -> None:
    pictures = np.arange(1, 11, dtype=np.uint8)[:, None, None, None] * np.ones((10, 2, 2, 3), np.uint8)
    sheet = np.asarray(sheet_of(pictures))
    assert sheet.shape == (4, 16, 3)
    assert sheet[::2, ::2, 0].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 0, 0, 0, 0, 0, 0]]


def test_captions_longer_than_the_model_reads_do_not_fail_a_run_but_are_told(
    make_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder("pictures", ["a very long story " * 30, "a cat"])
    train(settings(folder, tmp_path / "run", steps=1))
    assert (tmp_path / "run" / "model_index.json").is_file()
    told = "warning: 1 captions are longer than 64 tokens and not read to their end: a very long story"
    assert told in capsys.readouterr().err


# Resuming with changes.


def test_steps_and_batch_size_can_change_on_resume_and_changes_are_printed(
    copied: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"steps": 6, "batch_size": 3, "every": 2, "data": copied.data}
    train(TrainConfig(out=copied.out), resume=True, changes=changes)
    printed = capsys.readouterr().out
    assert "from step 4 on: steps 6 instead of 4, and the learning rate falls towards the new end" in printed
    assert "from step 4 on: batch size 3 instead of 2" in printed
    assert "every 2" not in printed and "data" not in printed  # these have not changed
    state = last_state(Path(copied.out) / "checkpoints")
    assert (state["step"], state["seen"], state["config"]["batch_size"]) == (6, 4 * 2 + 2 * 3, 3)  # none seen twice


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"^--seed \(0\) cannot change on resume"),
        ({"size": 48, "begin_from": "shapes"}, r"^--size \(32\) and --from \(''\) cannot change"),
        ({"distill": "shapes"}, r"^--distill \(''\) cannot change"),
        ({"few_steps": 2}, r"^--few-steps \(4\) cannot change"),
        ({"text_encoder": "t5", "vae": "sd"}, r"^--text-encoder \(''\) and --vae \(''\) cannot change"),
        ({"steps": 3}, "has already taken 4 steps: it cannot end after 3"),
        ({"batch_size": 1}, "--batch-size must be 2 or more"),
    ],
)
def test_a_change_that_is_not_possible_is_refused_and_nothing_is_touched(
    copied: TrainConfig, changes: dict, message: str
) -> None:
    before = contents(Path(copied.out) / "checkpoints")
    with pytest.raises(ValueError, match=message):
        train(TrainConfig(out=copied.out), resume=True, changes=changes)
    assert contents(Path(copied.out) / "checkpoints") == before


def test_changes_without_resume_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only a resumed run can change its settings: add --resume"):
        train(settings("shapes", tmp_path / "run"), allow_changes=True)


def test_changed_data_is_refused_unless_allowed(
    copied: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(copied.data, data)
    train(TrainConfig(out=copied.out), resume=True, changes={"data": str(data)})  # it has only moved
    Image.new("RGB", (32, 32), "red").save(data / "3.png")
    longer = {"data": str(data), "steps": 5}
    with pytest.raises(ValueError, match=r"would resume with data \w+ instead of \w+: .*--allow-changes") as error:
        train(TrainConfig(out=copied.out), resume=True, changes=longer)
    assert "\n" not in str(error.value)
    assert last_state(Path(copied.out) / "checkpoints")["step"] == 4
    capsys.readouterr()
    train(TrainConfig(out=copied.out), resume=True, changes=longer, allow_changes=True)
    assert "from step 4 on: data" in capsys.readouterr().out
    assert last_state(Path(copied.out) / "checkpoints")["step"] == 5


def test_another_number_of_processes_is_refused_unless_allowed() -> None:
    state = {"step": 3, "processes": 2, "data": "same"}
    now = {"data": "same", "processes": 1}
    with pytest.raises(ValueError, match="would resume with processes 1 instead of 2"):
        check_unchanged(state, now, allowed=False)
    assert check_unchanged(state, now, allowed=True) == ["from step 3 on: processes 1 instead of 2"]
    assert check_unchanged(state, now | {"processes": 2}, allowed=False) == []


def test_a_damaged_checkpoint_is_reported_and_an_older_one_leads_to_the_same_end(
    copied: TrainConfig, finished: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    newest, older = checkpoints(Path(copied.out) / "checkpoints")
    content = bytearray((newest / "ema.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "ema.safetensors").write_bytes(content)
    train(TrainConfig(out=copied.out), resume=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert lines == [f"{newest} is damaged, the content of its ema.safetensors has changed: resuming from {older.name}"]
    assert_ended_alike(finished.out, copied.out)


def test_a_folder_has_the_same_fingerprint_wherever_it_is_and_other_folders_have_others(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder("a", ["one", "two"])
    print_of = PictureExamples(check(folder, progress=False).rows, [(32, 32)], 0).fingerprint()
    shutil.copytree(folder, tmp_path / "b")
    assert PictureExamples(check(tmp_path / "b", progress=False).rows, [(16, 16)], 1).fingerprint() == print_of
    others = [make_folder("c", ["one", "three"]), make_folder("d", ["one", "two", "three"])]
    Image.new("RGB", (32, 32), "red").save(tmp_path / "b" / "1.png")
    prints = [
        PictureExamples(check(each, progress=False).rows, [(32, 32)], 0).fingerprint()
        for each in (*others, tmp_path / "b")
    ]
    assert len({print_of, *prints}) == 4
    assert SceneExamples(32, 0).fingerprint() == SceneExamples(32, 0).fingerprint()
    assert SceneExamples(32, 0).fingerprint() != SceneExamples(32, 1).fingerprint()


# Gradient accumulation.


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_batch_in_parts_has_the_losses_and_gradients_of_the_full_batch(
    model: TextToImageModel, batch: Batch, parts: int
) -> None:
    fit(model, batch, steps=2)
    batch.target_mask[5:] = False  # so that the parts have unequal numbers of tokens
    accelerator = Accelerator(mixed_precision="bf16" if bf16_is_fast() else "no")  # as other tests do
    found = []
    for config in (TrainConfig(batch_size=8), TrainConfig(batch_size=8, accumulate=parts)):
        model.zero_grad()
        losses = forward_backward(model, batch, None, config, accelerator)
        found.append(
            (losses._asdict(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        )
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-5)


# Errors that end a run early.


def test_a_loss_that_is_not_finite_stops_the_run_before_it_changes_anything(
    copied: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(Path(copied.out) / "checkpoints")
    forward = TextToImageModel.forward
    steps = iter(range(9))

    def spoilt(self: TextToImageModel, *arguments: Any) -> Losses:
        losses = forward(self, *arguments)
        return losses._replace(flow=losses.flow * float("nan")) if next(steps) == 1 else losses

    with monkeypatch.context() as patch, pytest.raises(DivergedError) as error:
        patch.setattr(TextToImageModel, "forward", spoilt)
        changes = {"steps": 8, "every": 8, "milestone": 5}
        train(TrainConfig(out=copied.out), resume=True, changes=changes)
    said = str(error.value)
    examples = PictureExamples(check(copied.data, progress=False).rows, [(32, 32)], 0)
    assert said.startswith("step 6 was not taken: its gradient norm is nan (losses: flow nan, tokens 0, text 0), on ")
    assert examples.name(range(10, 12)) in said and ".png, " in said and "\n" not in said
    after = contents(Path(copied.out) / "checkpoints")
    assert {name: after[name] for name in before if "step-00000004" in name}.items() <= before.items()
    assert [path.name[-1] for path in checkpoints(Path(copied.out) / "checkpoints")] == ["5", "4"]
    assert all(
        torch.isfinite(t).all()
        for t in load_file(checkpoints(Path(copied.out) / "checkpoints")[0] / "model.safetensors").values()
    )


def test_an_infinite_gradient_of_a_finite_loss_stops_it_too(
    model: TextToImageModel, batch: Batch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forward = TextToImageModel.forward

    def steep(self: TextToImageModel, batch: Batch, *rest: Any) -> Losses:
        losses = forward(self, batch, *rest)
        return losses._replace(flow=losses.flow + (losses.flow - losses.flow.detach()).abs().sqrt())

    monkeypatch.setattr(TextToImageModel, "forward", steep)
    with pytest.raises(DivergedError, match=r"step 1 was not taken.*flow \d.*the scenes 0 to 1 of seed 0"):
        train(settings("shapes", tmp_path / "run"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
        "real",
    ],
    ids=["gpu", "cpu", "python", "real"],
)
def test_out_of_memory_names_the_options_to_lower_and_the_saved_step(
    copied: TrainConfig, monkeypatch: pytest.MonkeyPatch, error: Exception | str
) -> None:
    def fail(*_: object, **__: object) -> None:
        if isinstance(error, Exception):
            raise error
        torch.empty(2**60)

    monkeypatch.setattr(TextToImageModel, "forward", fail)
    with pytest.raises(
        ValueError, match=r"^out of memory: lower --batch-size or --size, .*--accumulate; .* step 4 sav"
    ):
        train(TrainConfig(out=copied.out), resume=True, changes={"steps": 5})


def test_other_errors_of_torch_are_not_taken_for_a_lack_of_memory(
    copied: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(TextToImageModel, "forward", fail)
    with pytest.raises(RuntimeError, match=r"^shapes cannot be multiplied$"):
        train(TrainConfig(out=copied.out), resume=True, changes={"steps": 5})


# Refusals, before anything is written.


def test_a_folder_with_something_in_it_is_refused_and_untouched(copied: TrainConfig) -> None:
    before = contents(Path(copied.out))
    with pytest.raises(ValueError, match="is not empty: choose another --out, or --resume"):
        train(copied)
    assert contents(Path(copied.out)) == before


def test_a_run_of_another_version_is_not_resumed(tmp_path: Path) -> None:
    settings = asdict(TrainConfig(out=str(tmp_path / "run"))) | {"momentum": 0.9}
    del settings["warmup"]
    net = nn.Linear(1, 1)
    state = {"step": 3, "config": settings}
    save_checkpoint(tmp_path / "run" / "checkpoints", net, net, torch.optim.SGD(net.parameters()), state)
    with pytest.raises(ValueError, match="started by another version, which differs in momentum, warmup"):
        train(TrainConfig(out=str(tmp_path / "run")), resume=True)


def test_without_a_run_there_is_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to resume"):
        train(TrainConfig(out=str(tmp_path / "run")), resume=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("data", ["no-such-data", "EMPTY"])
def test_data_that_cannot_be_used_leave_no_trace_of_a_run(tmp_path: Path, data: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        train(settings(tmp_path / "empty" if data == "EMPTY" else data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_size_the_model_cannot_draw_leaves_no_trace_of_a_run(finished: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiples of 16 pixels, got 40×40"):
        train(replace(finished, size=40, out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "setting",
    [
        {"steps": 0},
        {"batch_size": 1},
        {"seed": -1},
        {"seed": 2**31},
        {"size": 8},
        {"every": 0},
        {"warmup": -1},
        {"ema_sigma": 0.0},
        {"ema_sigma": 0.3},
        {"time_shift": 0.0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"mask_weight": -0.1},
        {"caption_dropout": 1.5},
    ],
    ids=str,
)
def test_a_setting_out_of_its_range_is_refused_by_name(setting: dict) -> None:
    (name,) = setting
    has_option = name not in ("warmup", "ema_sigma", "time_shift")
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} " if has_option else name):
        TrainConfig(**setting)


# Learning.


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast, make_unet: Callable[..., CrossAttentionUNet]) -> TextToImageModel:
    """A tiny version of the model that `train` trains."""
    text_encoder = Transformer(len(tokenizer), width=32, heads=2, encoder_layers=1, decoder_layers=1)
    return TextToImageModel(text_encoder, make_unet(awake=False))


@pytest.fixture
def collator(tokenizer: PreTrainedTokenizerFast) -> Collator:
    return Collator(tokenizer, seed=0, caption_dropout=0.0, cell=4)


@pytest.fixture
def batch(collator: Collator) -> Batch:
    examples = SceneExamples(32, 0)
    return collator([(place, examples.example(place)) for place in range(8)])


def inside(model: TextToImageModel, batch: Batch) -> float:
    """Share of the words' attention inside their masks, a mean over layers."""
    shares = []

    def record(layer: str, weights: Tensor, grid: tuple[int, int]) -> None:
        maps = weights.mean(dim=1).transpose(1, 2).unflatten(-1, grid)
        known = batch.masks.flatten(2).amax(dim=-1) > 0
        shares.append(grounding.mass_inside(maps, F.adaptive_avg_pool2d(batch.masks, grid))[known].mean())

    with torch.no_grad():
        memory = model.text_encoder.encode(batch.ids, batch.token_mask)
        noisy = flow.interpolate(batch.pictures, batch.noise, batch.times)
        model.unet(noisy, batch.times * flow.TRAIN_TIMESTEPS, memory, batch.token_mask, record=record)
    return float(torch.stack(shares).mean())


def fit(
    model: TextToImageModel, batch: Batch, steps: int, mask_weight: float = 0.0, text_weight: float = 0.0
) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    history = []
    for _ in range(steps):
        losses = model(batch)
        optimizer.zero_grad()
        (losses.flow + mask_weight * losses.tokens + text_weight * losses.text).backward()
        optimizer.step()
        history.append(losses.flow.item())
    return history


def test_a_model_learns_its_training_pictures(model: TextToImageModel, batch: Batch) -> None:
    history = fit(model, batch, steps=40)
    # At the start it predicts an empty picture, and its error is the picture itself.
    noisy = flow.interpolate(batch.pictures, batch.noise, batch.times)
    empty = flow.velocity_from(torch.zeros_like(noisy), noisy, batch.times)
    expected = flow.loss(empty, flow.velocity(batch.pictures, batch.noise), batch.times).mean().item()
    assert history[0] == pytest.approx(expected, rel=1e-4)
    assert history[-1] < 0.7 * history[0], history[-1] / history[0]


def test_mask_supervision_moves_attention_into_the_masks(
    model: TextToImageModel, batch: Batch, make_unet: Callable[..., CrossAttentionUNet]
) -> None:
    start = {name: value.clone() for name, value in model.state_dict().items()}
    before = inside(model, batch)
    fit(model, batch, steps=30)
    without = inside(model, batch)
    model.load_state_dict(start)
    fit(model, batch, steps=30, mask_weight=1.0)
    assert inside(model, batch) > max(before, without) + 0.1


def test_the_token_loss_needs_masks_and_changes_no_other_loss(model: TextToImageModel, batch: Batch) -> None:
    fit(model, batch, steps=3)
    held, free = model(batch), model(batch, use_masks=False)
    assert 0 < held.tokens.item() <= 1 and free.tokens.item() == 0
    torch.testing.assert_close((held.flow, held.text), (free.flow, free.text), rtol=1e-4, atol=1e-5)


def test_the_memory_learns_from_both_its_readers(model: TextToImageModel, batch: Batch) -> None:
    fit(model, batch, steps=3)  # at the start the UNet's cross-attention adds nothing
    for reader in ("flow", "text"):
        model.zero_grad()
        getattr(model(batch), reader).backward()
        assert model.text_encoder.embedding.weight.grad.abs().max() > 0
        assert (model.unet.conv_in.weight.grad is None) == (reader == "text")


def test_a_model_learns_to_translate(model: TextToImageModel, batch: Batch) -> None:
    before = model(batch).text.item()
    assert before == pytest.approx(math.log(model.text_encoder.config.vocab_size), rel=0.2)  # a uniform guess
    fit(model, batch, steps=40, text_weight=1.0)
    assert model(batch).text.item() < 0.6 * before


def test_a_caption_without_a_translation_costs_nothing(model: TextToImageModel, batch: Batch) -> None:
    some = replace(batch, target_mask=batch.target_mask.clone())
    some.target_mask[2:] = False
    first = Batch(**{name: value[:2] for name, value in vars(batch).items()})
    torch.testing.assert_close(model(some).text, model(first).text)
    none = replace(batch, target_mask=torch.zeros_like(batch.target_mask))
    assert model(none).text.item() == 0


def test_the_text_loss_is_the_cross_entropy_of_the_next_tokens(model: TextToImageModel, batch: Batch) -> None:
    memory = model.text_encoder.encode(batch.ids, batch.token_mask)
    logits = model.text_encoder.decode(batch.target_ids, memory, batch.token_mask)
    labels = batch.target_ids.masked_fill(~batch.target_mask, -100)
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=0.1)
    torch.testing.assert_close(model(batch).text, expected)


def test_a_real_run_in_an_empty_folder_learns(finished: TrainConfig, tmp_path: Path) -> None:
    train(replace(finished, steps=20, every=20, learning_rate=3e-4, out=str(tmp_path)))
    first, last = (
        json.loads((Path(folder) / "validation.jsonl").read_text().splitlines()[0])
        for folder in (finished.out, tmp_path)
    )
    for level in LEVELS:
        assert last[f"loss {level}"] < first[f"loss {level}"]


# The average of the weights and the learning rate.


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.2, 0.25])
def test_the_averaging_window_has_the_given_width(sigma: float) -> None:
    steps = 1000
    model = nn.ParameterList([torch.zeros(2, dtype=torch.float64)])
    average = AveragedModel(model, multi_avg_fn=power_function_ema(sigma))
    for step in range(1, steps + 1):
        t = step / steps
        model[0].data.copy_(torch.tensor([t, t * t]))
        average.update_parameters(model)
    mean, mean_square = average.module[0].tolist()  # of time, under its weights in the average
    assert (mean_square - mean**2) ** 0.5 == pytest.approx(sigma, rel=0.01)
    assert mean < 1


def test_the_first_average_is_the_weights_themselves() -> None:
    model = nn.Linear(3, 3)
    average = AveragedModel(nn.Linear(3, 3), multi_avg_fn=power_function_ema(0.1))
    average.update_parameters(model)
    assert torch.equal(average.module.weight, model.weight)


def test_the_learning_rate_rises_stays_and_falls_to_zero() -> None:
    config = TrainConfig(steps=900, warmup=100)
    rates = [schedule(step, config.steps, config.warmup) for step in range(900)]
    assert rates[:100] == sorted(rates[:100]) and 0 < rates[0] <= 0.01
    assert rates[99:600] == [1.0] * 501
    assert rates[600:] == sorted(rates[600:], reverse=True) and 0 < rates[-1] < 0.01


def test_the_default_learning_rate_is_lower_from_trained_weights() -> None:
    rates = [TrainConfig(**start).learning_rate for start in ({}, {"begin_from": "shapes"}, {"distill": "shapes"})]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == 3
    assert TrainConfig(distill="shapes", learning_rate=0.1).learning_rate == 0.1


def test_caption_dropout_is_on_only_where_the_model_may_be_guided() -> None:
    unguided = {}, {"begin_from": "shapes"}, {"distill": "shapes"}, {"distill": "shapes", "data": "pictures"}
    assert all(TrainConfig(**start).caption_dropout == 0 for start in unguided)
    guided = {"data": "pictures"}, {"data": "pictures", "begin_from": "shapes"}
    assert all(TrainConfig(**start).caption_dropout == 0.1 for start in guided)
    assert TrainConfig(caption_dropout=0.3).caption_dropout == 0.3


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 200), (5, 200), (3, 1)])
def test_short_runs_learn_at_every_step(steps: int, warmup: int) -> None:
    config = TrainConfig(steps=steps, warmup=warmup)
    assert all(0 < schedule(step, config.steps, config.warmup) <= 1 for step in range(steps))


# Validation.


def test_validation_reports_every_level_with_right_and_with_shuffled_captions(
    model: TextToImageModel, collator: Collator
) -> None:
    report = validate(model, collator, SceneExamples(32, 0).validation(6), CPU)
    names = {f"loss {level}{shuffled}" for level in LEVELS for shuffled in ("", " shuffled")}
    assert report.keys() == names | {"pointing", "iou", "text loss"}
    # Untrained, it predicts an empty picture for any caption, and its error is the picture itself.
    pictures = to_tensor(np.stack([e.picture for e in SceneExamples(32, 0).validation(6)]))
    for level in LEVELS:
        expected = pictures.square().mean().item() / max(level, flow.LEAST_TIME) ** 2
        assert report[f"loss {level}"] == report[f"loss {level} shuffled"] == pytest.approx(expected, rel=1e-3)


def test_validation_is_the_mean_of_what_each_picture_gives_alone(model: TextToImageModel, collator: Collator) -> None:
    torch.manual_seed(0)
    text = Transformer(**{**model.text_encoder.config, "dropout": 0.3})  # type: ignore[union-attr]
    unet = CrossAttentionUNet(**{**model.unet.config, "dropout": 0.3})
    for parameter in unet.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))  # it would predict an empty picture
    model, examples = TextToImageModel(text, unet), SceneExamples(32, 0).validation(4)
    report = validate(model, collator, examples, CPU)
    model.eval()  # without dropout
    pictures = to_tensor(np.stack([e.picture for e in examples]))
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(seed_of(0)))  # of the first picture
    inside, overlaps = [], []
    for level in LEVELS:
        for name, ahead in (("", 0), (" shuffled", 1)):
            errors = []
            for i, example in enumerate(examples):
                ids, mask, masks = collator.read([examples[(i + ahead) % 4].caption], [example.regions], (32, 32))
                maps = []

                def note(layer: str, weights: Tensor, grid: tuple[int, int], maps: list[Tensor] = maps) -> None:
                    of_tokens = weights[0].mean(dim=0).T.unflatten(1, grid)
                    maps.append(F.interpolate(of_tokens[None], (8, 8), mode="bilinear")[0])

                noisy = (1 - level) * pictures[i] + level * noise[i]
                with torch.no_grad():
                    time = torch.tensor([1000.0 * level])
                    velocity = unet(noisy[None], time, text.encode(ids, mask), mask, record=note).sample[0]
                error = (noise[i] - pictures[i] - velocity).square().mean()
                errors.append(error * min(1, level / flow.LEAST_TIME) ** 2)
                for heat, true in zip(torch.stack(maps).mean(dim=0), masks[0] >= 0.5, strict=True):
                    if level == 0.3 and not ahead and true.any():
                        inside.append(bool(true.flatten()[heat.argmax()]))
                        seen = heat >= heat.max() / 2
                        overlaps.append(float((seen & true).sum() / (seen | true).sum()))
            assert report[f"loss {level}{name}"] == pytest.approx(float(torch.stack(errors).mean()), rel=1e-4)
    assert 0 < sum(inside) < len(inside)
    assert report["pointing"] == pytest.approx(np.mean(inside)) and report["iou"] == pytest.approx(np.mean(overlaps))


def test_the_loss_is_higher_with_shuffled_captions_once_the_text_is_read(
    model: TextToImageModel, collator: Collator
) -> None:
    examples = SceneExamples(32, 0).validation(6)
    for i in range(6):  # the same pictures under other noise
        fit(model, collator([(6 * i + j, example) for j, example in enumerate(examples)]), steps=6)
    report = validate(model, collator, examples, CPU)
    for level in (0.7, 0.9):
        assert report[f"loss {level} shuffled"] > report[f"loss {level}"]


def test_validation_repeats_exactly_and_changes_nothing(
    model: TextToImageModel, collator: Collator, batch: Batch
) -> None:
    fit(model, batch, steps=3, mask_weight=0.0)
    examples = SceneExamples(32, 0).validation(5)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    model.train()
    assert validate(model, collator, examples, CPU) == validate(model, collator, examples, CPU)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_pointing_is_reported_only_where_the_data_has_masks(model: TextToImageModel, collator: Collator) -> None:
    examples = [replace(example, regions=()) for example in SceneExamples(32, 0).validation(3)]
    assert "pointing" not in validate(model, collator, examples, CPU)


def test_a_run_initialises_from_a_models_weights_and_vocabulary(finished: TrainConfig, tmp_path: Path) -> None:
    config = replace(finished, out=str(tmp_path / "further"), begin_from=finished.out, steps=1, learning_rate=1e-9)
    train(config)
    before, after = (TextToImagePipeline.from_pretrained(out) for out in (finished.out, config.out))
    assert after.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    for part in ("unet", "text_encoder"):
        theirs = getattr(after, part).state_dict()
        for name, weight in getattr(before, part).state_dict().items():
            assert torch.allclose(theirs[name], weight, atol=1e-6), name


def test_to_initialise_from_a_missing_model_is_refused_and_nothing_is_written(
    finished: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no-such-model"):
        train(replace(finished, out=str(tmp_path / "further"), begin_from="no-such-model"))
    assert not (tmp_path / "further").exists()
