"""Training a text-to-image model: one flat loop on Accelerate, the same file on a laptop and under `accelerate launch`.

Shapes: B batch, T tokens, h×w pixels.
"""

import json
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DataLoaderConfiguration
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from pipelines.checkpoint import load_checkpoint, load_state, save_checkpoint, settings_of
from pipelines.dataset import Collator, Examples, FolderExamples, SceneExamples, batches
from pipelines.muon import Muon
from pipelines.objective import Losses, TextToImageModel
from pipelines.preflight import check_on_bad
from pipelines.run_folder import (
    LOG,
    SETTINGS,
    VALIDATION,
    StoppedError,
    StopSignals,
    append_row,
    drop_rows_after,
    run_lock,
    unused,
)
from pipelines.text_to_image import TextToImagePipeline
from pipelines.tokenizer import MAX_TOKENS, train_tokenizer
from pipelines.validate import draw_samples, validate
from unet_xattn import CrossAttentionUNet, Transformer


@dataclass(frozen=True)
class TrainConfig:
    """What a run is. The same settings, machine and thread count give the same weights."""

    data: str = "shapes"  # "shapes", or captioned pictures: what `sources.read_source` takes
    on_bad: str = "fail"  # or "skip", of rows that cannot be used
    streaming: bool = False  # take a hub set's pictures as they come, so many as `limit` says
    limit: int | None = None  # of pictures
    out: str = "runs/first"
    begin_from: str = ""  # a model whose weights and vocabulary the run starts with; from nothing if there is none
    steps: int = 4_000
    batch_size: int = 64  # of all processes together
    seed: int = 0
    size: int = 64  # side of the pictures, in pixels
    learning_rate: float = 2e-3
    warmup: int = 200  # steps of rising learning rate; it falls over the last third
    weight_decay: float = 0.01
    caption_dropout: float = 0.1  # without it there is nothing to guide away from
    mask_weight: float = 0.1  # weight of the token loss where the data has masks; 0 turns it off
    text_weight: float = 0.1  # weight of writing the translation from the memory where the data has one
    ema_sigma: float = 0.1  # relative width of the averaging window
    every: int = 1000  # steps between validations, sample pictures and checkpoints

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 2), ("seed", 0), ("size", 16), ("warmup", 0), ("every", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if self.seed >= 2**31:
            raise ValueError(f"seed must be below 2³¹, got {self.seed}: seeds from there on are kept for validation")
        check_on_bad(self.on_bad)
        for name, low, high in (
            ("learning_rate", 1e-9, 1.0),
            ("weight_decay", 0.0, 1.0),
            ("caption_dropout", 0.0, 1.0),
            ("mask_weight", 0.0, 100.0),
            ("text_weight", 0.0, 100.0),
            ("ema_sigma", 0.001, 0.28),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be between {low:g} and {high:g}, got {getattr(self, name)}")


def train(config: TrainConfig, resume: bool = False) -> Path:
    """Train a model and leave it, as a diffusers pipeline folder, in `config.out`; returns that folder.

    Args:
        resume: go on with the run in `config.out`, with the settings it was started with.

    SIGINT or SIGTERM let it finish the step and save; a second one ends it at once.

    Raises:
        ValueError: settings or data that cannot be used, a run that is already there, another process that trains it,
            or nothing to resume.
        StoppedError: one of these signals came; it says which, and where the run stands.
    """
    out = Path(config.out)
    if not resume and not unused(out):
        raise ValueError(f"{out} is not empty: choose another --out, or --resume to go on with the run in it")
    with run_lock(out) if PartialState().is_main_process else nullcontext(), StopSignals() as stop:
        state = load_state(out / "checkpoint") if resume else None
        if state is not None:
            config = settings_of(TrainConfig, state, out)
        fit(config, out, state, stop)
    return out


def fit(config: TrainConfig, out: Path, state: dict | None, stop: StopSignals) -> None:
    """The whole of a run's training, from the beginning or from the `state` its checkpoint in `out` holds."""
    checkpoint = out / "checkpoint"
    start = state["step"] if state else 0
    accelerator = Accelerator(
        mixed_precision="bf16" if bf16_is_fast() else "no",  # weights stay fp32
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with="tensorboard",
        project_dir=out / "logs",
    )
    torch.manual_seed(config.seed)
    examples = load_examples(config)
    validation = examples.validation(128)
    translates = config.text_weight > 0 and any(e.translation for e in validation)
    tokenizer, text_encoder, unet = build(config, examples, translates)
    unet.check_size(config.size, config.size)
    model = TextToImageModel(text_encoder, unet.to(memory_format=torch.channels_last)).to(accelerator.device)
    ema = AveragedModel(model, multi_avg_fn=power_function_ema(config.ema_sigma))
    averaged: TextToImageModel = ema.module  # type: ignore[assignment]
    optimizer = muon(model, config)
    if state:
        load_checkpoint(checkpoint, model, ema, optimizer)

    grid = config.size // unet.config.patch_size // 2 ** unet.config.cross_attention.index(True)  # finest that attends
    collator = Collator(tokenizer, config.seed, config.caption_dropout, grid)
    first, last = start * config.batch_size, config.steps * config.batch_size
    loader = batches(examples, collator, config.batch_size, first, last, workers=1)
    trained, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    accelerator.init_trackers("tensorboard")
    shown = [e for e in validation if len(tokenizer(e.caption, verbose=False)["input_ids"]) <= MAX_TOKENS][:16]
    pipe = as_pipeline(tokenizer, averaged)
    if accelerator.is_main_process:
        settings = {"config": asdict(config), "prompts": [e.caption for e in shown]}
        (out / SETTINGS).write_text(json.dumps(settings, indent=1))
        for name in (LOG, VALIDATION):
            drop_rows_after(out / name, start)

    progress = tqdm(
        total=config.steps,
        initial=start,
        unit="step",
        disable=not accelerator.is_main_process,
        file=sys.stdout,
        mininterval=0.1 if sys.stdout.isatty() else 10.0,  # seconds: a file keeps every line
    )
    seconds, began = state.get("seconds", 0.0) if state else 0.0, time.monotonic()
    stopping = False
    for step, batch in enumerate(loader, start):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(step, config.steps, config.warmup)
        with attention_kernel(accelerator.device.type):
            losses: Losses = trained(batch, use_masks=config.mask_weight > 0 and bool(batch.masks.any()))
        accelerator.backward(losses.flow + config.mask_weight * losses.tokens + config.text_weight * losses.text)
        norm = accelerator.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(accelerator.unwrap_model(trained))

        done = step + 1
        progress.update()
        if done % 50 == 0 or done == 1:
            values = {
                "loss": losses.flow.item(),
                "token loss": losses.tokens.item(),
                "text loss": losses.text.item(),
                "gradient norm": float(norm),
                "learning rate": optimizer.param_groups[0]["lr"],
                "pictures/s": (progress.format_dict["rate"] or 0) * config.batch_size,
            }
            accelerator.log(values, step=done)
            progress.set_postfix_str(f"loss {values['loss']:.3f}, {values['pictures/s']:.0f} pictures/s")
            if accelerator.is_main_process:
                append_row(out / LOG, {"step": done} | values | {"seconds": seconds + time.monotonic() - began})
        due = done % config.every == 0 or done == config.steps
        stopping = done < config.steps and asked_to_stop(accelerator, stop)
        if due and accelerator.is_main_process:
            report = validate(averaged, collator, validation, accelerator.device)
            report |= draw_samples(pipe, shown, out / "samples", done)
            accelerator.log({f"validation/{name}": value for name, value in report.items()}, step=done)
            append_row(out / VALIDATION, {"step": done} | report)
            progress.write(f"step {done}: " + ", ".join(f"{name} {value:.4g}" for name, value in report.items()))
        if (due or stopping) and accelerator.is_main_process:
            save_model(pipe, out)
            place = {"step": done, "seconds": seconds + time.monotonic() - began, "config": asdict(config)}
            save_checkpoint(checkpoint, model, ema, optimizer, place)
        accelerator.wait_for_everyone()
        if stopping:
            break
    progress.close()
    accelerator.end_training()
    if stopping:
        raise StoppedError(stop.received or signal.SIGTERM, done, config.steps)


def build(
    config: TrainConfig, examples: Examples, translates: bool
) -> tuple[PreTrainedTokenizerFast, Transformer, CrossAttentionUNet]:
    """What a run trains: new networks for these examples, or those of the model it begins from."""
    if config.begin_from:
        pipe = TextToImagePipeline.from_pretrained(config.begin_from)
        pipe.unet.register_to_config(sample_size=config.size)
        return pipe.tokenizer, pipe.text_encoder, pipe.unet
    tokenizer = train_tokenizer(examples.captions())
    text_encoder = Transformer(vocab_size=len(tokenizer), decoder_layers=2 if translates else 0)
    return tokenizer, text_encoder, CrossAttentionUNet(config.size, memory_width=text_encoder.config.width)


def save_model(pipe: TextToImagePipeline, out: Path) -> None:
    """Save a pipeline into a folder where another process may be reading the last one: file by file, each whole."""
    new = out / "model.new"
    shutil.rmtree(new, ignore_errors=True)
    pipe.save_pretrained(new)
    files = [file for file in new.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: file.name == "model_index.json"):  # which says there is a new one: last
        target = out / file.relative_to(new)
        target.parent.mkdir(exist_ok=True)
        file.replace(target)
    shutil.rmtree(new)


def asked_to_stop(accelerator: Accelerator, stop: StopSignals) -> bool:
    """Whether any of the processes was: they must all leave after the same step, or one waits for ever."""
    if accelerator.num_processes == 1:
        return stop.received is not None
    if stop.received is not None:
        accelerator.set_trigger()
    return accelerator.check_trigger()


def muon(model: TextToImageModel, config: TrainConfig) -> Muon:
    """The optimizer of a run: Muon for the matrices between layers, AdamW for the ends and what is no matrix."""
    ends = ("conv_in.weight", "conv_out.weight", "embedding.weight")
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        between = parameter.ndim >= 2 and not name.endswith(ends)
        (matrices if between else others).append(parameter)
    dtype = torch.bfloat16 if bf16_is_fast() else torch.float32
    return Muon(matrices, others, config.learning_rate, config.weight_decay, dtype=dtype)


def bf16_is_fast() -> bool:
    """Whether this machine multiplies bf16 much faster than fp32: a GPU, a CPU with AMX or with AVX-512's bf16."""
    capabilities: dict = getattr(torch.cpu, "get_capabilities", dict)()  # not in the oldest torch we run with
    return torch.cuda.is_available() or any(capabilities.get(unit) for unit in ("amx_bf16", "avx512_bf16"))


def attention_kernel(device: str) -> AbstractContextManager:
    """On a CPU plain products: to go back through its fused kernel takes torch 2.13 a third of a whole step in bf16."""
    return sdpa_kernel(SDPBackend.MATH) if device == "cpu" and bf16_is_fast() else nullcontext()


def load_examples(config: TrainConfig) -> Examples:
    """The data a run names: the endless scenes, or captioned pictures."""
    if config.data == "shapes":
        return SceneExamples(config.size, config.seed)
    return FolderExamples(config.data, config.size, config.seed, config.on_bad, config.streaming, config.limit)


def schedule(step: int, steps: int, warmup: int) -> float:
    """The learning rate's factor: up over the warm-up, level, then down to nothing over the last third."""
    return min(1.0, (step + 1) / max(warmup, 1), (steps - step) / steps * 3)


def power_function_ema(sigma: float) -> Callable[..., None]:
    """An average of the weights over a window that grows with the run (EDM2, arXiv 2312.02696, section 3.1).

    `sigma` is the window's standard deviation relative to the length of training.
    """
    gamma = np.roots([1, 7, 16 - sigma**-2, 12 - sigma**-2]).real.max()

    def update(averaged: list[Tensor], current: list[Tensor], updates: Tensor) -> None:
        beta = (1 - 1 / (int(updates) + 1)) ** (gamma + 1)
        torch._foreach_lerp_(averaged, current, 1 - beta)

    return update


def as_pipeline(tokenizer: PreTrainedTokenizerFast, model: TextToImageModel) -> TextToImagePipeline:
    """A pipeline on these very weights (not a copy)."""
    pipe = TextToImagePipeline(tokenizer, model.text_encoder, model.unet, FlowMatchEulerDiscreteScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe
