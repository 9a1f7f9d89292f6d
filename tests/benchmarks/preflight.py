"""The speed and the memory of `unet-xattn data check`.

    python tests/benchmarks/preflight.py --out preflight.json

Pictures have 256×256 pixels of coarse colours with a little noise, as PNG and as JPEG. Speed is in pictures per second
of one process's processor time, which other processes do not affect: the median of several rounds, and the ratio to
opening and decoding the same files with Pillow alone, measured in turn. Memory is the peak, above what was used before,
of a process that checks 1,000 and 10,000 different JPEGs of 64×64 pixels.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import psutil
from PIL import Image

from pipelines.runs.machine import machine
from pipelines.sources.check import examine

SIDE, FILES, ROUNDS = 256, 250, 9


def write(folder: Path, kind: str, count: int, side: int) -> None:
    """Write a folder of `count` captioned pictures, all different."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), float)
        grain = random.normal(0, 4, fine.shape)
        Image.fromarray(np.clip(fine + grain, 0, 255).astype(np.uint8)).save(folder / f"{i}.{kind}", quality=90)
        rows.append(json.dumps({"file_name": f"{i}.{kind}", "text": f"picture number {i} of many"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))


def decode(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.suffix != ".jsonl":
            with Image.open(path) as picture:
                picture.load()


def seconds(act: Callable[[], object]) -> float:
    began = time.process_time()
    act()
    return time.process_time() - began


def speed(folder: Path) -> dict[str, float]:
    """Pictures per second of one process, and the ratio to decoding with Pillow alone."""
    looked, decoded = [], []
    for _ in range(ROUNDS):
        looked.append(seconds(lambda: examine(folder, workers=1, progress=False)))
        decoded.append(seconds(lambda: decode(folder)))
    ratios = [d / s for d, s in zip(decoded, looked, strict=True)]
    return {
        "pictures/s": FILES / median(looked),
        "pictures/s, Pillow decoding alone": FILES / median(decoded),
        "ratio": median(ratios),
    }


def memory(folder: Path) -> float:
    """Peak memory, in MiB above the start, of a new process that checks a folder."""
    command = [sys.executable, __file__, "--look", str(folder)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def look(folder: Path) -> None:
    """Check a folder and print the peak memory: the process that `memory` starts."""
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    held = [before]

    def watch() -> None:
        while not done.wait(0.01):
            held.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    report = examine(folder, workers=1, progress=False)
    done.set()
    watcher.join()
    assert report.rows and not report.findings
    print((max(held) - before) / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--look", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.look:
        look(arguments.look)
        return
    report: dict = {"machine": machine(), "side": SIDE, "files": FILES, "rounds": ROUNDS}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in ("png", "jpg"):
            write(Path(scratch) / kind, kind, FILES, SIDE)
            report[kind] = speed(Path(scratch) / kind)
            print(kind, {name: round(value, 2) for name, value in report[kind].items()}, flush=True)
        report["MiB"] = {}
        for count in (1_000, 10_000):
            write(Path(scratch) / str(count), "jpg", count, 64)
            report["MiB"][str(count)] = memory(Path(scratch) / str(count))
            print(f"{count} pictures: {report['MiB'][str(count)]:.1f} MiB", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
