"""Training a text-to-image model: one flat loop on Accelerate, the same file on a laptop and under `accelerate launch`.

Shapes: B batch, T tokens, h×w pixels.
"""

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from pipelines.checkpoint import load_checkpoint, load_state, save_checkpoint, settings_of
from pipelines.dataset import (
    MAX_TOKENS,
    Batch,
    Collator,
    DataError,
    Example,
    Examples,
    FolderExamples,
    SceneExamples,
    batches,
    seed_of,
    to_tensor,
    train_tokenizer,
)
from pipelines.muon import Muon
from pipelines.text_to_image import TextToImagePipeline
from unet_xattn import CrossAttentionUNet, Transformer, flow, grounding

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Noise levels of the validation loss."""


@dataclass(frozen=True)
class TrainConfig:
    """What a run is. The same settings, machine and thread count give the same weights."""

    data: str = "shapes"  # "shapes", or a folder of captioned pictures
    out: str = "runs/first"
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


@dataclass(frozen=True)
class Losses:
    """What one batch costs, a scalar each: the flow, the cross-attention outside the masks, and the translation."""

    flow: Tensor
    tokens: Tensor
    text: Tensor


class TextToImageModel(nn.Module):
    """What is trained: the text encoder and the memory's readers, the UNet and, where it has one, its own decoder."""

    def __init__(self, text_encoder: Transformer, unet: CrossAttentionUNet):
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet

    def forward(self, batch: Batch, use_masks: bool = True) -> Losses:
        """One memory, read twice: by image positions on the way to a picture, and to say the caption otherwise.

        With `use_masks` every cross-attention layer of the UNet is held against the masks, in pure noise too: where
        nothing is anywhere yet, a word's best map is where its thing will be, and that has to come from the text.
        """
        memory = self.text_encoder.encode(batch.ids, batch.token_mask)
        token_losses: list[Tensor] = []

        def record(layer: str, weights: Tensor, grid: tuple[int, int]) -> None:
            token_losses.append(grounding.token_loss(weights, batch.masks, grid))

        noisy = flow.interpolate(batch.pictures, batch.noise, batch.times)
        prediction = self.unet(
            noisy, batch.times * flow.TRAIN_TIMESTEPS, memory, batch.token_mask, record=record if use_masks else None
        ).sample
        flow_loss = flow.loss(prediction, flow.velocity(batch.pictures, batch.noise), batch.times).mean()
        nothing = flow_loss.new_zeros(())
        tokens = torch.stack(token_losses).mean() if token_losses else nothing
        text = nothing
        if len(self.text_encoder.decoder):
            text = text_loss(self.text_encoder, memory, batch.token_mask, batch.target_ids, batch.target_mask)
        return Losses(flow_loss, tokens, text)


def text_loss(
    model: Transformer, memory: Tensor, memory_mask: Tensor, target_ids: Tensor, target_mask: Tensor
) -> Tensor:
    """Cross-entropy of each next token, labels smoothed by 0.1 (arXiv 1706.03762, section 5.4), in nats.

    memory (B, T, M) and its mask (B, T), target_ids and target_mask (B, S) -> the mean over real tokens, ().
    """
    logits = model.decode(target_ids[:, :-1], memory, memory_mask)  # (B, S − 1, V)
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), target_ids[:, 1:].flatten(), reduction="none", label_smoothing=0.1
    )
    real = target_mask[:, 1:].flatten()
    return (losses * real).sum() / real.sum().clamp_min(1)


