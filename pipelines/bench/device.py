"""One report on an accelerator: its training and sampling rates as shares of its peak, and the time to a good model.

Rates are those of compiled networks, in bf16 where that is fast. The time to a good model is that of `train`, which
does not compile.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from pipelines.bench.speed import forward_operations, product_seconds, seconds
from pipelines.data.batches import Batch, Collator
from pipelines.data.scenes import SceneExamples
from pipelines.evaluation.agreement import evaluate
from pipelines.runs.folder import LOG
from pipelines.runs.machine import machine
from pipelines.runs.rows import read_rows
from pipelines.text_to_image import TextToImagePipeline
from pipelines.tokenizer import train_tokenizer
from pipelines.training.objective import TextToImageModel
from pipelines.training.recipe import attention_kernel, bf16_is_fast, muon
from pipelines.training.train import TrainConfig, train
from unet_xattn import CrossAttentionUNet, Transformer, flow

WIDTHS: dict[str, tuple[tuple[int, ...], int]] = {
    "as bundled": ((48, 96, 160, 160), 1024),
    "wide": ((256, 512, 768, 768), 256),
}
"""Name -> channels of the UNet's levels, and batch size. The wide one keeps a large GPU busy."""

STEPS = (1000, 2000, 4000)
"""Numbers of training steps to try, the smallest first, until a model obeys."""

OBEYS = 0.95
"""The share of fully correct pictures, over both splits, at which a model obeys its prompts."""

BATCH_SIZE = 256
"""The batch size of these trainings."""


def bench_device(
    device: str | torch.device,
    widths: dict[str, tuple[tuple[int, ...], int]] = WIDTHS,
    steps: Sequence[int] = STEPS,
    batch_size: int = BATCH_SIZE,
    prompts: int = 50,
    size: int = 64,
) -> dict[str, Any]:
    """The rates of training and sampling at each width, also as shares of the peak, and the minutes to `OBEYS`.

    The peak is the rate of products of large matrices on the same machine in the same number format.

    Args:
        prompts: number of prompts of each kind and split to judge a model by.
        widths, steps, batch_size, size: smaller in tests.
    """
    device = torch.device(device)
    dtype = torch.bfloat16 if bf16_is_fast() else torch.float32
    side = 8192 if device.type != "cpu" else 1024
    rate = 2 * side**3 / product_seconds(device, dtype, side)
    report: dict[str, Any] = {"machine": machine(device), "matrix-product TFLOP/s": rate / 1e12, "bf16": bf16_is_fast()}
    for name, (channels, count) in widths.items():
        report[name] = rates(channels, count, size, device, rate)
    report["trainings"] = []
    for length in steps:
        found = minutes_to_obey(length, batch_size, prompts, size, device)
        report["trainings"].append(found)
        if found["all correct"] >= OBEYS:
            report["minutes to 95 %"] = found["minutes"]
            break
    return report


def rates(channels: tuple[int, ...], count: int, size: int, device: torch.device, rate: float) -> dict[str, Any]:
    """Pictures per second, and share of `rate` (operations per second), of a training step and of 20 sampling steps."""
    examples = SceneExamples(size, seed=0)
    tokenizer = train_tokenizer(examples.captions())
    few = Collator(tokenizer, 0, 0.1, cell=4)([(i, examples.example(i)) for i in range(16)])
    batch = Batch(*(t.repeat(-(-count // 16), *[1] * (t.dim() - 1))[:count].to(device) for t in vars(few).values()))
    unet = CrossAttentionUNet(size, block_out_channels=channels).to(device, memory_format=torch.channels_last)
    model = TextToImageModel(Transformer(len(tokenizer)).to(device), unet)
    optimizer = muon(model, 1e-4, 0.01)
    compiled = torch.compile(model)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_fast()), attention_kernel(device.type):
            losses = compiled(batch, False)
        losses.flow.backward()
        optimizer.step()
        optimizer.zero_grad()

    drawing = torch.compile(unet)
    noisy = batch.noise.to(memory_format=torch.channels_last)
    times = torch.full((len(batch.times),), float(flow.TRAIN_TIMESTEPS), device=device)

    @torch.no_grad()
    def sample() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_fast()):
            memory = model.memory(batch)
            x: Tensor = noisy
            for i in range(20):
                x = x - drawing(x, times * (1 - i / 20), memory, batch.token_mask).sample / 20

    operations = forward_operations(unet, batch)
    training, sampling = timed(step, device), timed(sample, device)
    return {
        "channels": channels,
        "parameters": sum(p.numel() for p in unet.parameters()),
        "batch": count,
        "GFLOP a picture, forward": operations / count / 1e9,
        "training pictures/s": count / training,
        "training, share of peak": 3 * operations / training / rate,
        "sampling pictures/s, 20 steps": count / sampling,
        "sampling, share of peak": 20 * operations / sampling / rate,
    }


def timed(call: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    """The median time of a call in seconds, after three calls that compile it and warm it up."""
    for _ in range(3):
        call()
    return median(seconds(call, device) for _ in range(repeats))


def minutes_to_obey(steps: int, batch_size: int, prompts: int, size: int, device: torch.device) -> dict[str, Any]:
    """Train a new model and judge its pictures: the minutes of training, without judging, and the share correct."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        train(TrainConfig(out=str(out), steps=steps, batch_size=batch_size, size=size, every=steps))
        spent = read_rows(out / LOG)[-1]["seconds"]
        pipe = TextToImagePipeline.from_pretrained(out).to(device)
        pipe.set_progress_bar_config(disable=True)
        found = evaluate(pipe, prompts, guidance_scale=1.0)
    right = [found[split]["model"]["all_correct"] for split in ("seen", "held_out")]
    share = sum(entry["k"] for entry in right) / sum(entry["n"] for entry in right)
    return {"steps": steps, "batch": batch_size, "minutes": spent / 60, "all correct": share}
