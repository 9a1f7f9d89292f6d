"""What a user would pick instead: agreement against minutes of training, from nothing, on the same scenes.

    python tests/benchmarks/compare.py ours --size 32 --minutes 30 --out ours.json
    python tests/benchmarks/compare.py diffusers --size 32 --minutes 150 --every 15 --out diffusers.json

- ours: this package's recipe.
- ours-lent: the same, reading with the text encoder that the others are lent: how much of the difference is its?
- diffusers: its UNet2DConditionModel with the recipe of its example train_text_to_image.py (ε-prediction on Stable
  Diffusion's 1,000 noise levels, AdamW at 1e-4, clipped gradients, averaged weights), drawn by DDPM's own rule: a
  stochastic one, as ours, mends early errors that DPM-Solver++ leaves in the picture.
- imagen: the base UNet of imagen-pytorch with its own trainer (`pip install imagen-pytorch`).

All have about as many parameters, and see the same captioned scenes in the same order, one thread each: at 64 pixels
those that `train` shows, at 32 four shapes in four colours with a UNet whose attention has the grids it has at 64, and
at 16 the miniature of recipe.py. Both others expect a frozen text encoder that knows the language already, and get one
that is better than any they could download: that of the finished model `shapes`. Ours learns its own. Minutes are CPU
time of training alone (on a GPU, by the clock), making batches, drawing and judging left out; every `--every` minutes
the fixed test prompts are drawn in 20 steps (imagen: 50, its sampler takes no fewer well), without guidance
and, where captions were left out in training, with guidance 3, of which each time the better one counts, and captions
are told apart (told_apart.py). Interrupted, it goes on from the last of these points, or with more `--minutes` from
where it ended (but for both of ours, whose learning rate falls towards an end that is known).
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from recipe_variants import BATCH_SIZE, TEXT, UNET, few_things, small_world
from told_apart import Errors, errors_of, share, squared, told_apart
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from pipelines import TextToImagePipeline
from pipelines.data.batches import Batch, Collator, batches
from pipelines.data.scenes import SceneExamples
from pipelines.data.stream import seed_of
from pipelines.evaluation.agreement import evaluate
from pipelines.runs.checkpoint import checkpoints, load_checkpoint, load_state, save_checkpoint
from pipelines.runs.machine import code_version, machine
from pipelines.scenes.shapes import SWAPS
from pipelines.text_to_image import read_prompts
from pipelines.tokenizer import train_tokenizer
from pipelines.training.frozen import Frozen
from pipelines.training.objective import TextToImageModel
from pipelines.training.parts import as_pipeline
from pipelines.training.recipe import attention_kernel, bf16_is_fast, muon, power_function_ema, schedule
from pipelines.training.train import TrainConfig
from unet_xattn import CrossAttentionUNet, Transformer, flow

MARKS = (0.5, 0.8, 0.9)

SIZES: dict[int, dict[str, Any]] = {
    64: {"unet": {}, "text": {}, "diffusers": (48, 80, 112, 112), "imagen": (32, (1, 2, 3, 4)), "batch": 64},
    32: {
        "unet": UNET | {"sample_size": 32, "block_out_channels": (64, 128, 160)},
        "text": {},
        "diffusers": (32, 64, 96, 96),
        "imagen": (24, (1, 2, 3, 4)),
        "batch": 64,
    },
    16: {"unet": UNET, "text": TEXT, "diffusers": (32, 48, 64), "imagen": (16, (1, 2, 3)), "batch": BATCH_SIZE},
}
"""How large the networks are for pictures of a size: ours, the other two's channels, and pictures a step."""

MAKE_WORLD: dict[int, Callable[[], None]] = {
    64: lambda: None,
    32: lambda: few_things(("circle", "square", "triangle", "heart"), ("orange", "purple", "pink", "green")),
    16: small_world,
}
"""What leaves the scenes of a size, and no others, in this process."""