def train(config: TrainConfig, resume: bool = False) -> Path:
    """Train a model and leave it, as a diffusers pipeline folder, in `config.out`; returns that folder.

    Args:
        resume: go on with the run in `config.out`, with the settings it was started with.

    Raises:
        ValueError: settings or data that cannot be used, a run that is already there, or nothing to resume.
    """
    out = Path(config.out)
    checkpoint = out / "checkpoint"
    start = 0
    if resume:
        state = load_state(checkpoint)
        config, start = settings_of(TrainConfig, state, out), state["step"]
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: choose another --out, or --resume to go on with the run in it")

    accelerator = Accelerator(
        mixed_precision="bf16" if bf16_is_fast() else "no",  # weights stay fp32
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with="tensorboard",
        project_dir=out / "logs",
    )
    torch.manual_seed(config.seed)
    examples = load_examples(config)
    tokenizer = train_tokenizer(examples.captions())
    validation = examples.validation(128)
    translates = config.text_weight > 0 and any(e.translation for e in validation)
    text_encoder = Transformer(vocab_size=len(tokenizer), decoder_layers=2 if translates else 0)
    unet = CrossAttentionUNet(sample_size=config.size, memory_width=text_encoder.config.width)
    unet.check_size(config.size, config.size)
    model = TextToImageModel(text_encoder, unet.to(memory_format=torch.channels_last)).to(accelerator.device)
    ema = AveragedModel(model, multi_avg_fn=power_function_ema(config.ema_sigma))
    averaged: TextToImageModel = ema.module  # type: ignore[assignment]
    optimizer = muon(model, config)
    if resume:
        load_checkpoint(checkpoint, model, ema, optimizer)

    grid = config.size // unet.config.patch_size // 2 ** unet.config.cross_attention.index(True)  # finest that attends
    collator = Collator(tokenizer, config.seed, config.caption_dropout, grid)
    first, last = start * config.batch_size, config.steps * config.batch_size
    loader = batches(examples, collator, config.batch_size, first, last, workers=1)
    trained, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    accelerator.init_trackers("tensorboard")
    prompts = [e.caption for e in validation if len(tokenizer(e.caption, verbose=False)["input_ids"]) <= MAX_TOKENS][
        :16
    ]
    pipe = as_pipeline(tokenizer, averaged)

    progress = tqdm(
        total=config.steps, initial=start, unit="step", disable=not accelerator.is_main_process, file=sys.stdout
    )
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
        if done % 50 == 0:
            values = {
                "loss": losses.flow.item(),
                "token loss": losses.tokens.item(),
                "text loss": losses.text.item(),
                "gradient norm": float(norm),
            }
            rate = progress.format_dict["rate"] or 0
            accelerator.log(values | {"pictures/s": rate * config.batch_size}, step=done)
            progress.set_postfix_str(f"loss {values['loss']:.3f}, {rate * config.batch_size:.0f} pictures/s")
        if (done % config.every == 0 or done == config.steps) and accelerator.is_main_process:
            report = validate(averaged, collator, validation, accelerator.device)
            accelerator.log({f"validation/{name}": value for name, value in report.items()}, step=done)
            with open(out / "validation.jsonl", "a") as file:
                file.write(json.dumps({"step": done} | report) + "\n")
            progress.write(f"step {done}: " + ", ".join(f"{name} {value:.4f}" for name, value in report.items()))
            save_samples(pipe, prompts, out / "samples" / f"step-{done:06d}.png")
            pipe.save_pretrained(out)
            save_checkpoint(checkpoint, model, ema, optimizer, {"step": done, "config": asdict(config)})
        accelerator.wait_for_everyone()
    progress.close()
    accelerator.end_training()
    return out


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
    """Whether this machine multiplies bf16 much faster than fp32: a GPU does, and a CPU with Intel's AMX."""
    capabilities: dict = getattr(torch.cpu, "get_capabilities", dict)()  # not in the oldest torch we run with
    return torch.cuda.is_available() or bool(capabilities.get("amx_bf16"))


def attention_kernel(device: str) -> AbstractContextManager:
    """On a CPU plain products: to go back through its fused kernel takes torch 2.13 a third of a whole step in bf16."""
    return sdpa_kernel(SDPBackend.MATH) if device == "cpu" and bf16_is_fast() else nullcontext()


def load_examples(config: TrainConfig) -> Examples:
    """The data a run names: the endless scenes, or a folder."""
    if config.data == "shapes":
        return SceneExamples(config.size, config.seed)
    if not Path(config.data).is_dir():
        raise DataError(f"there is no data {config.data!r}: give 'shapes' or a folder of captioned pictures")
    return FolderExamples(config.data, config.size, config.seed)


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


