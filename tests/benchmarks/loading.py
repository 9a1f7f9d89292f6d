"""The time training waits for its pictures, the processor time they cost, and the memory they take.

    python tests/benchmarks/loading.py --out loading.json

The data is of two kinds: synthetic picture files of 64×64 pixels, and the endless scenes. Training steps of the default
model are timed separately from the wait for their batches, which another process makes meanwhile. Memory is that of a
process that decodes all files and reads each once, first for a tenth of them.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipelines.data.batches import Batch, Collator, batches
from pipelines.data.pictures import PictureExamples
from pipelines.data.scenes import SceneExamples
from pipelines.data.stream import Examples
from pipelines.runs.machine import machine
from pipelines.sources.rows import Row
from pipelines.training.objective import TextToImageModel
from pipelines.training.parts import build
from pipelines.training.recipe import attention_kernel, bf16_is_fast, muon
from pipelines.training.train import TrainConfig

SIZE, BATCH = 64, 64
WARM_UP = 2


def write_pictures(folder: Path, count: int) -> None:
    """Write colourful PNG files, all different and the same every time."""
    for i in range(count):
        coarse = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(folder / f"{i:05}.png")


def rows_of(folder: Path, count: int) -> list[Row]:
    rows = []
    for i, path in enumerate(sorted(folder.glob("*.png"))[:count]):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        caption = f"a coarse picture of {i % 100} things, in colours, on a ground of {i % 7} more"
        rows.append(Row(path.name, path.name, caption, path.read_bytes, digest=digest, width=SIZE, height=SIZE))
    return rows


def make_step(examples: Examples) -> tuple[Callable[[Batch], None], Collator]:
    """A full training step of the default model, as in `train`, and the collator of its batches."""
    config = TrainConfig(size=SIZE, batch_size=BATCH)
    tokenizer, text_encoder, unet, _ = build(config, examples)
    model = TextToImageModel(text_encoder, unet.to(memory_format=torch.channels_last))
    optimizer = muon(model, config.learning_rate, config.weight_decay)

    def step(batch: Batch) -> None:
        with attention_kernel("cpu"), torch.autocast("cpu", torch.bfloat16, enabled=bf16_is_fast()):
            losses = model(batch, use_masks=bool(batch.masks.any()))
        (losses.flow + 0.1 * losses.tokens + 0.1 * losses.text).backward()
        optimizer.step()
        optimizer.zero_grad()

    cell = unet.config.patch_size * 2 ** unet.config.cross_attention.index(True)
    return step, Collator(tokenizer, 0, config.caption_dropout, cell)


def measure(examples: Examples, steps: int) -> dict[str, float]:
    """Medians over the steps, in seconds, and shares. On a busy machine, processor time varies less than clock time."""
    step, collator = make_step(examples)
    made = []
    for i in range(4):
        began = time.process_time()
        batch = collator([(place, examples.example(place)) for place in range(i * BATCH, (i + 1) * BATCH)])
        made.append(time.process_time() - began)
    waits, took, worked = [], [], []
    loader = iter(batches(examples, collator, BATCH, 0, (steps + WARM_UP) * BATCH, workers=1))
    while True:
        began = time.perf_counter()
        batch = next(loader, None)
        if batch is None:
            break
        waited, working = time.perf_counter(), time.process_time()
        step(batch)
        waits.append(waited - began)
        took.append(time.perf_counter() - waited)
        worked.append(time.process_time() - working)
    waits, took, worked = waits[WARM_UP:], took[WARM_UP:], worked[WARM_UP:]
    return {
        "wait": median(waits),
        "step": median(took),
        "waiting share": sum(waits) / (sum(waits) + sum(took)),
        "processor time of a batch": median(made),
        "processor time of a step": median(worked),
        "batch's share of both": median(made) / (median(made) + median(worked)),
    }


def anonymous_memory() -> float:
    """The memory of this process that is not mapped from a file, in MiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def load_all(folder: Path, count: int) -> dict[str, float]:
    """Decode `count` files, or find them in the cache, and read each once: seconds, and the peak memory in MiB."""
    rows, peak, done = rows_of(folder, count), 0.0, threading.Event()
    before = anonymous_memory()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    examples = PictureExamples(rows, [(SIZE, SIZE)], seed=0)
    examples.example(0)
    ready = time.perf_counter()
    for place in range(count):
        examples.example(place)
    ended = time.perf_counter()
    done.set()
    watcher.join()
    return {
        "seconds to the first": ready - began,
        "ms an example": (ended - ready) / count * 1e3,
        "MiB before": before,
        "MiB more at most": max(peak - before, 0.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="number of picture files")
    parser.add_argument("--steps", type=int, default=30, help="number of training steps")
    parser.add_argument("--load", type=Path, help="only read the files of this folder, in this process")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.load:
        print(json.dumps(load_all(arguments.load, arguments.count)))
        return
    report: dict[str, Any] = {"machine": machine(), "memory": []}
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch) / "files"
        files.mkdir()
        write_pictures(files, arguments.count)
        for count in (arguments.count // 10, arguments.count):
            for state in ("decoded now", "decoded before"):
                os.environ["UNET_XATTN_CACHE"] = str(Path(scratch) / f"cache-{count}")
                command = [sys.executable, __file__, "--load", str(files), "--count", str(count)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                report["memory"].append({"pictures": count, "state": state} | json.loads(done.stdout))
                print(report["memory"][-1], file=sys.stderr)
        files_examples = PictureExamples(rows_of(files, arguments.count), [(SIZE, SIZE)], 0, BATCH)
        for name, examples in (("files", files_examples), ("scenes", SceneExamples(SIZE, 0))):
            report[name] = measure(examples, arguments.steps)
            print(name, report[name], file=sys.stderr)
    print(text := json.dumps(report, indent=1))
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
