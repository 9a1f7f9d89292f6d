"""The effect of single changes to the recipe on agreement with the prompt, at equal CPU time.

    python tests/benchmarks/recipe.py --out recipe.json --steps 750 --seeds 0 1 --jobs 2

World and networks are small (`recipe_variants`), and batches have 32 pictures. Each run is a process with one thread,
which also makes its batches. A few steps measure the cost of a variant's step, and the variant trains for as many steps
as take the CPU time of `--steps` of the unchanged recipe, with a schedule of the learning rate over these steps. The
budget is counted in steps, so that another machine can continue the file. The averaged weights get two tests:

- told apart: given two pictures with objects in exchanged colours, or in a reversed relation, is each denoised better
  with its own caption than with the other's? Chance is 50 %. Nothing is drawn, and little training suffices.
- drawn: pictures of the fixed test prompts, with the sampler that `train` saves, are judged.

Runs of the unchanged recipe also measure other averages of the same run's weights, and guidance. Rows that are in the
file are not measured again, so the program can be stopped and restarted at any time.
"""

import argparse
import copy
import json
import math
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
from recipe_variants import (
    BASE_SETTINGS,
    BATCH_SIZE,
    SAME_COST,
    SIZE,
    TIME_SHIFT,
    TODAY,
    VARIANTS,
    Settings,
    networks,
    small_world,
    times,
)
from safetensors.torch import load_file
from told_apart import errors_of, share, told_apart
from torch import Tensor

import pipelines.training.train
from pipelines import TextToImagePipeline
from pipelines.evaluation.agreement import SPLITS, evaluate
from pipelines.runs.checkpoint import checkpoints
from pipelines.runs.machine import code_version, machine
from pipelines.scenes.shapes import SWAPS
from pipelines.text_to_image import read_prompts
from pipelines.training import recipe
from pipelines.training.objective import TextToImageModel
from pipelines.training.recipe import power_function_ema
from pipelines.training.train import TrainConfig, train

BASE = "as it is"

DRAWINGS: dict[str, Settings] = {
    "guided by 2": {"guidance_scale": 2.0},
    "guided by 3": {"guidance_scale": 3.0},
    "guided by 3 below noise 0.6": {"guidance_scale": 3.0, "guidance_interval": (0.0, 0.6)},
    "guided by 3 above noise 0.6": {"guidance_scale": 3.0, "guidance_interval": (0.6, 1.0)},
}
"""Other ways of drawing, measured on the unchanged recipe."""

AVERAGES = {"EMA ×0.5": 0.05, "EMA ×2": 0.2}
"""Other averaging windows and their `ema_sigma`, computed in the same run."""

DRAWN = {"drawn: all correct": "all_correct", "one thing": "one"}
"""Columns of the table about the test prompts: head -> name of the figure."""


def averaging(others: dict[str, list[Tensor]]) -> Callable[[float], Callable[..., None]]:
    """A replacement of `power_function_ema` that also keeps the averages of `AVERAGES`, in `others`."""

    def make(sigma: float) -> Callable[..., None]:
        own, updates_of = power_function_ema(sigma), {n: power_function_ema(s) for n, s in AVERAGES.items()}

        def update(averaged: list[Tensor], current: list[Tensor], updates: Tensor) -> None:
            for name, update_other in updates_of.items():
                update_other(others.setdefault(name, [t.clone() for t in averaged]), current, updates)
            own(averaged, current, updates)

        return update

    return make


def timing(times: list[float]) -> Callable[..., float]:
    """A replacement of `schedule` that also appends the CPU time at which each step first calls it to `times`."""

    def schedule(step: int, *rest: int) -> float:
        if step == len(times):
            times.append(time.process_time())
        return recipe.schedule(step, *rest)

    return schedule


