"""The recipe, one change at a time, on equal CPU time: what a change is worth in agreement with the prompt.

    python tests/benchmarks/recipe.py --out recipe.json --minutes 10 --seeds 0 1 --jobs 2

Scenes at 32×32 pixels, where a run is short, and a UNet whose attention has the grids it has at 64×64. Each run is a
process of its own with one thread, which also makes its batches. A few steps tell what a step of it costs in CPU time,
and it then trains for as many as fit the budget, with its learning rate's schedule cut to them; its averaged weights
draw the fixed test prompts as `train` leaves them to be drawn. Runs of the recipe as it is also say what weights draw
that are not averaged, and what guidance does. Rows that are in the file already are not measured again, so it can be
stopped at any time and gone on with.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import AdamW

import pipelines.train
from pipelines import TextToImagePipeline, scenes
from pipelines.checkpoint import checkpoints
from pipelines.dataset import Collator, SceneExamples
from pipelines.evaluate import evaluate
from pipelines.machine import code_version, machine
from pipelines.objective import TextToImageModel, text_loss
from pipelines.text_to_image import read_prompts
from pipelines.tokenizer import train_tokenizer
from pipelines.train import TrainConfig, train
from unet_xattn import CrossAttentionUNet, Transformer, flow, grounding

SIZE = 32
UNET = {
    "sample_size": SIZE,
    "block_out_channels": (64, 128, 160),
    "layers_per_block": (1, 1, 1),
    "cross_attention": (True, True, True),
    "self_attention": (False, True, True),
}
MIXTURE = (0.15, 0.2, 0.2, 0.3, 0.15)
"""Shares of the kinds in `scenes.scene`."""

Settings = dict[str, Any]


def settings(**changes: Any) -> Callable[[], Settings]:
    """A variant by settings that training has."""
    return lambda: changes


def networks(
    encoder: Settings | None = None, teach: Callable[[Transformer, Any], None] | None = None, **unet: Any
) -> Callable[[], Settings]:
    """A variant by the shape of its networks, or by what its text encoder is taught before."""

    def change() -> Settings:
        def build(config: TrainConfig, examples: Any, translates: bool) -> tuple:
            tokenizer = train_tokenizer(examples.captions())
            shape = {"vocab_size": len(tokenizer)} | (encoder or {})
            text = Transformer(**shape, decoder_layers=2 if translates else 0)
            if teach:
                taught = Transformer(**shape, decoder_layers=2)
                teach(taught, tokenizer)
                text.load_state_dict(taught.state_dict(), strict=False)  # it may have no decoder
            return tokenizer, text, CrossAttentionUNet(**(UNET | unet), memory_width=text.config.width), None

        pipelines.train.build = build  # type: ignore[assignment]
        return {}

    return change


def translating(text: Transformer, tokenizer: Any) -> None:
    """Translation learnt before the pictures: 150 batches of captions, about a minute of CPU time."""
    examples, collator = SceneExamples(16, 1), Collator(tokenizer, 1, 0.0, 16)
    optimizer = AdamW(text.parameters(), 1e-3, betas=(0.9, 0.99), fused=True)
    for step in range(150):
        said = [scenes.tellings(examples.seed, step * 64 + i, ("en", "zh")[:: (-1) ** i]) for i in range(64)]
        ids, mask, _ = collator.read([a.caption for a, _ in said], [[]] * 64, (16, 16))
        targets = collator.write([b.caption for _, b in said])
        with torch.autocast("cpu", torch.bfloat16, enabled=pipelines.train.bf16_is_fast()):
            loss = text_loss(text, text.encode(ids, mask), mask, *targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def adamw(learning_rate: float) -> Callable[[], Settings]:
    """AdamW for every weight."""

    def change() -> Settings:
        def optimizer(model: TextToImageModel, rate: float, decay: float) -> AdamW:
            return AdamW(model.parameters(), rate, betas=(0.9, 0.99), weight_decay=decay, fused=True)

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

        def noted(self: TextToImageModel, batch: Any, *rest: Any) -> Any:
            known["times"] = batch.times
            return forward(self, batch, *rest)

        grounding.token_loss, TextToImageModel.forward = visible, noted  # type: ignore[assignment,method-assign]
        return {}

    return change


def mixture(shares: Callable[[int], Sequence[float]]) -> Callable[[], Settings]:
    """Other shares of the kinds of scenes, (one, count, two, relation, three), by the scene's index."""

    def change() -> Settings:
        plain = scenes.tellings

        def tellings(seed: int, index: int, languages: Sequence[str], kind: str | None = None, *rest: Any) -> list:
            if kind is None:
                kind = str(np.random.default_rng((seed, index, 1)).choice(scenes.KINDS, p=shares(index)))
            return plain(seed, index, languages, kind, *rest)

        scenes.tellings = tellings
        return {}

    return change


