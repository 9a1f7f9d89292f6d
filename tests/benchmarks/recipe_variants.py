"""The changes to the recipe that `recipe.py` measures. Each one patches the process that calls it.

World and networks are small, so that a run takes minutes: four shapes in four colours, all big, at 16×16 pixels, with
English captions and Chinese translations.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

import pipelines.training.train
from pipelines.data.batches import Collator
from pipelines.data.scenes import SceneExamples
from pipelines.scenes import scene as scene_module
from pipelines.scenes import shapes as scenes
from pipelines.scenes.worlds import WORLDS
from pipelines.tokenizer import train_tokenizer
from pipelines.training.objective import TextToImageModel, text_loss
from pipelines.training.train import TrainConfig
from unet_xattn import CrossAttentionUNet, Transformer, flow, grounding
from unet_xattn import unet as unet_module
from unet_xattn.attention import MultiHeadAttention, Record

SIZE = 16
UNET = {
    "sample_size": SIZE,
    "block_out_channels": (32, 64, 96),
    "layers_per_block": (1, 1, 1),
    "cross_attention": (True, True, True),
    "self_attention": (False, True, True),
}
TEXT = {"width": 64}
BATCH_SIZE = 32
SHAPES, COLOURS = ("square", "triangle", "diamond", "cross"), ("purple", "pink", "red", "yellow")
"""Enough for four held-out pairs."""

BASE_SETTINGS = {"mask_weight": 0.1, "learning_rate": 2e-3, "caption_dropout": 0.1}
TIME_SHIFT = 3.0
"""The recipe that the variants change: the one of `shapes`. `train` has adopted the best changes since."""

MIXTURE = (0.15, 0.2, 0.2, 0.3, 0.15)
"""Shares of the kinds in `scenes.scene`."""

Settings = dict[str, Any]


def few_things(shapes: Sequence[str], colours: Sequence[str]) -> None:
    """Restrict the scenes of this process to these shapes and colours."""
    for known, kept in ((scenes.SHAPES, shapes), (scene_module.COLOURS, colours)):
        for name in set(known) - set(kept):
            del known[name]  # type: ignore[attr-defined]
    scenes.HELD_OUT = frozenset((s, c) for s, c in scenes.HELD_OUT if s in shapes and c in colours)


def small_world() -> None:
    """Restrict the scenes of this process to a few big objects, captioned in English and translated into Chinese."""
    few_things(SHAPES, COLOURS)
    describe, tellings = scenes._describe_objects, scenes.tellings
    scenes._describe_objects = lambda *scene: [replace(o, size="big") for o in describe(*scene)]
    replace_tellings(lambda seed, index, languages, *rest: tellings(seed, index, sorted(languages), *rest))


def replace_tellings(tellings: Callable[..., list]) -> None:
    """Write the scenes of this process by another function in place of `shapes.tellings`."""
    scenes.tellings = tellings
    WORLDS["shapes"] = replace(WORLDS["shapes"], tellings=tellings)


def settings(**changes: Any) -> Callable[[], Settings]:
    """A variant with other settings of training."""
    return lambda: changes


def networks(
    encoder: Settings | None = None, teach: Callable[[Transformer, Any], None] | None = None, **unet: Any
) -> Callable[[], Settings]:
    """A variant with other sizes of the networks, or with a text encoder that `teach` trains beforehand."""

    def change() -> Settings:
        def build(config: TrainConfig, examples: Any, kept: Any) -> tuple:
            tokenizer = train_tokenizer(examples.captions())
            shape = {"vocab_size": len(tokenizer)} | TEXT | (encoder or {})
            text = Transformer(**shape, decoder_layers=2 if config.text_weight > 0 and examples.translates else 0)
            if teach:
                taught = Transformer(**shape, decoder_layers=2)
                teach(taught, tokenizer)
                text.load_state_dict(taught.state_dict(), strict=False)  # its decoder may be absent
            return tokenizer, text, CrossAttentionUNet(**(UNET | unet), memory_width=text.config.width), None

        pipelines.training.train.build = build  # type: ignore[assignment]
        return {}

    return change


def translating(text: Transformer, tokenizer: Any) -> None:
    """Train a text encoder on translation, before the pictures: 150 batches of 64 captions."""
    examples, collator = SceneExamples(16, 1), Collator(tokenizer, 1, 0.0, 16)
    optimizer = AdamW(text.parameters(), 1e-3, betas=(0.9, 0.99), fused=True)
    for step in range(150):
        captions = [scenes.tellings(examples.seed, step * 64 + i, ("en", "zh")) for i in range(64)]
        ids, mask, _ = collator.read([a.caption for a, _ in captions], [[]] * 64, (16, 16))
        targets = collator.write([b.caption for _, b in captions])
        with torch.autocast("cpu", torch.bfloat16, enabled=pipelines.training.train.bf16_is_fast()):
            loss = text_loss(text, text.encode(ids, mask), mask, *targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def adamw(learning_rate: float) -> Callable[[], Settings]:
    """AdamW for all weights."""

    def change() -> Settings:
        def optimizer(model: TextToImageModel, learning_rate: float, weight_decay: float) -> AdamW:
            group = {"params": list(model.parameters()), "lr_scale": 1.0}
            return AdamW([group], learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)

        pipelines.training.train.muon = optimizer  # type: ignore[assignment]
        return {"learning_rate": learning_rate}

    return change


def predict(what: str) -> Callable[[], Settings]:
    """The network predicts the velocity or the noise instead of the clean picture."""

    def velocity(prediction: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        if what == "velocity":
            return prediction
        t = t.clamp(0.02, 0.98).to(noisy.dtype).view(-1, 1, 1, 1)  # at 1 the input is the noise: no velocity follows
        return (prediction - noisy) / (1 - t)

    def change() -> Settings:
        flow.velocity_from = velocity
        return {}

    return change


def times(shift: float) -> Callable[[], Settings]:
    """Another shift of the sampled times towards noise; 1 is none."""

    def change() -> Settings:
        flow.time_shift = lambda side: shift
        return {}

    return change


def equal_weights() -> Settings:
    """The error of the velocity has the same weight at all noise levels."""
    flow.LEAST_TIME = 1e-3
    return {}


def masks_below(level: float) -> Callable[[], Settings]:
    """Masks supervise attention only below a noise level."""

    def change() -> Settings:
        plain = grounding.token_loss
        latest: dict[str, Tensor] = {}

        def token_loss(weights: Tensor, masks: Tensor, grid: tuple[int, int]) -> Tensor:
            return plain(weights, masks * (latest["times"] < level).view(-1, 1, 1, 1), grid)

        forward = TextToImageModel.forward

        def noting_times(self: TextToImageModel, batch: Any, *rest: Any) -> Any:
            latest["times"] = batch.times
            return forward(self, batch, *rest)

        grounding.token_loss, TextToImageModel.forward = token_loss, noting_times  # type: ignore[assignment,method-assign]
        return {}

    return change


def mixture(shares: Callable[[int], Sequence[float]]) -> Callable[[], Settings]:
    """Other shares of the kinds of scenes (one, count, two, relation, three), as a function of the scene's index."""

    def change() -> Settings:
        plain = scenes.tellings

        def tellings(seed: int, index: int, languages: Sequence[str], kind: str | None = None, *rest: Any) -> list:
            if kind is None:
                kind = str(np.random.default_rng((seed, index, 1)).choice(scene_module.KINDS, p=shares(index)))
            return plain(seed, index, languages, kind, *rest)

        replace_tellings(tellings)
        return {}

    return change


def any_order() -> Settings:
    """Captions list objects in any order, not from left to right or from top to bottom."""
    scene_module._in_reading_order = lambda objects: objects
    return {}


def curriculum(index: int) -> Sequence[float]:
    """A curriculum: from scenes with one kind of object to training's own mixture."""
    late = min(1.0, index / 12_000)  # half of a run
    return [late * own + (1 - late) * first for own, first in zip(MIXTURE, (0.7, 0.2, 0.1, 0.0, 0.0), strict=True)]


class WithNull(MultiHeadAttention):
    """Cross-attention that may also read one learnt vector, which is no token: a home for "attend to nothing"."""

    def __init__(self, width: int, heads: int, memory_width: int | None = None, **rest: Any):
        super().__init__(width, heads, memory_width, **rest)
        self.null = None if memory_width is None else nn.Parameter(torch.zeros(memory_width))

    def forward(
        self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None, record: Record | None = None
    ) -> Tensor:
        if memory is None or self.null is None:
            return super().forward(x, memory, mask, record)
        memory = torch.cat([memory, self.null.to(memory.dtype).expand(len(memory), 1, -1)], dim=1)
        mask = None if mask is None else F.pad(mask, (0, 1), value=True)

        def of_tokens(weights: Tensor) -> None:
            assert record is not None
            record(weights[..., :-1])

        return super().forward(x, memory, mask, None if record is None else of_tokens)


def null_key() -> Settings:
    """One learnt key and value in each layer of cross-attention, beside those of the tokens."""
    unet_module.MultiHeadAttention = WithNull  # type: ignore[misc]
    return {}


def direction(weight: float) -> Callable[[], Settings]:
    """The cosine of predicted and true velocity in the loss, beside their squared difference (arXiv 2410.10356)."""

    def change() -> Settings:
        plain = flow.loss

        def loss(prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
            cosine = F.cosine_similarity(prediction.float().flatten(1), target.float().flatten(1))
            return plain(prediction, target, t) + weight * (1 - cosine) * (t / flow.LEAST_TIME).clamp_max(1).square()

        flow.loss = loss
        return {}

    return change


def dispersed(weight: float) -> Callable[[], Settings]:
    """Features of the coarsest grid's last block are pushed apart between a batch's pictures (arXiv 2506.09027)."""

    def change() -> Settings:
        plain, forward, latest = flow.loss, unet_module.UNetBlock.forward, {}

        def noting(self: Any, x: Tensor, *rest: Any) -> Tensor:
            out = forward(self, x, *rest)
            if self.level == len(UNET["block_out_channels"]) - 1:
                latest["coarsest"] = out
            return out

        def loss(prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
            found = latest["coarsest"].float().flatten(1)
            distances = torch.cdist(found, found).square() / found.shape[1]
            return plain(prediction, target, t) + weight * (-distances / 0.5).exp().mean().log()

        unet_module.UNetBlock.forward = noting  # type: ignore[method-assign]
        flow.loss = loss
        return {}

    return change


def words_as_targets(weight: float) -> Callable[[], Settings]:
    """Half of the features at 4×4, on the way down, represent the words whose objects cover a position.

    Targets of REPA (arXiv 2410.06940) without its teacher: the sum of one random vector for each word, by exact masks.
    """
    vectors = torch.randn(10_000, UNET["block_out_channels"][1] // 2, generator=torch.Generator().manual_seed(0))

    def change() -> Settings:
        plain, forward, block_forward = flow.loss, TextToImageModel.forward, unet_module.UNetBlock.forward
        latest: dict[str, Any] = {}

        def noting_batch(self: TextToImageModel, batch: Any, *rest: Any) -> Any:
            latest.clear()
            latest["batch"] = batch
            return forward(self, batch, *rest)

        def noting_features(self: Any, x: Tensor, *rest: Any) -> Tensor:
            out = block_forward(self, x, *rest)
            if self.level == 1:
                latest.setdefault("features", out)  # of the first such block of a step
            return out

        def loss(prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
            features, batch = latest["features"].float(), latest["batch"]
            cover = F.adaptive_avg_pool2d(batch.masks, features.shape[2:])  # (B, T, h, w)
            meant = torch.einsum("bthw,btd->bdhw", cover, vectors[batch.ids])
            missed = 1 - F.cosine_similarity(features[:, : vectors.shape[1]], meant)  # (B, h, w)
            covered = cover.sum(dim=1)
            missed = (missed * covered).sum(dim=(1, 2)) / covered.sum(dim=(1, 2)).clamp_min(1e-6)
            return plain(prediction, target, t) + weight * missed

        flow.loss, TextToImageModel.forward = loss, noting_batch  # type: ignore[method-assign]
        unet_module.UNetBlock.forward = noting_features  # type: ignore[method-assign]
        return {}

    return change


def exhaustive_first() -> Settings:
    """In the first half of training captions name the ground even where they may omit it."""
    plain, write = scenes.tellings, scenes.write_captions
    latest = {"exhaustive": False}

    def write_captions(*scene: Any) -> list:
        found = write(*scene)
        while latest["exhaustive"] and not all(any(w.kind == "ground" for w in s.words) for s in found):
            found = write(*scene)
        return found

    def tellings(seed: int, index: int, languages: Sequence[str], kind: str | None = None, *rest: Any) -> list:
        latest["exhaustive"] = kind is None and index < 12_000  # test prompts have a kind
        return plain(seed, index, languages, kind, *rest)

    scenes.write_captions = write_captions
    replace_tellings(tellings)
    return {}


three_that_pay = settings(mask_weight=0.3, learning_rate=4e-3, caption_dropout=0.0)


def today(*changes: Callable[[], Settings]) -> Callable[[], Settings]:
    """Changes to the recipe of today instead: three settings, and times shifted by half as much."""

    def change() -> Settings:
        found = three_that_pay() | times(1.5)()
        for another in changes:
            found |= another()
        return found

    return change


TODAY = "masks ×3, learning rate ×2, caption dropout 0, times shifted by 1.5"
"""The variant with the recipe of `train`, which the variants named "today, …" change."""

VARIANTS: dict[str, Callable[[], Settings]] = {
    "as it is": settings(),
    "no masks": settings(mask_weight=0.0),
    "AdamW 1e-3": adamw(1e-3),
    "no translation": settings(text_weight=0.0),
    "translation first": networks(teach=translating),
    "velocity-prediction": predict("velocity"),
    "noise-prediction": predict("noise"),
    "batch 16": settings(batch_size=16),
    "batch 64": settings(batch_size=64),
    "learning rate ×0.5": settings(learning_rate=1e-3),
    "learning rate ×2": settings(learning_rate=4e-3),
    "patch 4": networks(
        patch_size=4,
        block_out_channels=(64, 96),
        layers_per_block=(2, 2),
        cross_attention=(True, True),
        self_attention=(False, True),
    ),
    "wider": networks(block_out_channels=(48, 96, 144)),
    "narrower": networks(block_out_channels=(24, 48, 72)),
    "text at 4 and 2 only": networks(cross_attention=(False, True, True)),
    "text at 8 only": networks(cross_attention=(True, False, False), self_attention=(False, False, False)),
    "1 encoder layer": networks(encoder={"encoder_layers": 1}),
    "6 encoder layers": networks(encoder={"encoder_layers": 6}),
    "times not shifted": times(1.0),
    "times shifted by 6": times(6.0),
    "masks ×3": settings(mask_weight=0.3),
    "masks ×3, learning rate ×2": settings(mask_weight=0.3, learning_rate=4e-3),
    "masks below noise 0.5": masks_below(0.5),
    "lists in any order": any_order,
    "translation first alone": lambda: networks(teach=translating)() | {"text_weight": 0.0},
    "translation ×10": settings(text_weight=1.0),
    "one object first": mixture(curriculum),
    "relations half as often": mixture(lambda index: [0.2, 0.25, 0.25, 0.15, 0.15]),
    "AdamW 3e-3": adamw(3e-3),
    "all noise levels alike": equal_weights,
    "no self-attention": networks(self_attention=(False, False, False)),
    "8 heads": networks(heads=8),
    "caption dropout 0": settings(caption_dropout=0.0),
    "masks ×3, learning rate ×2, caption dropout 0": three_that_pay,
    TODAY: today(),
    "today, a null key": today(null_key),
    "today, cosine of the velocity": today(direction(0.05)),
    "today, features dispersed": today(dispersed(0.02)),
    "today, a wider finest level": today(networks(block_out_channels=(48, 64, 96))),
    "today, words as targets of features": today(words_as_targets(0.1)),
    "today, exhaustive captions first": today(exhaustive_first),
    "today, 6 encoder layers": today(networks(encoder={"encoder_layers": 6})),
}

SAME_COST = {
    name
    for name in VARIANTS
    if name.startswith(("masks", "learning rate", "translation ×", "times", "caption", "today"))
}
"""Variants that get as many steps as the unchanged recipe: they change a number only, or their steps cost about as much
as today's, by the CPU time of whole runs (`results/recipe-today.json`: 0.97 to 1.13 of it)."""
