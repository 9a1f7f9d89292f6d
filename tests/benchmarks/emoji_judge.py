"""How far the judge of emoji can be trusted: its ceiling on renders, exact and spoilt; its floor, captions exchanged.

`python tests/benchmarks/emoji_judge.py --count 20 --out emoji-judge.json`: `evaluate`'s test scenes, seen and held-out.
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
from pipelines.scenes.scene import KINDS
from pipelines.scenes.worlds import render

Spoil = Callable[[np.ndarray, np.random.Generator], np.ndarray]
SPOILT: dict[str, Spoil] = {
    "exact": lambda picture, rng: picture,
    "blurred by 0.7 pixels": lambda picture, rng: blurred(picture, 0.7),
    "blurred by 1 pixel": lambda picture, rng: blurred(picture, 1.0),
    "half a pixel aside": lambda picture, rng: aside(picture, 0.5),
    "noise of 12": lambda picture, rng: picture + 12 * rng.standard_normal(picture.shape),
    "noise of 24": lambda picture, rng: picture + 24 * rng.standard_normal(picture.shape),
    "a cast of up to 20": lambda picture, rng: picture + rng.uniform(-20, 20, 3),
    "contrast 0.8": lambda picture, rng: picture.mean() + 0.8 * (picture - picture.mean()),
    "blur 0.5, half aside, noise 8, cast 10": lambda picture, rng: (
        blurred(aside(picture, 0.5), 0.5) + 8 * rng.standard_normal(picture.shape) + rng.uniform(-10, 10, 3)
    ),
}


def blurred(picture: np.ndarray, deviation: float) -> np.ndarray:
    return ndimage.gaussian_filter(picture, (deviation, deviation, 0))


def aside(picture: np.ndarray, pixels: float) -> np.ndarray:
    return ndimage.shift(picture, (pixels, pixels, 0), order=1, mode="nearest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="scenes of each kind in each split")
    parser.add_argument("--out", type=Path, required=True, help="a new .json")
    asked = parser.parse_args()
    scenes = [s for held_out in SPLITS.values() for s in fixed_scenes(asked.count, held_out, data="emoji")]
    renders = [render(s)[0] for s in scenes]
    report, seconds = {}, 0.0
    for name, spoil in SPOILT.items():
        rng = np.random.default_rng(0)
        spoilt = [spoil(picture.astype(np.float64), rng).clip(0, 255).round().astype(np.uint8) for picture in renders]
        began = time.process_time()
        report[name] = share([judge(s, picture).all_correct for s, picture in zip(scenes, spoilt, strict=True)])
        seconds += time.process_time() - began
        print(f"| {name:40} | {line(report[name])} |", flush=True)
    others = np.roll(np.arange(len(scenes)).reshape(len(SPLITS) * len(KINDS), -1), 1, axis=1).ravel()
    report["exchanged"] = share([judge(scenes[o], p).all_correct for o, p in zip(others, renders, strict=True)])
    print(f"| {'floor: exchanged captions':40} | {line(report['exchanged'])} |")
    rate = len(scenes) * len(SPOILT) / seconds
    print(f"{rate:.0f} pictures a second of one thread")
    asked.out.write_text(json.dumps(report | {"pictures a second of one thread": rate}, indent=1) + "\n")


def share(right: list[bool]) -> dict[str, float]:
    low, high = wilson(sum(right), len(right))
    return {"k": sum(right), "n": len(right), "low": low, "high": high}


def line(counted: dict[str, float]) -> str:
    k, n, low, high = counted.values()
    return f"{100 * k / n:5.1f} ({100 * low:.0f}–{100 * high:.0f}) of {n}"


if __name__ == "__main__":
    main()