def run(name: str, seed: int, steps: int, out: Path, draw: int) -> dict[str, Any]:
    """Train a variant for `steps` steps and measure what it draws; with `draw` 0 only train it."""
    small_world()
    networks()()  # the variant may replace these
    times(TIME_SHIFT)()
    changes = VARIANTS[name]()
    config = TrainConfig(out=str(out), steps=steps, seed=seed, size=SIZE, every=steps, batch_size=BATCH_SIZE)
    config = replace(config, warmup=min(config.warmup, steps // 5))
    others: dict[str, list[Tensor]] = {}
    if draw and name == BASE:
        config = replace(config, milestone=max(1, steps // 4))
        pipelines.training.train.power_function_ema = averaging(others)
    pipelines.training.train.validate = lambda *rest: {}  # type: ignore[assignment]
    pipelines.training.train.draw_samples = lambda *rest: {}  # type: ignore[assignment]
    pipelines.training.train.loader_workers = lambda _: 0  # a variant patches this process only
    clock = [time.process_time()]  # followed by that of every step except the first
    pipelines.training.train.schedule = timing(clock)  # type: ignore[assignment]
    train(replace(config, **(BASE_SETTINGS | changes)))
    spent: dict[str, Any] = {"step": float(np.median(np.diff(clock[len(clock) // 4 :])))}  # past the warm-up
    spent["start"] = clock[1] - clock[0] - spent["step"]
    if not draw:
        return spent
    pipe = TextToImagePipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    found = {"seconds": spent} | _agreement(pipe, draw) | {"told apart": told_apart(errors_of(pipe), SIZE, 2 * draw)}
    if name != BASE:
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
        other_pipe = TextToImagePipeline(**parts, **pipe.settings)
        drawings[way] = _agreement(other_pipe, draw) | {"told apart": told_apart(errors_of(other_pipe), SIZE, 2 * draw)}
    return found | {"drawn otherwise": drawings}


def _weights(path: Path) -> dict[str, Tensor]:
    found = {key.removeprefix("module."): value for key, value in load_file(path).items()}
    return {key: value for key, value in found.items() if key != "n_averaged"}


def _networks(pipe: TextToImagePipeline, weights: dict[str, Tensor]) -> TextToImageModel:
    """A copy of a pipeline's networks with these weights."""
    model = copy.deepcopy(TextToImageModel(pipe.text_encoder, pipe.unet)).eval()  # type: ignore[arg-type]
    model.load_state_dict(weights)
    return model


def _autoguided(pipe: TextToImagePipeline, early: TextToImageModel, scale: float) -> Callable[..., Any]:
    """Guidance away from an earlier model's prediction for the same prompt (autoguidance, arXiv 2406.02507)."""

    @torch.no_grad()
    def draw(prompts: list[str], num_inference_steps: int, generator: list[torch.Generator], **_: Any) -> Any:
        ids, mask = read_prompts(pipe.tokenizer, prompts)
        late_memory, early_memory = pipe.text_encoder.encode(ids, mask), early.text_encoder.encode(ids, mask)  # type: ignore[union-attr]
        x = torch.stack([torch.randn(3, SIZE, SIZE, generator=g) for g in generator])
        scheduler = copy.deepcopy(pipe.scheduler)
        scheduler.set_timesteps(sigmas=[1 - i / num_inference_steps for i in range(num_inference_steps)])
        for t in scheduler.timesteps:
            velocity = pipe.unet(x, t, late_memory, mask).sample
            worse = early.unet(x, t, early_memory, mask).sample
            x = scheduler.step(worse + scale * (velocity - worse), t, x, generator=generator).prev_sample
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
    """The shares in a report of `evaluate`."""
    flat = {tag: entry for tag, entry in entries.items() if tag not in ("kinds", "atoms")} | entries["kinds"]
    return {tag: round(entry["share"], 4) for tag, entry in flat.items()}


def costs(name: str, seed: int) -> dict[str, float]:
    """CPU seconds of a variant's start and of one of its steps."""
    with tempfile.TemporaryDirectory() as scratch:
        return _in_process(name, seed, 35, Path(scratch) / "run", 0)


def steps_for(name: str, steps: int, base: dict[str, float]) -> int:
    """The number of a variant's steps that takes the CPU time of the unchanged recipe, start and `steps` steps.

    base: the `costs` of the unchanged recipe, measured in the same circumstances.
    """
    if name == BASE or name in SAME_COST:
        return steps
    own = costs(name, 0)
    return max(10, round((base["start"] + steps * base["step"] - own["start"]) / own["step"]))


def measured(name: str, seed: int, steps: int, draw: int) -> dict[str, Any]:
    """The row of a variant trained for `steps` steps."""
    with tempfile.TemporaryDirectory() as scratch:
        found = _in_process(name, seed, steps, Path(scratch) / "run", draw)
    return {"variant": name, "seed": seed, "steps": steps, "machine": machine(), "code": code_version()} | found


def _in_process(name: str, seed: int, steps: int, out: Path, draw: int) -> dict[str, Any]:
    answer = out.with_suffix(".json")
    command = [sys.executable, __file__, "--one", name, "--seeds", str(seed), "--steps", str(steps)]
    command += ["--draw", str(draw), "--run", str(out), "--out", str(answer)]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if ran.returncode:
        raise RuntimeError(f"{name}, seed {seed}: {(ran.stderr.splitlines() or ['no message'])[-1]}")
    return json.loads(answer.read_text())


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as Markdown, the best first: the figures of each seed in %, over both splits.

    "CPU time" is the measured time of training relative to the unchanged recipe, or to today's where there are no rows
    of it. It is not exactly 1, because the number of steps was estimated beforehand.
    """
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        by_variant.setdefault(row["variant"], []).append(row)
        for way, drawn in row.get("drawn otherwise", {}).items():
            by_variant.setdefault(f"· {way}", []).append({"steps": row["steps"]} | drawn)

    def spent(row: dict[str, Any]) -> float:
        return row["seconds"]["start"] + row["steps"] * row["seconds"]["step"]

    compared = next((by_variant[name] for name in (BASE, TODAY) if name in by_variant), [])
    usual = float(np.mean([spent(row) for row in compared])) if compared else math.nan

    def figures(row: dict[str, Any]) -> list[float]:
        told = [share(row["told apart"], swap) for swap in SWAPS] if "told apart" in row else [math.nan] * len(SWAPS)
        return [100 * x for x in (*told, *(np.mean([row[split][tag] for split in SPLITS]) for tag in DRAWN.values()))]

    heads = ["change", "steps", "CPU time", *(f"told apart: {swap}" for swap in SWAPS), *DRAWN]
    lines = []
    for name, found in by_variant.items():
        columns = np.array([figures(row) for row in found]).T  # (figures, seeds)
        cells = [" / ".join("–" if math.isnan(x) else f"{x:.0f}" for x in column) for column in columns]
        rank = columns[: len(SWAPS)].mean(), columns[len(SWAPS)].mean()
        steps = " / ".join(f"{row['steps']:,}" for row in found)
        times = " / ".join(f"{spent(row) / usual:.2f}" if "seconds" in row else "–" for row in found)
        lines.append(([-1 if math.isnan(x) else x for x in rank], f"| {' | '.join([name, steps, times, *cells])} |"))
    head = [f"| {' | '.join(heads)} |", "|:--" + "|--:" * (len(heads) - 1) + "|"]
    return "\n".join(head + [line for _, line in sorted(lines, reverse=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=750, help="of the unchanged recipe: each run gets their CPU time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, at most as many as cores")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--draw", type=int, default=50, help="prompts of each kind and split; pairs: twice as many")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # arguments of the processes
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        torch.set_num_threads(1)
        found = run(arguments.one, arguments.seeds[0], arguments.steps, arguments.run, arguments.draw)
        arguments.out.write_text(json.dumps(found))
        return
    report: dict[str, Any] = {"steps": arguments.steps, "prompts of each kind": arguments.draw, "rows": []}
    if arguments.out.exists():
        report = json.loads(arguments.out.read_text())
        steps, draw = report["steps"], report["prompts of each kind"]
        if (steps, draw) != (arguments.steps, arguments.draw):
            parser.error(f"{arguments.out} was measured with --steps {steps} --draw {draw}: choose another --out")
    measured_before = {(row["variant"], row["seed"]) for row in report["rows"]}
    todo = [(name, seed) for seed in arguments.seeds for name in arguments.only if (name, seed) not in measured_before]
    failures = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        known = {row["variant"]: row["steps"] for row in report["rows"]}  # the same number for all seeds
        base: dict[str, float] = {}
        if any(name not in {BASE, *SAME_COST, *known} for name, _ in todo):
            lanes = list(pool.map(costs, [BASE] * arguments.jobs, range(arguments.jobs)))  # under the load of the runs
            base = {part: float(np.mean([found[part] for found in lanes])) for part in ("start", "step")}

        def job(name: str, seed: int) -> dict[str, Any]:
            if name not in known:
                known[name] = steps_for(name, arguments.steps, base)
            return measured(name, seed, known[name], arguments.draw)

        rows = [pool.submit(job, name, seed) for name, seed in todo]
        for row in as_completed(rows):
            if error := row.exception():  # the others continue, after hours of work perhaps
                failures.append(str(error))
                continue
            report["rows"].append(row.result())
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
            print(table(report["rows"]), end="\n\n", flush=True)
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
