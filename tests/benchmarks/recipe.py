"""The recipe, one change at a time, on equal CPU time: what a change is worth in agreement with the prompt.

    python tests/benchmarks/recipe.py --out recipe.json --minutes 30 --seeds 0 1 --jobs 2

Scenes of four shapes in four colours at 32×32 pixels, where a run is short, and a UNet whose attention has the grids it
has at 64×64. Each run is a process of its own with one thread, which also makes its batches. A few steps tell what a
step of it costs in CPU time, and it then trains for as many as fit the budget, with its learning rate's schedule cut to
them; its averaged weights draw the fixed test prompts as `train` leaves them to be drawn. Runs of the recipe as it is
also say what other averages of the same run's weights draw, and what guidance does. Rows that are in the file already
are not measured again, so it can be stopped at any time and gone on with.

Fewer minutes than about 25 tell little: after 15 a tenth of the pictures are right, with the recipe as it is.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from recipe_variants import SIZE, VARIANTS, Settings, networks, small_world
from safetensors.torch import load_file
from torch import Tensor

import pipelines.train
from pipelines import TextToImagePipeline
from pipelines.checkpoint import checkpoints
from pipelines.evaluate import evaluate
from pipelines.machine import code_version, machine
from pipelines.objective import TextToImageModel
from pipelines.recipe import power_function_ema
from pipelines.text_to_image import read_prompts
from pipelines.train import TrainConfig, train

DRAWINGS: dict[str, Settings] = {
    "guided by 2": {"guidance_scale": 2.0},
    "guided by 3": {"guidance_scale": 3.0},
    "guided by 3 below noise 0.6": {"guidance_scale": 3.0, "guidance_interval": (0.0, 0.6)},
    "guided by 3 above noise 0.6": {"guidance_scale": 3.0, "guidance_interval": (0.6, 1.0)},
}
"""How pictures of the recipe as it is are drawn besides."""


AVERAGES = {"EMA ×0.5": 0.05, "EMA ×2": 0.2}
"""Other windows of averaging, by their `ema_sigma`: the same run's weights have all of them."""


def averaging(others: dict[str, list[Tensor]]) -> Callable[[float], Callable[..., None]]:
    """What makes the average of a run's weights; it keeps `AVERAGES` beside it, in `others`."""

    def make(sigma: float) -> Callable[..., None]:
        own, beside = power_function_ema(sigma), {n: power_function_ema(s) for n, s in AVERAGES.items()}

        def update(averaged: list[Tensor], current: list[Tensor], updates: Tensor) -> None:
            for name, average in beside.items():
                average(others.setdefault(name, [t.clone() for t in averaged]), current, updates)
            own(averaged, current, updates)

        return update

    return make


def run(name: str, seed: int, steps: int, out: Path, draw: int) -> dict[str, Any]:
    """Train a variant for so many steps and say what it draws; `draw` 0 only trains."""
    small_world()
    networks()()  # the variant may have others
    changes = VARIANTS[name]()
    config = TrainConfig(out=str(out), steps=steps, seed=seed, size=SIZE, every=steps, warmup=min(200, steps // 5))
    others: dict[str, list[Tensor]] = {}
    if draw and name == "as it is":
        config = replace(config, milestone=max(1, steps // 4))
        pipelines.train.power_function_ema = averaging(others)
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
    early = _networks(pipe, _weights(earliest / "ema.safetensors"))
    drawings["autoguided by 2"] = _agreement(_autoguided(pipe, early, 2.0), draw)
    names = [key for key, _ in early.named_parameters()]
    weights = {way: dict(zip(names, others[way], strict=True)) for way in AVERAGES}
    for way, found_weights in (weights | {"not averaged": _weights(latest / "model.safetensors")}).items():
        other = _networks(pipe, found_weights)
        parts = pipe.components | {"text_encoder": other.text_encoder, "unet": other.unet}
        drawings[way] = _agreement(TextToImagePipeline(**parts, **pipe.settings), draw)
    return found | {"drawn otherwise": drawings}


def _weights(path: Path) -> dict[str, Tensor]:
    found = {key.removeprefix("module."): value for key, value in load_file(path).items()}
    return {key: value for key, value in found.items() if key != "n_averaged"}


def _networks(pipe: TextToImagePipeline, weights: dict[str, Tensor]) -> TextToImageModel:
    """Networks as a pipeline's, with these weights."""
    model = copy.deepcopy(TextToImageModel(pipe.text_encoder, pipe.unet)).eval()  # type: ignore[arg-type]
    model.load_state_dict(weights)
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
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if ran.returncode:
        raise RuntimeError(f"{name}, seed {seed}: {(ran.stderr.splitlines() or ['no word of why'])[-1]}")
    return json.loads(answer.read_text())


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as Markdown, the best first: all-correct of each seed, both splits together, and some tags' means."""
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_variant.setdefault(row["variant"], []).append(row)
        for way, drawn in row.get("drawn otherwise", {}).items():
            by_variant.setdefault(f"· {way}", []).append({"steps": row["steps"]} | drawn)

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
    parser.add_argument("--minutes", type=float, default=30.0, help="of CPU time, for each run")
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
    todo = [(name, seed) for name in arguments.only for seed in arguments.seeds if (name, seed) not in there]
    costs = {row["variant"]: (row["CPU seconds of the start"], row["CPU seconds a step"]) for row in report["rows"]}
    failures = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        budget = arguments.minutes, arguments.draw
        rows = [pool.submit(measured, name, seed, *budget, costs.get(name)) for name, seed in todo]
        for row in as_completed(rows):
            if error := row.exception():  # the others go on: hours may be in them
                failures.append(str(error))
                continue
            report["rows"].append(row.result())
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
            print(table(report["rows"]), end="\n\n", flush=True)
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