class Ours:
    """The recipe of `pipelines.training.train`, its learning rate falling over the last third of the minutes it has."""

    def __init__(self, size: int, device: str, lent: "Borrowed | None" = None):
        """Learns its own text encoder, or reads with the one that the others are `lent`, which stays as it is."""
        self.config, self.device, self.lent = TrainConfig(size=size), device, lent
        self.tokenizer = lent.tokenizer if lent else train_tokenizer(SceneExamples(size, 0).captions())
        own = None if lent else Transformer(len(self.tokenizer), decoder_layers=2, **SIZES[size]["text"])
        self.frozen = Frozen(lent.encoder if lent else None, None)
        width = (lent.encoder if lent else own).config.width
        unet = CrossAttentionUNet(**{"sample_size": size, "memory_width": width} | SIZES[size]["unet"])
        self.cell = unet.config.patch_size * 2 ** unet.config.cross_attention.index(True)
        self.caption_dropout = self.config.caption_dropout
        self.model = TextToImageModel(own, unet.to(memory_format=torch.channels_last)).to(device)
        self.parameters = sum(p.numel() for p in unet.parameters())
        self.ema = AveragedModel(self.model, multi_avg_fn=power_function_ema(self.config.ema_sigma))
        self.optimizer = muon(self.model, self.config.learning_rate, self.config.weight_decay)
        self.trained = self.model, self.ema, self.optimizer

    def step(self, batch: Batch, step: int, share: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * min(schedule(step, 10**9, self.config.warmup), (1 - share) * 3)
        with torch.autocast(self.device, torch.bfloat16, enabled=bf16_is_fast()), attention_kernel(self.device):
            losses = self.model(batch, memory=self.lent.remember(batch) if self.lent else None)
        (losses.flow + self.config.mask_weight * losses.tokens + self.config.text_weight * losses.text).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update_parameters(self.model)

    @property
    def pipe(self) -> TextToImagePipeline:
        return as_pipeline(self.tokenizer, self.ema.module, self.frozen, self.config)  # type: ignore[arg-type]

    def draw(self, prompts: list[str], **settings: Any) -> Any:
        return self.pipe(prompts, **settings)

    @property
    def errors(self) -> Errors:
        return errors_of(self.pipe)


class Borrowed:
    """What the other two share, and `ours-lent`: the text encoder of the finished model, frozen."""

    caption_dropout = 0.1  # they draw best when they are guided

    def __init__(self, size: int, device: str):
        pipe = TextToImagePipeline.from_pretrained("shapes").to(device)
        self.size, self.device, self.tokenizer, self.encoder = size, device, pipe.tokenizer, pipe.text_encoder
        self.cell = size // 16

    @torch.no_grad()
    def read(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        ids, mask = (t.to(self.device) for t in read_prompts(self.tokenizer, prompts))
        return self.encoder.encode(ids, mask), mask

    @torch.no_grad()
    def remember(self, batch: Batch) -> Tensor:
        return self.encoder.encode(batch.ids, batch.token_mask)


class Diffusers(Borrowed):
    """diffusers' UNet and the settings of its example."""

    def __init__(self, size: int, device: str):
        super().__init__(size, device)
        channels = SIZES[size]["diffusers"]
        blind = len(channels) - 2  # levels that do not read
        self.unet = UNet2DConditionModel(
            sample_size=size,
            in_channels=3,
            out_channels=3,
            block_out_channels=channels,
            down_block_types=("DownBlock2D",) * blind + ("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",) * blind,
            layers_per_block=1,
            cross_attention_dim=self.encoder.config.width,
            attention_head_dim=4,
            norm_num_groups=16,
        ).to(device, memory_format=torch.channels_last)
        self.parameters = sum(p.numel() for p in self.unet.parameters())
        levels = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        self.noise = DDPMScheduler(**levels)
        self.sampler = DDPMScheduler(**levels, timestep_spacing="trailing")  # from the level of pure noise
        self.ema = EMAModel(self.unet.parameters())
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), 1e-4, weight_decay=1e-2, fused=True)
        self.trained = self.unet, nn.ParameterList(self.ema.shadow_params), self.optimizer

    def step(self, batch: Batch, step: int, share: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-4 * min(1, (step + 1) / 500)
        memory = self.remember(batch)
        levels = torch.randint(0, self.noise.config.num_train_timesteps, (len(memory),), device=self.device)
        noisy = self.noise.add_noise(batch.pictures, batch.noise, levels)
        with torch.autocast(self.device, torch.bfloat16, enabled=bf16_is_fast()), attention_kernel(self.device):
            said = self.unet(noisy, levels, memory, encoder_attention_mask=batch.token_mask).sample
        F.mse_loss(said.float(), batch.noise).backward()
        nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.optimization_step = step  # it goes on where it was
        self.ema.step(self.unet.parameters())

    @torch.no_grad()
    def draw(
        self, prompts: list[str], num_inference_steps: int, guidance_scale: float, generator: list, **_: Any
    ) -> Any:
        self.ema.store(self.unet.parameters())
        self.ema.copy_to(self.unet.parameters())
        memory, mask = self.read([""] * len(prompts) + prompts)
        x = torch.stack([torch.randn(3, self.size, self.size, generator=g) for g in generator]).to(self.device)
        self.sampler.set_timesteps(num_inference_steps, device=self.device)
        for level in self.sampler.timesteps:
            both = self.unet(torch.cat([x, x]), level, memory, encoder_attention_mask=mask).sample
            away, towards = both.chunk(2)
            x = self.sampler.step(away + guidance_scale * (towards - away), level, x, generator=generator).prev_sample
        self.ema.restore(self.unet.parameters())
        return _as_images(x)

    def errors(self, pictures: Tensor, noise: Tensor, level: float, captions: list[str]) -> Tensor:
        """Those of the noise, at the step whose shares of noise and picture are nearest to the level's."""
        kept = self.noise.alphas_cumprod
        step = ((1 - kept).sqrt() / (kept.sqrt() + (1 - kept).sqrt()) - level).abs().argmin()
        memory, mask = self.read(captions)
        noisy = self.noise.add_noise(pictures, noise, step.expand(len(pictures))).to(self.device)
        self.ema.store(self.unet.parameters())
        self.ema.copy_to(self.unet.parameters())
        said = self.unet(noisy, step.to(self.device), memory, encoder_attention_mask=mask).sample
        self.ema.restore(self.unet.parameters())
        return squared(said.cpu(), noise)


class Imagen(Borrowed):
    """imagen-pytorch's base UNet, its cascade's first, and its trainer."""

    def __init__(self, size: int, device: str):
        super().__init__(size, device)
        from transformers import T5Config

        wide = self.encoder.config.width
        # It asks the hub for the size of a T5 the moment it is imported; what it reads here is no T5.
        T5Config.from_pretrained = classmethod(lambda cls, *_, **__: cls(d_model=wide))
        from imagen_pytorch import Imagen as Cascade
        from imagen_pytorch import ImagenTrainer, Unet

        dim, multiples = SIZES[size]["imagen"]
        attends = (False,) * (len(multiples) - 2) + (True, True)
        unet = Unet(
            dim=dim,
            text_embed_dim=wide,
            cond_dim=wide,
            dim_mults=multiples,
            num_resnet_blocks=1,
            attn_heads=4,
            attn_dim_head=32,
            layer_attns=attends,
            layer_cross_attns=attends,
        )
        self.parameters = sum(p.numel() for p in unet.parameters())
        cascade = Cascade(unets=(unet,), image_sizes=(size,), text_embed_dim=wide, timesteps=50)
        self.trainer = ImagenTrainer(cascade, verbose=False).to(device)
        self.trainer.validate_and_set_unet_being_trained(1)  # which wraps its optimizer
        self.trained = unet, self.trainer.ema_unets, self.trainer.optim0

    def step(self, batch: Batch, step: int, share: float) -> None:
        memory = self.remember(batch)
        pictures = (batch.pictures + 1) / 2
        with torch.autocast(self.device, torch.bfloat16, enabled=bf16_is_fast()):
            self.trainer(pictures, text_embeds=memory, text_masks=batch.token_mask, unet_number=1)
        self.trainer.update(unet_number=1)

    @torch.no_grad()
    def draw(self, prompts: list[str], guidance_scale: float, generator: list, **_: Any) -> Any:
        memory, mask = self.read(prompts)
        torch.manual_seed(generator[0].initial_seed())
        x = self.trainer.sample(text_embeds=memory, text_masks=mask, cond_scale=guidance_scale, use_tqdm=False)
        return _as_images(x * 2 - 1)

    def errors(self, pictures: Tensor, noise: Tensor, level: float, captions: list[str]) -> Tensor:
        """Those of the noise, at the time whose shares of noise and picture are nearest to the level's."""
        scheduler = self.trainer.imagen.noise_schedulers[0]
        times = torch.linspace(0, 1, 1001)
        _, _, kept, added = scheduler.q_sample(pictures[:1].expand(len(times), -1, -1, -1), times)
        nearest = times[(added / (kept + added)).flatten().sub(level).abs().argmin()].expand(len(pictures))
        noisy, *_ = scheduler.q_sample(pictures, nearest, noise)
        memory, mask = self.read(captions)
        unet = self.trainer.ema_unets[0].ema_model
        at = scheduler.get_condition(nearest).to(self.device)
        said = unet(noisy.to(self.device), at, text_embeds=memory, text_mask=mask)
        return squared(said.cpu(), noise)


SYSTEMS: dict[str, Callable[[int, str], Any]] = {
    "ours": Ours,
    "ours-lent": lambda size, device: Ours(size, device, Borrowed(size, device)),
    "diffusers": Diffusers,
    "imagen": Imagen,
}


def _as_images(x: Tensor) -> Any:
    return SimpleNamespace(images=((x.float().clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).cpu().numpy())


def curve(
    name: str, minutes: float, every: float, size: int, draw: int, seed: int, device: str, folder: Path
) -> dict[str, Any]:
    """Train a system for so many minutes; what it draws each time it is looked at."""
    torch.manual_seed(seed)
    system = SYSTEMS[name](size, device)
    clock = time.process_time if device == "cpu" else time.perf_counter
    points: list[dict[str, Any]] = []
    if left := checkpoints(folder):
        load_checkpoint(left[0], *system.trained)
        points = load_state(left[0])["points"]
    spent = points[-1]["minutes"] * 60 if points else 0.0
    for step, batch in enumerate(_stream(system, size, seed, start := points[-1]["steps"] if points else 0), start):
        if spent >= minutes * 60:
            break
        torch.manual_seed(seed_of(seed, step))
        before = clock()
        system.step(batch.to(torch.device(device)), step, min(1.0, spent / (minutes * 60)))
        if device != "cpu":
            torch.accelerator.synchronize(device)
        spent += clock() - before
        if spent >= ((points[-1]["minutes"] if points else 0) + every) * 60 or spent >= minutes * 60:
            points.append({"minutes": spent / 60, "steps": step + 1} | _drawn(system, draw))
            points[-1]["told apart"] = told_apart(system.errors, size, 2 * draw)
            print(name, points[-1], flush=True)
            save_checkpoint(folder, *system.trained, {"step": step + 1, "points": points}, keep=1)
    where = {"machine": machine(device), "code": code_version()}
    return {"system": name, "seed": seed, "parameters": system.parameters} | where | {"points": points}


def _stream(system: Any, size: int, seed: int, start: int) -> Iterator[Batch]:
    collator = Collator(system.tokenizer, seed, system.caption_dropout, system.cell, flow.time_shift(size))
    batch = SIZES[size]["batch"]
    yield from batches(SceneExamples(size, seed), collator, batch, start * batch, 2**40, workers=0)


def _drawn(system: Any, draw: int) -> dict[str, Any]:
    found = []
    for guidance in (1.0, 3.0) if system.caption_dropout else (1.0,):
        report = evaluate(system.draw, draw, seeds=(0,), guidance_scale=guidance)
        shares = {split: report[split]["model"]["all_correct"]["share"] for split in ("seen", "held_out")}
        found.append(shares | {"guidance": guidance})
    return max(found, key=lambda shares: shares["seen"] + shares["held_out"])


def _reached(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Minutes to each of `MARKS`, on a straight line between the points before and behind; None if it never was.

    Of what is drawn right, of seen pairs alone and of both splits together, and where points have it, of the worse of
    the swaps in telling apart.
    """
    both = [0.0, *(float(np.mean([p["seen"], p["held_out"]])) for p in points)]
    curves = {"": both, " of seen pairs": [0.0, *(p["seen"] for p in points)]}
    if all("told apart" in p for p in points):
        curves[" told apart"] = [0.5, *(min(share(p["told apart"], swap) for swap in SWAPS) for p in points)]
    times = [0.0, *(p["minutes"] for p in points)]
    found: dict[str, Any] = {}
    for what, shares in curves.items():
        known = list(zip(times, shares, strict=True))
        for mark in (mark for mark in MARKS if mark > shares[0]):
            behind = next((i for i, (_, s) in enumerate(known) if s >= mark), None)
            minutes = None
            if behind is not None:
                (before, low), (after, high) = known[behind - 1], known[behind]
                minutes = before + (after - before) * (mark - low) / (high - low)
            found[f"minutes to {mark:.0%}{what}"] = minutes
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+", choices=list(SYSTEMS))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=5.0, help="minutes between two points of a curve")
    parser.add_argument("--size", type=int, choices=list(SIZES), default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draw", type=int, default=20, help="prompts of each kind and split")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    MAKE_WORLD[arguments.size]()
    settings = {name: getattr(arguments, name) for name in ("minutes", "every", "size", "draw", "seed", "device")}
    for name in arguments.systems:
        report: dict[str, Any] = {"curves": []}
        if arguments.out.exists():
            report = json.loads(arguments.out.read_text())
        folder = arguments.out.with_suffix("") / f"{name}-{arguments.size}-{arguments.seed}"
        found = settings | curve(name, **settings, folder=folder)
        found |= _reached(found["points"])
        others = [c for c in report["curves"] if (c["system"], c["seed"]) != (name, arguments.seed)]
        arguments.out.write_text(json.dumps({"curves": [*others, found]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
