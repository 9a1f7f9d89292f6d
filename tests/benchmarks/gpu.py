"""Everything that computes, once on an accelerator, within eight minutes: does it run, is it right, and how fast?

    python tests/benchmarks/gpu.py --out gpu.json

Each part runs in a process of its own, with a limit of time, and its result is written as soon as it is known. A part
that fails or takes too long leaves its last lines of output, and the next one begins. Nothing here needs the page or a
network. The last part trains for the time that is left.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipelines import TextToImagePipeline, TranslationPipeline, attribute, trace, verify
from pipelines.bench.device import WIDTHS, minutes_to_obey, rates
from pipelines.bench.speed import product_seconds
from pipelines.runs.folder import LOG
from pipelines.runs.machine import machine
from pipelines.runs.processes import find_device
from pipelines.runs.rows import read_rows
from pipelines.scenes.worlds import world_of
from pipelines.text_to_image import bundled_models
from pipelines.training.config import TextConfig
from pipelines.training.recipe import bf16_is_fast
from pipelines.training.train import TrainConfig, train
from pipelines.training.train_text import train_text

PROMPTS = {
    "shapes": "a red circle left of a blue square",
    "emoji": "a dog and a rocket",
    "everyday": "a cat and a moon",
}
"""World -> a prompt for its models."""

ROOT = Path(__file__).parents[2]


def draw() -> dict[str, Any]:
    """Pictures and maps of the bundled models, compared with the CPU's in fp32; and what reads them."""
    report: dict[str, Any] = {"machine": machine(find_device())}
    for name in bundled_models():
        found = []
        for device in (torch.device("cpu"), find_device()):
            pipe = TextToImagePipeline.from_pretrained(name).to(device)
            pipe.set_progress_bar_config(disable=True)
            prompt = PROMPTS[world_of(pipe.tokenizer)]
            with trace(pipe, keep="full") as attention:
                picture = pipe(prompt, generator=torch.Generator().manual_seed(0), output_type="pt").images.cpu()
            found.append((picture, torch.stack([attention.heatmap(word) for word in attention.words])))
        (here, maps), (there, their_maps) = found
        report[name] = {
            "largest difference of a pixel": (here - there).abs().max().item(),
            "largest difference of a map": (maps - their_maps).abs().max().item(),
            "verified": str(verify(pipe, steps=4)),
            "verified in bf16": str(
                verify(TextToImagePipeline.from_pretrained(name).to(device, torch.bfloat16), steps=4)
            ),
        }
        pixels = (there[0].permute(1, 2, 0) * 255).round().byte().numpy()
        attribute(pipe, Image.fromarray(pixels), prompt)
        report[name]["translation"] = TranslationPipeline(pipe.tokenizer, pipe.text_encoder)(prompt)[0].text
    return report


def runs(steps: int = 50, batch_size: int = 256) -> dict[str, Any]:
    """A run, resumed; its student; a run on pairs of sentences: the steps that their logs hold, and their speed."""
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        settings: dict[str, Any] = {"batch_size": batch_size, "every": steps}
        train(TrainConfig(out=str(out / "run"), steps=steps, **settings))
        train(TrainConfig(out=str(out / "run")), resume=True, changes={"steps": 2 * steps})
        train(TrainConfig(out=str(out / "student"), distill=str(out / "run"), steps=steps, **settings))
        pairs = out / "pairs.tsv"
        pairs.write_text("".join(f"number {i}\tnr. {i}\n" for i in range(100)))
        train_text(TextConfig(pairs=str(pairs), out=str(out / "text"), steps=steps, every=steps))
        for name in ("run", "student", "text"):
            report[name] = read_rows(out / name / LOG)
    return report


def launched(*options: str) -> dict[str, Any]:
    """A short run under `accelerate launch`, as several GPUs train, here with one process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", *options, "-m", "ui.cli"]
        command += ["train", "--out", f"{folder}/run", "--steps", "20", "--batch-size", "256", "--every", "20"]
        subprocess.run(command, check=True)
        return {"log": read_rows(Path(folder) / "run" / LOG)}


def speed(name: str) -> dict[str, Any]:
    """Compiled training and sampling at one of `WIDTHS`, as shares of the rate of matrix products."""
    device, side = find_device(), 8192
    dtype = torch.bfloat16 if bf16_is_fast() else torch.float32
    rate = 2 * side**3 / product_seconds(device, dtype, side)
    return {"matrix-product TFLOP/s": rate / 1e12} | rates(*WIDTHS[name], 64, device, rate)


def obey(seconds: float) -> dict[str, Any]:
    """A model trained for about so many seconds, judged: the minutes it took, and the share of pictures all correct."""
    began = time.monotonic()
    first = minutes_to_obey(100, 256, 4, 64, find_device())
    fixed = time.monotonic() - began - first["minutes"] * 60  # loading, judging
    steps = int((seconds - (time.monotonic() - began) - 3 * fixed - 20) / (first["minutes"] * 60 / 100))
    return {"of 100 steps": first} | minutes_to_obey(max(100, steps), 256, 50, 64, find_device())


PARTS: dict[str, tuple[Callable[[], dict[str, Any]], float]] = {
    "draw": (draw, 90),
    "runs": (runs, 90),
    "DDP": (lambda: launched("--multi_gpu"), 60),
    "FSDP": (lambda: launched("--use_fsdp", "--fsdp_version", "2"), 60),
    "speed as bundled": (lambda: speed("as bundled"), 120),
    "speed wide": (lambda: speed("wide"), 120),
}
"""Name -> what it runs, and its limit in seconds."""

LAST = "obey"


def run_part(name: str, seconds: float, folder: Path) -> dict[str, Any]:
    """The result of a part that runs in a process of its own, or its last lines of output."""
    answer, began = folder / "part.json", time.monotonic()
    command = [sys.executable, __file__, "--part", name, "--minutes", str(seconds / 60), "--out", str(answer)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with open(folder / "output.txt", "w+") as output:
        try:
            subprocess.run(command, stdout=output, stderr=output, timeout=seconds, check=True, env=environment)
            result = json.loads(answer.read_text())
        except (subprocess.SubprocessError, OSError) as error:
            output.seek(0)
            result = {"error": str(error)[-200:], "output": output.read()[-3000:]}
    return result | {"seconds": round(time.monotonic() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--minutes", type=float, default=8.0, help="the limit for everything together")
    parser.add_argument("--part", choices=[*PARTS, LAST], help="run this part alone, in this process")
    options = parser.parse_args()
    if options.part:
        result = obey(options.minutes * 60) if options.part == LAST else PARTS[options.part][0]()
        options.out.write_text(json.dumps(result))
        return
    end = time.monotonic() + options.minutes * 60
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, limit in {name: limit for name, (_, limit) in PARTS.items()} | {LAST: 3600.0}.items():
            seconds = min(limit, end - time.monotonic())
            report[name] = run_part(name, seconds, Path(folder)) if seconds > 20 else {"error": "no time was left"}
            options.out.write_text(json.dumps(report, indent=1) + "\n")
            print(name, json.dumps(report[name])[:1000], flush=True)


if __name__ == "__main__":
    main()
