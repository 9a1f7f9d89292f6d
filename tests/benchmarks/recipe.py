"""The recipe, one change at a time, on equal CPU time: what a change is worth in agreement with the prompt.

    python tests/benchmarks/recipe.py --out recipe.json --minutes 10 --seeds 0 1

Scenes at 32×32 pixels, where a run is short, and the UNet without its finest level, so that its attention has the grids
it has at 64×64. Each run is a process of its own. A few steps tell what a step of it costs in CPU time, and it then
trains for as many as fit the budget, with its learning rate's schedule cut to them; its averaged weights draw the fixed
test prompts, without guidance. Rows that are in the file already are not measured again, so it can be stopped at any
time and gone on with.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import AdamW

import pipelines.train
from pipelines import TextToImagePipeline, scenes
from pipelines.bench import machine
from pipelines.evaluate import evaluate
from pipelines.objective import TextToImageModel
from pipelines.tokenizer import train_tokenizer
from pipelines.train import TrainConfig, train
from unet_xattn import CrossAttentionUNet, Transformer, flow, grounding

SIZE = 32
UNET = {
    "sample_size": SIZE,
    "block_out_channels": (96, 160, 160),
    "layers_per_block": (2, 1, 1),
    "cross_attention": (True, True, True),
    "self_attention": (False, True, True),
}
MIXTURE = (0.15, 0.2, 0.2, 0.3, 0.15)
"""Shares of the kinds in `scenes.scene`."""

Settings = dict[str, Any]


def settings(**changes: Any) -> Callable[[], Settings]:
    """A variant by settings that training has."""
    return lambda: changes


def networks(encoder: Settings | None = None, **unet: Any) -> Callable[[], Settings]:
    """A variant by the shape of its networks."""

    def change() -> Settings:
        def build(config: TrainConfig, examples: Any, translates: bool) -> tuple:
            tokenizer = train_tokenizer(examples.captions())
            text = Transformer(len(tokenizer), decoder_layers=2 if translates else 0, **(encoder or {}))
            return tokenizer, text, CrossAttentionUNet(**(UNET | unet), memory_width=text.config.width)

        pipelines.train.build = build  # type: ignore[assignment]
        return {}

    return change


def adamw(learning_rate: float) -> Callable[[], Settings]:
    """AdamW for every weight."""

    def change() -> Settings:
        def optimizer(model: TextToImageModel, config: TrainConfig) -> AdamW:
            return AdamW(
                model.parameters(),
                config.learning_rate,
                betas=(0.9, 0.99),
                weight_decay=config.weight_decay,
                fused=True,
            )

        pipelines.train.muon = optimizer  # type: ignore[assignment]
        return {"learning_rate": learning_rate}

    return change


def predict(what: str) -> Callable[[], Settings]:
    """The network says the velocity or the noise itself, not the picture."""

    def velocity(said: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        if what == "velocity":
            return said
        t = t.clamp(0.02, 0.98).to(noisy.dtype).view(-1, 1, 1, 1)  # at 1 nothing but noise is seen, and it says nothing
        return (said - noisy) / (1 - t)

    def change() -> Settings:
        flow.velocity_from = velocity
        return {}

    return change


def times(shift: float) -> Callable[[], Settings]:
    """Times nearer to noise, or not."""

    def change() -> Settings:
        flow.TIME_SHIFT = shift
        return {}

    return change


def equal_weights() -> Settings:
    """Every noise level's error in the velocity counts alike."""
    flow.LEAST_TIME = 1e-3
    return {}


def masks_below(level: float) -> Callable[[], Settings]:
    """Masks supervise attention in proportion to what is visible, and not above a noise level."""

    def change() -> Settings:
        plain = grounding.token_loss
        known: dict[str, Tensor] = {}

        def visible(weights: Tensor, masks: Tensor, grid: tuple[int, int]) -> Tensor:
            return plain(weights, masks * (known["times"] < level).view(-1, 1, 1, 1), grid)

        forward = TextToImageModel.forward

        def noted(self: TextToImageModel, batch: Any, use_masks: bool = True) -> Any:
            known["times"] = batch.times
            return forward(self, batch, use_masks)

        grounding.token_loss, TextToImageModel.forward = visible, noted  # type: ignore[assignment,method-assign]
        return {}

    return change


def mixture(shares: Callable[[int], Sequence[float]]) -> Callable[[], Settings]:
    """Other shares of the kinds of scenes, (one, count, two, relation, three), by the scene's index."""

    def change() -> Settings:
        plain = scenes.scene

        def scene(seed: int, index: int, kind: str | None = None, *rest: Any, **named: Any) -> scenes.Scene:
            if kind is None:
                kind = str(np.random.default_rng((seed, index, 1)).choice(scenes.KINDS, p=shares(index)))
            return plain(seed, index, kind, *rest, **named)

        scenes.scene = scene
        return {}

    return change


def curriculum(index: int) -> Sequence[float]:
    """One object first, then two, then three: from all ones and counts to training's own mixture."""
    late = min(1.0, index / 40_000)
    return [late * own + (1 - late) * first for own, first in zip(MIXTURE, (0.7, 0.2, 0.1, 0.0, 0.0), strict=True)]


VARIANTS: dict[str, Callable[[], Settings]] = {
    "as it is": settings(),
    "no masks": settings(mask_weight=0.0),
    "masks ×0.3": settings(mask_weight=0.03),
    "masks ×3": settings(mask_weight=0.3),
    "masks below noise 0.5": masks_below(0.5),
    "batch 32": settings(batch_size=32),
    "batch 128": settings(batch_size=128),
    "learning rate ×0.5": settings(learning_rate=1e-3),
    "learning rate ×2": settings(learning_rate=4e-3),
    "AdamW 1e-3": adamw(1e-3),
    "AdamW 3e-4": adamw(3e-4),
    "EMA ×0.5": settings(ema_sigma=0.05),
    "EMA ×2": settings(ema_sigma=0.2),
    "patch 4": networks(
        patch_size=4,
        block_out_channels=(160, 160),
        layers_per_block=(2, 2),
        cross_attention=(True, True),
        self_attention=(False, True),
    ),
    "wider": networks(block_out_channels=(128, 224, 224)),
    "narrower": networks(block_out_channels=(64, 112, 112)),
    "text at 8 and 4 only": networks(cross_attention=(False, True, True)),
    "text at 16 only": networks(cross_attention=(True, False, False), self_attention=(False, False, False)),
    "8 heads": networks(heads=8),
    "1 encoder layer": networks(encoder={"encoder_layers": 1}),
    "6 encoder layers": networks(encoder={"encoder_layers": 6}),
    "no translation": settings(text_weight=0.0),
    "translation ×10": settings(text_weight=1.0),
    "times not shifted": times(1.0),
    "times shifted by 6": times(6.0),
    "velocity-prediction": predict("velocity"),
    "noise-prediction": predict("noise"),
    "all noise levels alike": equal_weights,
    "caption dropout 0": settings(caption_dropout=0.0),
    "one object first": mixture(curriculum),
    "relations only half as often": mixture(lambda index: [0.2, 0.25, 0.25, 0.15, 0.15]),
}


def run(name: str, seed: int, steps: int, out: Path, draw: int) -> dict[str, Any]:
    """Train a variant for so many steps and say what its last and its averaged weights draw; `draw` 0 only trains."""
    networks()()  # the variant may have others
    changes = VARIANTS[name]()
    config = TrainConfig(out=str(out), steps=steps, seed=seed, size=SIZE, every=steps, warmup=min(200, steps // 5))
    pipelines.train.validate = lambda *rest: {}  # type: ignore[assignment]
    pipelines.train.draw_samples = lambda *rest: {}  # type: ignore[assignment]
    before = _clock()
    train(replace(config, **changes))
    spent = {"CPU seconds": _clock() - before}
    if not draw:
        return spent
    pipe = TextToImagePipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    found = spent | {"averaged": _agreement(pipe, draw)}
    last = sorted(out.rglob("model.safetensors"))[-1]
    weights = {k.removeprefix("module."): v for k, v in load_file(last).items()}
    TextToImageModel(pipe.text_encoder, pipe.unet).load_state_dict(weights)
    return found | {"last": _agreement(pipe, draw)}


def _agreement(pipe: TextToImagePipeline, count: int) -> dict[str, Any]:
    report = evaluate(pipe, count, seeds=(0,), guidance_scale=1.0)
    return {split: report[split]["model"] for split in ("seen", "held_out")}


def measured(name: str, seed: int, minutes: float, draw: int) -> dict[str, Any]:
    """One row: a variant trained for so many minutes of both cores."""
    budget = minutes * 60 * (os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as scratch:
        few, many = (_in_process(name, seed, n, Path(scratch) / str(n), 0)["CPU seconds"] for n in (5, 45))
        cost = (many - few) / 40  # without the start
        steps = max(10, round(budget / cost))
        found = _in_process(name, seed, steps, Path(scratch) / "run", draw)
    return {"variant": name, "seed": seed, "steps": steps, "CPU seconds a step": cost} | found


def _in_process(name: str, seed: int, steps: int, out: Path, draw: int) -> dict[str, Any]:
    answer = out.with_suffix(".json")
    command = [sys.executable, __file__, "--one", name, "--seeds", str(seed), "--steps", str(steps)]
    subprocess.run([*command, "--draw", str(draw), "--run", str(out), "--out", str(answer)], check=True)
    return json.loads(answer.read_text())


def _clock() -> float:
    """CPU seconds of this process and of its children that have ended."""
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as Markdown, the best first: each seed's all-correct of both splits."""
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_variant.setdefault(row["variant"], []).append(row)

    def share(row: dict[str, Any]) -> float:
        return float(np.mean([row["averaged"][split]["all_correct"]["share"] for split in ("seen", "held_out")]))

    lines = ["| change | steps | all correct, each seed | mean |", "|:--|--:|--:|--:|"]
    for name, found in sorted(by_variant.items(), key=lambda item: -np.mean([share(row) for row in item[1]])):
        each = " / ".join(f"{100 * share(row):.1f}" for row in found)
        steps = np.mean([row["steps"] for row in found])
        lines.append(f"| {name} | {steps:,.0f} | {each} | {100 * np.mean([share(row) for row in found]):.1f} % |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0, help="of all cores, for each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--draw", type=int, default=50, help="prompts of each kind and split")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what the processes are told
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        found = run(arguments.one, arguments.seeds[0], arguments.steps, arguments.run, arguments.draw)
        arguments.out.write_text(json.dumps(found))
        return
    report: dict[str, Any] = {"machine": machine(), "minutes": arguments.minutes, "rows": []}
    if arguments.out.exists():
        report = json.loads(arguments.out.read_text())
    there = {(row["variant"], row["seed"]) for row in report["rows"]}
    for seed in arguments.seeds:
        for name in arguments.only:
            if (name, seed) not in there:
                report["rows"].append(measured(name, seed, arguments.minutes, arguments.draw))
                arguments.out.write_text(json.dumps(report, indent=1) + "\n")
                print(table(report["rows"]), end="\n\n", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    main()