def any_order() -> Settings:
    """Lists of things name them in any order, not from left to right or from top to bottom."""
    scenes._in_reading_order = lambda objects: objects
    return {}


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
    "lists in any order": any_order,
    "translation first": networks(teach=translating),
    "translation first, not beside": lambda: networks(teach=translating)() | {"text_weight": 0.0},
    "no translation": settings(text_weight=0.0),
    "translation ×10": settings(text_weight=1.0),
    "one object first": mixture(curriculum),
    "relations half as often": mixture(lambda index: [0.2, 0.25, 0.25, 0.15, 0.15]),
    "batch 32": settings(batch_size=32),
    "batch 128": settings(batch_size=128),
    "learning rate ×0.5": settings(learning_rate=1e-3),
    "learning rate ×2": settings(learning_rate=4e-3),
    "AdamW 1e-3": adamw(1e-3),
    "AdamW 3e-4": adamw(3e-4),
    "EMA ×0.5": settings(ema_sigma=0.05),
    "EMA ×2": settings(ema_sigma=0.2),
    "times not shifted": times(1.0),
    "times shifted by 6": times(6.0),
    "velocity-prediction": predict("velocity"),
    "noise-prediction": predict("noise"),
    "all noise levels alike": equal_weights,
    "patch 4": networks(
        patch_size=4,
        block_out_channels=(128, 160),
        layers_per_block=(2, 2),
        cross_attention=(True, True),
        self_attention=(False, True),
    ),
    "wider": networks(block_out_channels=(96, 192, 224)),
    "narrower": networks(block_out_channels=(48, 96, 112)),
    "text at 8 and 4 only": networks(cross_attention=(False, True, True)),
    "text at 16 only": networks(cross_attention=(True, False, False), self_attention=(False, False, False)),
    "no self-attention": networks(self_attention=(False, False, False)),
    "8 heads": networks(heads=8),
    "1 encoder layer": networks(encoder={"encoder_layers": 1}),
    "6 encoder layers": networks(encoder={"encoder_layers": 6}),
    "caption dropout 0": settings(caption_dropout=0.0),
}
DRAWINGS: dict[str, Settings] = {
    "guided by 2": {"guidance_scale": 2.0},
    "guided by 3": {"guidance_scale": 3.0},
    "guided by 3 below noise 0.6": {"guidance_scale": 3.0, "guidance_interval": (0.0, 0.6)},
    "guided by 3 above noise 0.6": {"guidance_scale": 3.0, "guidance_interval": (0.6, 1.0)},
}
"""How pictures of the recipe as it is are drawn besides."""


