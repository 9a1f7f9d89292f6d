"""Agreement of a model by sampler, number of steps and guidance, on the fixed test prompts.

    python tests/benchmarks/samplers.py --model shapes --out samplers.json

If the file exists, only the missing runs are measured and added. The cost of a picture is its number of passes through
the UNet; a guided step takes two.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from pipelines import TextToImagePipeline
from pipelines.evaluation.agreement import evaluate
from pipelines.runs.machine import machine
from pipelines.scenes.scene import KINDS
from pipelines.text_to_image import with_sampler

SEEDS = 2  # pictures of each prompt
ALWAYS, LATE, NEVER = (3.0, (0.0, 1.0)), (3.0, (0.0, 0.6)), (1.0, (0.0, 1.0))
GUIDANCE = {"always": ALWAYS, "below noise 0.6": LATE, "never": NEVER}
RUNS = [("Euler", steps, name) for steps in (20, 8, 4) for name in GUIDANCE]
RUNS += [("Euler, stochastic", steps, "never") for steps in (20, 12, 8, 6, 4)]
RUNS += [("Euler", steps, name) for steps in (6, 3, 2) for name in ("never", "below noise 0.6")]
RUNS += [(sampler, steps, "never") for sampler in ("Heun", "DPM-Solver++", "UniPC") for steps in (2, 3, 4, 6, 8, 20)]


def measure(pipe: TextToImagePipeline, sampler: str, steps: int, guidance: str, count: int) -> dict[str, Any]:
    """The figures of both splits, and the number of passes per picture."""
    pipe = with_sampler(pipe, sampler)
    scale, interval = GUIDANCE[guidance]
    rows = 0

    def counted(module: object, args: tuple[Tensor, ...], out: object) -> None:
        nonlocal rows
        rows += len(args[0])

    handle = pipe.unet.register_forward_hook(counted)
    report = evaluate(
        lambda prompts, **settings: pipe(prompts, guidance_interval=interval, **settings),
        count,
        range(SEEDS),
        num_inference_steps=steps,
        guidance_scale=scale,
    )
    handle.remove()
    pictures = report["seen"]["model"]["all_correct"]["n"] + report["held_out"]["model"]["all_correct"]["n"]
    figures = {split: report[split]["model"] for split in ("seen", "held_out")}
    return {"sampler": sampler, "steps": steps, "guidance": guidance, "passes": rows / pictures} | figures


def run_of(found: dict[str, Any]) -> tuple[str, int, str]:
    """The one of `RUNS` that a row belongs to."""
    return found["sampler"], found["steps"], found["guidance"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--prompts", type=int, default=50, help="number per kind and split")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    pipe = TextToImagePipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    report: dict[str, Any] = {"machine": machine(), "model": arguments.model, "runs": []}
    if arguments.out.exists():
        report = json.loads(arguments.out.read_text())
        counts = {found["seen"]["all_correct"]["n"] for found in report["runs"]}
        asked = arguments.prompts * len(KINDS) * SEEDS
        if report["model"] != arguments.model or not counts <= {asked}:
            parser.error(f"{arguments.out} is of model {report['model']} and {counts} pictures a split, not {asked}")
    measured = {run_of(found) for found in report["runs"]}
    for run in [run for run in RUNS if run not in measured]:
        found = measure(pipe, *run, arguments.prompts) | {"machine": machine()}
        report["runs"] = sorted([*report["runs"], found], key=lambda found: RUNS.index(run_of(found)))
        shares = " / ".join(f"{100 * found[split]['all_correct']['share']:.1f}" for split in ("seen", "held_out"))
        print(f"{run[0]:17} {run[1]:3} steps, guided {run[2]:16} {found['passes']:5.1f} passes  {shares}", flush=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
