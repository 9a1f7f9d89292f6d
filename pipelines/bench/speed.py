"""The speed of training and sampling, as ratios to what the same machine can do, measured in one run.

Seconds on a shared machine say little. So they are compared with the rate of its matrix products, measured in between.
"""

import inspect
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from pipelines.any_pipeline import open_pipeline
from pipelines.data.batches import Batch, Collator
from pipelines.data.scenes import SceneExamples
from pipelines.edits import replace
from pipelines.runs.machine import machine
from pipelines.text_to_image import TextToImagePipeline
from pipelines.tokenizer import train_tokenizer
from pipelines.tracing.capture import trace
from pipelines.training.objective import TextToImageModel
from pipelines.training.recipe import attention_kernel, bf16_is_fast
from unet_xattn import CrossAttentionUNet, Transformer, flow

PROMPT = "a red circle left of a blue square"
GUIDED: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 3.0, "negative_prompt": "a green triangle"}
"""The settings for every model. The negative prompt is not empty, because some models do not know the empty one."""


def bench_train(device: str | torch.device = "cpu", batch_size: int = 64, repeats: int = 7) -> dict:
    """One training step of our UNet, and of diffusers' `UNet2DConditionModel` with about as many parameters.

    Both get the same 64×64 pictures, memory, targets, optimizer (AdamW) and number format. Both attend on grids of at
    most 16 positions a side, because theirs has self-attention wherever it has cross-attention, which would take
    minutes at 64×64. The ratio to the matrix-product rate, in the same format, counts the operations of three forward
    passes for a step: one forward, two backward.
    """
    device = torch.device(device)
    examples = SceneExamples(64, seed=0)
    tokenizer = train_tokenizer(examples.captions())
    batch = Collator(tokenizer, 0, 0.1, cell=4)([(i, examples.example(i)) for i in range(batch_size)]).to(device)
    ours = CrossAttentionUNet()
    theirs = UNet2DConditionModel(
        sample_size=64,
        in_channels=3,
        out_channels=3,
        block_out_channels=(48, 80, 112, 112),
        down_block_types=("DownBlock2D",) * 2 + ("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    models = {"ours": ours, "diffusers UNet2DConditionModel": theirs}
    steps = {name: _step(unet, len(tokenizer), batch, device) for name, unet in models.items()}
    for step in steps.values():
        step()
    rounds = []
    for _ in range(repeats):  # in turn, so that all see the same drift of the machine
        rounds.append({name: seconds(step, device) for name, step in steps.items()})
        rounds[-1]["matrix product"] = product_seconds(device, torch.bfloat16 if bf16_is_fast() else torch.float32)
        rounds[-1]["fp32 matrix product"] = product_seconds(device, torch.float32)
    rate, fp32 = (2 * 2048**3 / statistics.median(r[f"{name}matrix product"] for r in rounds) for name in ("", "fp32 "))
    report: dict = {"machine": machine(device), "batch size": batch_size, "bf16": bf16_is_fast()}
    report |= {"matrix-product GFLOP/s": rate / 1e9, "fp32 matrix-product GFLOP/s": fp32 / 1e9}
    for name, unet in models.items():
        median = statistics.median(r[name] for r in rounds)
        operations = 3 * forward_operations(unet, batch)
        report[name] = {
            "parameters": sum(p.numel() for p in unet.parameters()),
            "GFLOP per picture, forward": operations / 3 / batch_size / 1e9,
            "pictures/s": batch_size / median,
            "ratio to the matrix-product rate": operations / median / rate,
            "ratio to the fp32 matrix-product rate": operations / median / fp32,
        }
    report["times faster than diffusers' step"] = statistics.median(
        r["diffusers UNet2DConditionModel"] / r["ours"] for r in rounds
    )
    return report


def bench_sample(pipe: TextToImagePipeline, device: str | torch.device = "cpu", repeats: int = 7) -> dict:
    """Seconds per picture in 20 guided steps, alone and in a batch of 16."""
    pipe = pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    calls = {count: partial(pipe, [PROMPT] * count, **GUIDED) for count in (1, 16)}
    medians = {}
    for count, call in calls.items():
        call()
        medians[count] = statistics.median(seconds(call, device) for _ in range(repeats)) / count
    return {
        "machine": machine(device),
        "steps": GUIDED["num_inference_steps"],
        "seconds per picture, alone": medians[1],
        "seconds per picture, in a batch of 16": medians[16],
    }


def bench_capture(model: str, device: str | torch.device = "cpu", repeats: int = 15) -> dict:
    """The cost of recording attention while one picture is drawn in 20 steps, guided where the pipeline can be.

    It may be any pipeline that `trace` records. Measured are time and peak memory; of our own pipeline also those of an
    edit, "edited", which draws two pictures.

    Times are taken in turn in this process. Each peak is that of a separate process: on a CPU its resident memory with
    interpreter and libraries, on an accelerator what torch has allocated there.
    """
    device = torch.device(device)
    pipe = open_pipeline(model, device)
    ways = ("none", "mean", "full", *(("edited",) if isinstance(pipe, TextToImagePipeline) else ()))
    for keep in ways:
        _draw(pipe, keep)
    rounds = [{keep: seconds(partial(_draw, pipe, keep), device) for keep in ways} for _ in range(repeats)]
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for keep in ways:
        with ProcessPoolExecutor(1, context) as pool:  # a process each, because a peak never goes down
            peaks[keep] = pool.submit(_peak_memory, model, keep, device).result()
    report: dict = {"machine": machine(device), "steps": GUIDED["num_inference_steps"], "rounds": repeats}
    report["seconds per picture, not recorded"] = statistics.median(r["none"] for r in rounds)
    report["MiB at the peak, not recorded"] = peaks["none"] / 2**20
    for keep in ways[1:]:
        ratios = sorted(r[keep] / r["none"] for r in rounds)
        quarter = len(ratios) // 4
        report[keep] = {
            "times the time": statistics.median(ratios),
            "middle half": [ratios[quarter], ratios[-quarter - 1]],
            "times the memory": peaks[keep] / peaks["none"],
        }
    return report


def _draw(pipe: DiffusionPipeline, keep: str) -> None:
    takes = inspect.signature(type(pipe).__call__).parameters
    settings = {name: value for name, value in GUIDED.items() if name in takes}
    if keep == "edited":
        settings["edits"] = [replace("circle", "star")]
    with nullcontext() if keep in ("none", "edited") else trace(pipe, keep):
        pipe(PROMPT, **settings)


def _peak_memory(model: str, keep: str, device: torch.device) -> int:
    """The peak in bytes while three pictures are drawn one after another."""
    pipe = open_pipeline(model, device)
    for _ in range(3):
        _draw(pipe, keep)
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated(device)
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def _step(
    unet: CrossAttentionUNet | UNet2DConditionModel, vocab_size: int, batch: Batch, device: torch.device
) -> Callable[[], None]:
    model = TextToImageModel(Transformer(vocab_size), unet.to(memory_format=torch.channels_last)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    noisy = flow.interpolate(batch.pictures, batch.noise, batch.times).to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_fast()), attention_kernel(device.type):
            memory = model.memory(batch)
            times = batch.times * flow.TRAIN_TIMESTEPS
            prediction = unet(noisy, times, memory, encoder_attention_mask=batch.token_mask).sample
        flow.loss(prediction, flow.velocity(batch.pictures, batch.noise), batch.times).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def forward_operations(unet: CrossAttentionUNet | UNet2DConditionModel, batch: Batch) -> int:
    """The multiplications and additions of one forward pass of a UNet that reads a memory of width 128."""
    memory = torch.zeros(*batch.ids.shape, 128, device=batch.ids.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(batch.pictures, batch.times, memory)
    return counter.get_total_flops()


def product_seconds(device: torch.device, dtype: torch.dtype, side: int = 2048) -> float:
    """The time of a product of two square matrices, the least of five."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return min(seconds(lambda: a @ b, device) for _ in range(5))


def seconds(call: Callable[[], object], device: str | torch.device = "cpu") -> float:
    """The wall-clock time of a call, in seconds."""
    device = torch.device(device)
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start
