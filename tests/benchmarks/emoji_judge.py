"""How reliable is the judge of glyphs? Its ceiling on exact and degraded renders, and its floor on exchanged captions.

`python tests/benchmarks/emoji_judge.py --count 20 --out emoji-judge.json`: the test scenes of `evaluate`, both splits.
`--data everyday --size 128` does the same for everyday things.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

from pipelines.evaluation.agreement import SPLITS, fixed_scenes
from pipelines.evaluation.statistics import wilson
from pipelines.scenes.judge import judge
from pipelines.scenes.worlds import render

Degrade = Callable[[np.ndarray, np.random.Generator], np.ndarray]
DEGRADED: dict[str, Degrade] = {
    "exact": lambda picture, rng: picture,
    "blurred by 0.7 pixels": lambda picture, rng: blurred(picture, 0.7),
    "blurred by 1 pixel": lambda picture, rng: blurred(picture, 1.0),
    "half a pixel aside": lambda picture, rng: shifted(picture, 0.5),
    "noise of 12": lambda picture, rng: picture + 12 * rng.standard_normal(picture.shape),
    "noise of 24": lambda picture, rng: picture + 24 * rng.standard_normal(picture.shape),
    "a cast of up to 20": lambda picture, rng: picture + rng.uniform(-20, 20, 3),
    "contrast 0.8": lambda picture, rng: picture.mean() + 0.8 * (picture - picture.mean()),
    "blur 0.5, half aside, noise 8, cast 10": lambda picture, rng: (
        blurred(shifted(picture, 0.5), 0.5) + 8 * rng.standard_normal(picture.shape) + rng.uniform(-10, 10, 3)
    ),
}


def blurred(picture: np.ndarray, deviation: float) -> np.ndarray:
    return ndimage.gaussian_filter(picture, (deviation, deviation, 0))


def shifted(picture: np.ndarray, pixels: float) -> np.ndarray:
    return ndimage.shift(picture, (pixels, pixels, 0), order=1, mode="nearest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="scenes of each kind in each split")
    parser.add_argument("--data", choices=("emoji", "everyday"), default="emoji", help="the world of the scenes")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument("--out", type=Path, required=True, help="a new .json")
    arguments = parser.parse_args()
    scenes = [s for held_out in SPLITS.values() for s in fixed_scenes(arguments.count, held_out, data=arguments.data)]
    renders = [render(s, arguments.size)[0] for s in scenes]
    report, seconds = {}, 0.0
    for name, degrade in DEGRADED.items():
        rng = np.random.default_rng(0)
        pictures = [degrade(p.astype(np.float64), rng).clip(0, 255).round().astype(np.uint8) for p in renders]
        began = time.process_time()
        report[name] = share([judge(s, picture).all_correct for s, picture in zip(scenes, pictures, strict=True)])
        seconds += time.process_time() - began
        print(f"| {name:40} | {line(report[name])} |", flush=True)
    others = np.roll(np.arange(len(scenes)).reshape(-1, arguments.count), 1, axis=1).ravel()
    report["exchanged"] = share([judge(scenes[o], p).all_correct for o, p in zip(others, renders, strict=True)])
    print(f"| {'floor: exchanged captions':40} | {line(report['exchanged'])} |")
    rate = len(scenes) * len(DEGRADED) / seconds
    print(f"{rate:.0f} pictures a second of one thread")
    arguments.out.write_text(json.dumps(report | {"pictures a second of one thread": rate}, indent=1) + "\n")


def share(correct: list[bool]) -> dict[str, float]:
    low, high = wilson(sum(correct), len(correct))
    return {"k": sum(correct), "n": len(correct), "low": low, "high": high}


def line(counted: dict[str, float]) -> str:
    k, n, low, high = counted.values()
    return f"{100 * k / n:5.1f} ({100 * low:.0f}–{100 * high:.0f}) of {n}"


if __name__ == "__main__":
    main()