@torch.no_grad()
def validate(
    model: TextToImageModel, collator: Collator, examples: list[Example], device: torch.device
) -> dict[str, float]:
    """Losses on fixed pictures at fixed noise levels and seeds, with their own captions and with each other's.

    If the shuffled captions cost no more than the right ones, the model does not read the text. Where the data has
    masks, of the words' mean maps over all layers at noise 0.3: `pointing`, the share that peak in their mask, and
    `iou`, map and mask where each is at least half its peak. Where the model translates: `text loss`, as in training.
    """
    model.eval()
    captions = [e.caption for e in examples]
    regions = [e.regions for e in examples]
    order = range(len(examples))
    shuffled = [(i + 1) % len(examples) for i in order]
    report = {}
    for level in LEVELS:
        for name, places in (("", order), (" shuffled", shuffled)):
            losses, hits, overlaps, text_losses = [], [], [], []
            for chunk in (slice(i, i + 64) for i in range(0, len(examples), 64)):
                read = collator.read([captions[i] for i in places[chunk]], regions[chunk])
                target = collator.write([examples[i].translation for i in places[chunk]])
                pictures = to_tensor(np.stack([e.picture for e in examples[chunk]]))
                noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(seed_of(chunk.start)))
                times = torch.full((len(pictures),), level)
                batch = Batch(pictures, noise, times, *read, *target).to(device)
                maps: list[Tensor] = []
                memory = model.text_encoder.encode(batch.ids, batch.token_mask)
                prediction = model.unet(
                    flow.interpolate(batch.pictures, batch.noise, batch.times),
                    batch.times * flow.TRAIN_TIMESTEPS,
                    memory,
                    batch.token_mask,
                    record=lambda layer, weights, grid, maps=maps: maps.append(
                        _upsampled(weights, grid, collator.grid)
                    ),
                ).sample
                losses.append(flow.loss(prediction, flow.velocity(batch.pictures, batch.noise), batch.times))
                if level == 0.3 and not name:
                    heat, there = torch.stack(maps).mean(dim=0), batch.masks.flatten(2).amax(dim=-1) >= 0.5
                    hits.append(grounding.points_inside(heat, batch.masks)[there])
                    overlaps.append(grounding.iou(heat, batch.masks)[there])
                if level == LEVELS[0] and not name and len(model.text_encoder.decoder):
                    text_losses.append(
                        text_loss(model.text_encoder, memory, batch.token_mask, batch.target_ids, batch.target_mask)
                    )
            report[f"loss {level}{name}"] = torch.cat(losses).mean().item()
            if hits and len(torch.cat(hits)):
                report["pointing"] = torch.cat(hits).float().mean().item()
                report["iou"] = torch.cat(overlaps).mean().item()
            if text_losses:
                report["text loss"] = torch.stack(text_losses).mean().item()
    model.train()
    return report


def _upsampled(weights: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    maps = weights.mean(dim=1).transpose(1, 2).unflatten(-1, grid)  # (B, T, h, w)
    return F.interpolate(maps, (side, side), mode="bilinear")


def save_samples(pipe: TextToImagePipeline, prompts: list[str], path: Path) -> None:
    """One PNG with a picture for each prompt, the same noise every time; none without prompts."""
    if not prompts:
        return
    pipe.unet.eval(), pipe.text_encoder.eval()
    seeds = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    pictures = pipe(prompts, generator=seeds, output_type="np").images  # (B, h, w, 3)
    pipe.unet.train(), pipe.text_encoder.train()
    columns = min(8, len(pictures))
    rows = [np.concatenate(pictures[i : i + columns], axis=1) for i in range(0, len(pictures), columns)]
    sheet = np.zeros((sum(r.shape[0] for r in rows), max(r.shape[1] for r in rows), 3))
    for i, row in enumerate(rows):
        sheet[i * row.shape[0] : (i + 1) * row.shape[0], : row.shape[1]] = row
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((sheet * 255).round().astype(np.uint8)).save(path)
