"""The recipe, one change at a time, on equal CPU time: what a change is worth in obedience to the prompt.

    python tests/benchmarks/recipe.py --out recipe.json --steps 750 --seeds 0 1 --jobs 2

In a miniature (`recipe_variants`), and in batches of 32. Each run is a process of its own with one thread, which also
makes its batches. A few steps tell what a step of a change costs, and it trains for as many as take the CPU time of
`--steps` of the recipe as it is, with its learning rate's schedule cut to them: the budget is counted in steps, so that
another machine can go on with the file. The averaged weights are then asked two things:

- told apart: of two pictures with things in exchanged colours, or in a reversed relation, whether each is denoised
  better with its own caption than with the other's, so of 50 % by chance. Nothing is drawn, and little training tells.
- drawn: the fixed test prompts, as `train` leaves a model to draw, judged.

Runs of the recipe as it is also say what other averages of the same run's weights draw, and what guidance does. Rows
that are in the file already are not measured again, so it can be stopped at any time and gone on with.
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
    AS_DEAR,
    AS_IT_WAS,
    BATCH_SIZE,
    SIZE,
    TIME_SHIFT,
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
"""How pictures of the recipe as it is are drawn besides."""


AVERAGES = {"EMA ×0.5": 0.05, "EMA ×2": 0.2}
"""Other windows of averaging, by their `ema_sigma`: the same run's weights have all of them."""

DRAWN = {"drawn: all correct": "all_correct", "one thing": "one"}
"""What the table says of the test prompts: its head -> the figure's name."""


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


def timing(times: list[float]) -> Callable[..., float]:
    """The learning rate's schedule; the CPU time at which each step first asks for it is kept in `times`."""

    def schedule(step: int, *rest: int) -> float:
        if step == len(times):
            times.append(time.process_time())
        return recipe.schedule(step, *rest)

    return schedule


def run(name: str, seed: int, steps: int, out: Path, draw: int) -> dict[str, Any]:
    """Train a variant for so many steps and say what it draws; `draw` 0 only trains."""
    small_world()
    networks()()  # the variant may have others
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
    pipelines.training.train.loader_workers = lambda _: 0  # a variant's changes are to this process
    clock = [time.process_time()]  # and then that of every step but the first
    pipelines.training.train.schedule = timing(clock)  # type: ignore[assignment]
    train(replace(config, **(AS_IT_WAS | changes)))
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


def costs(name: str, seed: int) -> dict[str, float]:
    """Seconds of CPU time that a variant takes to start, and for a step."""
    with tempfile.TemporaryDirectory() as scratch:
        return _in_process(name, seed, 35, Path(scratch) / "run", 0)


def reckoned(name: str, steps: int, base: dict[str, float]) -> int:
    """Steps of a variant that take the CPU time of the recipe as it is, its start and so many steps.

    base: what `costs` says of that one, here and now.
    """
    if name == BASE or name in AS_DEAR:
        return steps
    own = costs(name, 0)
    return max(10, round((base["start"] + steps * base["step"] - own["start"]) / own["step"]))


def measured(name: str, seed: int, steps: int, draw: int) -> dict[str, Any]:
    """One row: a variant trained for so many steps."""
    with tempfile.TemporaryDirectory() as scratch:
        found = _in_process(name, seed, steps, Path(scratch) / "run", draw)
    return {"variant": name, "seed": seed, "steps": steps, "machine": machine(), "code": code_version()} | found


def _in_process(name: str, seed: int, steps: int, out: Path, draw: int) -> dict[str, Any]:
    answer = out.with_suffix(".json")
    command = [sys.executable, __file__, "--one", name, "--seeds", str(seed), "--steps", str(steps)]
    command += ["--draw", str(draw), "--run", str(out), "--out", str(answer)]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if ran.returncode:
        raise RuntimeError(f"{name}, seed {seed}: {(ran.stderr.splitlines() or ['no word of why'])[-1]}")
    return json.loads(answer.read_text())


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as Markdown, the best first: each seed's figures in %, both splits together.

    "CPU time" is what training took after all, the recipe as it is being 1: reckoned beforehand, it cannot be exact.
    """
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        by_variant.setdefault(row["variant"], []).append(row)
        for way, drawn in row.get("drawn otherwise", {}).items():
            by_variant.setdefault(f"· {way}", []).append({"steps": row["steps"]} | drawn)

    def spent(row: dict[str, Any]) -> float:
        return row["seconds"]["start"] + row["steps"] * row["seconds"]["step"]

    usual = float(np.mean([spent(row) for row in by_variant[BASE]])) if BASE in by_variant else math.nan

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
    parser.add_argument("--steps", type=int, default=750, help="of the recipe as it is: each run has their CPU time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; no more than there are cores")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--draw", type=int, default=50, help="prompts of each kind and split; twice as many pairs")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what the processes are told
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
        if report["steps"] != arguments.steps or report["prompts of each kind"] != arguments.draw:
            parser.error(f"{arguments.out} is of runs of {report['steps']} steps: one budget for all, or another file")
    there = {(row["variant"], row["seed"]) for row in report["rows"]}
    todo = [(name, seed) for seed in arguments.seeds for name in arguments.only if (name, seed) not in there]
    failures = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        known = {row["variant"]: row["steps"] for row in report["rows"]}  # every seed's run has as many steps
        base: dict[str, float] = {}
        if any(name not in {BASE, *AS_DEAR, *known} for name, _ in todo):
            lanes = list(pool.map(costs, [BASE] * arguments.jobs, range(arguments.jobs)))  # as busy as they will be
            base = {part: float(np.mean([found[part] for found in lanes])) for part in ("start", "step")}

        def job(name: str, seed: int) -> dict[str, Any]:
            if name not in known:
                known[name] = reckoned(name, arguments.steps, base)
            return measured(name, seed, known[name], arguments.draw)

        rows = [pool.submit(job, name, seed) for name, seed in todo]
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