def run(name: str, seed: int, steps: int, out: Path, draw: int) -> dict[str, Any]:
    """Train a variant for so many steps and say what it draws; `draw` 0 only trains."""
    networks()()  # the variant may have others
    changes = VARIANTS[name]()
    config = TrainConfig(out=str(out), steps=steps, seed=seed, size=SIZE, every=steps, warmup=min(200, steps // 5))
    if draw and name == "as it is":
        config = replace(config, milestone=max(1, steps // 4))
    pipelines.train.validate = lambda *rest: {}  # type: ignore[assignment]
    pipelines.train.draw_samples = lambda *rest: {}  # type: ignore[assignment]
    pipelines.train.loader_workers = lambda _: 0  # a variant's changes are to this process
    before = time.process_time()
    train(replace(config, **changes))
    spent = {"CPU seconds": time.process_time() - before}
    if not draw:
        return spent
    pipe = TextToImagePipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    found = spent | _agreement(pipe, draw)
    if name != "as it is":
        return found
    drawings = {way: _agreement(pipe, draw, **settings) for way, settings in DRAWINGS.items()}
    latest, *_, earliest = checkpoints(out / "checkpoints")
    drawings["autoguided by 2"] = _agreement(
        _autoguided(pipe, _networks(pipe, earliest / "ema.safetensors"), 2.0), draw
    )
    last = _networks(pipe, latest / "model.safetensors")
    parts = pipe.components | {"text_encoder": last.text_encoder, "unet": last.unet}
    drawings["not averaged"] = _agreement(TextToImagePipeline(**parts, **pipe.settings), draw)
    return found | {"drawn otherwise": drawings}


def _networks(pipe: TextToImagePipeline, weights: Path) -> TextToImageModel:
    """Networks as a pipeline's, with weights of a checkpoint."""
    model = copy.deepcopy(TextToImageModel(pipe.text_encoder, pipe.unet)).eval()  # type: ignore[arg-type]
    found = {key.removeprefix("module."): value for key, value in load_file(weights).items()}
    model.load_state_dict({key: value for key, value in found.items() if key != "n_averaged"})
    return model


def _autoguided(pipe: TextToImagePipeline, early: TextToImageModel, scale: float) -> Callable[..., Any]:
    """Away from what an earlier model says of the same prompt, instead of from no prompt (arXiv 2406.02507)."""

    @torch.no_grad()
    def draw(prompts: list[str], num_inference_steps: int, generator: list[torch.Generator], **_: Any) -> Any:
        ids, mask = read_prompts(pipe.tokenizer, prompts)
        late_memory, early_memory = pipe.text_encoder.encode(ids, mask), early.text_encoder.encode(ids, mask)  # type: ignore[union-attr]
        x = torch.stack([torch.randn(3, SIZE, SIZE, generator=g) for g in generator])
        scheduler = copy.deepcopy(pipe.scheduler)
        scheduler.set_timesteps(sigmas=[1 - i / num_inference_steps for i in range(num_inference_steps)])
        for t in scheduler.timesteps:
            towards = pipe.unet(x, t, late_memory, mask).sample
            away = early.unet(x, t, early_memory, mask).sample
            x = scheduler.step(away + scale * (towards - away), t, x, generator=generator).prev_sample
        return SimpleNamespace(images=((x.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy())

    return draw


def _agreement(pipe: Callable[..., Any], count: int, guidance_scale: float = 1.0, **settings: Any) -> dict[str, Any]:
    def drawn(prompts: list[str], **given: Any) -> Any:
        return pipe(prompts, **given, **settings)

    report = evaluate(drawn, count, seeds=(0,), guidance_scale=guidance_scale)
    splits = ("seen", "held_out")
    shares: dict[str, Any] = {split: _shares(report[split]["model"]) for split in splits}
    return shares | {"ceiling": {split: _shares(report[split]["ceiling"])["all_correct"] for split in splits}}


def _shares(entries: dict[str, Any]) -> dict[str, Any]:
    """The shares of what `evaluate` counts, and of how many."""
    flat = {tag: entry for tag, entry in entries.items() if tag != "kinds"} | entries["kinds"]
    return {tag: round(entry["share"], 4) for tag, entry in flat.items()}


def measured(
    name: str, seed: int, minutes: float, draw: int, known: tuple[float, float] | None = None
) -> dict[str, Any]:
    """One row: a variant trained for so many minutes of CPU time, its start among them.

    known: seconds that the start and a step of it take, where an earlier row says so.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if known is None:
            few, many = (_in_process(name, seed, n, Path(scratch) / str(n), 0)["CPU seconds"] for n in (5, 35))
            known = few - (many - few) / 6, (many - few) / 30
        start, step = known
        steps = max(10, round((minutes * 60 - start) / step))
        found = _in_process(name, seed, steps, Path(scratch) / "run", draw)
    costs = {"CPU seconds of the start": round(start, 3), "CPU seconds a step": round(step, 3)}
    where = {"machine": machine(), "code": code_version()}
    return {"variant": name, "seed": seed, "steps": steps} | costs | found | where


def _in_process(name: str, seed: int, steps: int, out: Path, draw: int) -> dict[str, Any]:
    answer = out.with_suffix(".json")
    command = [sys.executable, __file__, "--one", name, "--seeds", str(seed), "--steps", str(steps)]
    command += ["--draw", str(draw), "--run", str(out), "--out", str(answer)]
    with open(out.with_suffix(".log"), "w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return json.loads(answer.read_text())


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as Markdown, the best first: all-correct of each seed, both splits together, and some tags' means."""
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_variant.setdefault(row["variant"], []).append(row)
        for way, drawn in row.get("drawn otherwise", {}).items():
            by_variant.setdefault(f"drawn {way}", []).append({"steps": row["steps"]} | drawn)

    def share(row: dict[str, Any], tag: str) -> float:
        return 100 * float(np.mean([row[split][tag] for split in ("seen", "held_out")]))

    tags = {"all_correct": "mean", "colours": "colours", "two": "two", "position": "position", "counting": "counting"}
    lines = [
        f"| change | steps | all correct, each seed | {' | '.join(tags.values())} |",
        "|:--|--:|--:|" + "--:|" * len(tags),
    ]
    means = {name: {t: np.mean([share(r, t) for r in found]) for t in tags} for name, found in by_variant.items()}
    for name, found in sorted(by_variant.items(), key=lambda item: -means[item[0]]["all_correct"]):
        each = " / ".join(f"{share(row, 'all_correct'):.1f}" for row in found)
        steps = np.mean([row["steps"] for row in found])
        cells = " | ".join(f"{mean:.1f}" for mean in means[name].values())
        lines.append(f"| {name} | {steps:,.0f} | {each} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0, help="of CPU time, for each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; no more than there are cores")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--draw", type=int, default=50, help="prompts of each kind and split")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what the processes are told
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        torch.set_num_threads(1)
        found = run(arguments.one, arguments.seeds[0], arguments.steps, arguments.run, arguments.draw)
        arguments.out.write_text(json.dumps(found))
        return
    report: dict[str, Any] = {"minutes": arguments.minutes, "prompts of each kind": arguments.draw, "rows": []}
    if arguments.out.exists():
        report = json.loads(arguments.out.read_text())
        if report["minutes"] != arguments.minutes or report["prompts of each kind"] != arguments.draw:
            parser.error(
                f"{arguments.out} is of runs of {report['minutes']} minutes: one budget for all, or another file"
            )
    there = {(row["variant"], row["seed"]) for row in report["rows"]}
    todo = [(name, seed) for seed in arguments.seeds for name in arguments.only if (name, seed) not in there]
    costs = {row["variant"]: (row["CPU seconds of the start"], row["CPU seconds a step"]) for row in report["rows"]}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        budget = arguments.minutes, arguments.draw
        rows = [pool.submit(measured, name, seed, *budget, costs.get(name)) for name, seed in todo]
        for row in as_completed(rows):
            report["rows"].append(row.result())
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
            print(table(report["rows"]), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
