"""Scenes on which maps are harder to get right than on those of training: hidden parts, restless grounds, many things.

A hard scene is a pure function of its arguments. Its caption names every thing, its masks are exact, and a mask is what
is visible of its thing.

Shapes: h×w pixels.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice

import numpy as np
from scipy import ndimage

from pipelines.scenes.scene import Scene, place, write_captions
from pipelines.scenes.worlds import WORLDS, World, render

LEAST_VISIBLE, MOST_VISIBLE = 0.4, 0.9
"""Of overlapping things each shows at least the first share of itself, and one of them at most the second."""

TEXTURE, SLOPE, NOISE = 16.0, 45.0, 15.0
"""In levels of 255: deviation of a texture, how far a gradient leads up and down, deviation of noise."""

REACH = 1.15
"""Half the side of the box around the largest shape of radius 1; emoji have a reach of 1."""


@dataclass(frozen=True)
class HardScene:
    """A scene, its picture (h, w, 3) uint8, and the mask of each object, (objects, h, w) float32 in [0, 1]."""

    scene: Scene
    picture: np.ndarray
    masks: np.ndarray


def hard_scene(data: str, seed: int, index: int, hardness: str, size: int = 64) -> HardScene:
    """The scene number `index` of the endless series `seed`, in one of the `WORLDS`, hard in one of `HARDNESSES`."""
    rng = np.random.default_rng((seed, index, list(HARDNESSES).index(hardness)))
    arrange, paint, noise = HARDNESSES[hardness]
    scene = arrange(WORLDS[data], rng, seed, index)
    picture, masks = render(scene, size)
    uncovered = 1 - masks.sum(axis=0)[..., None]  # (h, w, 1)
    plain = picture[np.unravel_index(uncovered.argmax(), uncovered.shape)[:2]].astype(np.float32)  # (3,)
    things = picture - uncovered * plain  # (h, w, 3), premultiplied
    thing = (things * masks[0][..., None]).sum(axis=(0, 1)) / (masks[0] ** 2).sum()  # (3,), colour of the first
    painted = things + uncovered * paint(rng, plain, thing, size) + noise * rng.normal(size=picture.shape)
    return HardScene(scene, painted.round().clip(0, 255).astype(np.uint8), masks)


# Which things are where: functions of world, generator, seed and index.


def _as_in_training(world: World, rng: np.random.Generator, seed: int, index: int) -> Scene:
    return world.scene(seed, index)


def _overlapping(world: World, rng: np.random.Generator, seed: int, index: int) -> Scene:
    """Two or three things of different colours, of which each hides a part of the one before."""
    scenes = (world.scene(seed, i, ("two", "three")[index % 2]) for i in count(1000 * index))
    scene = next(s for s in scenes if len({o.colour or o.shape for o in s.objects}) == len(s.objects))
    while True:
        placed = [replace(scene.objects[0], x=rng.uniform(), y=rng.uniform())]
        for o in scene.objects[1:]:
            before, angle = placed[-1], rng.uniform(0, 2 * math.pi)
            apart = rng.uniform(0.5, 1.1) * (o.radius + before.radius)
            placed.append(replace(o, x=before.x + apart * math.cos(angle), y=before.y + apart * math.sin(angle)))
        if all(REACH * o.radius < side < 1 - REACH * o.radius for o in placed for side in (o.x, o.y)):
            moved = replace(scene, objects=tuple(placed))
            alone = [render(replace(moved, objects=(o,)))[1].sum() for o in placed]
            visible = render(moved)[1].sum(axis=(1, 2)) / alone
            if LEAST_VISIBLE <= visible.min() <= MOST_VISIBLE:
                return _captioned(world, rng, moved)


def _many(world: World, rng: np.random.Generator, seed: int, index: int) -> Scene:
    """Four or five different small things, of several scenes with the same ground."""
    scenes = (world.scene(seed, i, "three") for i in count(1000 * index))
    scene = next(scenes)
    radius = next(o.radius for s in scenes for o in s.objects if o.size == "small")
    different = {o.shape: o for s in [scene, *islice(_with_ground(scenes, scene.ground), 20)] for o in s.objects}
    small = [replace(o, size="small", radius=radius) for o in list(different.values())[: 4 + index % 2]]
    placed, _ = place(rng, "three", small, reach=REACH if world.lexicon.colours else 1.0, gap=0.01)
    return _captioned(world, rng, replace(scene, objects=placed))


def _with_ground(scenes: Iterator[Scene], ground: str) -> Iterator[Scene]:
    return (scene for scene in scenes if scene.ground == ground)


def _captioned(world: World, rng: np.random.Generator, scene: Scene) -> Scene:
    return write_captions(rng, replace(scene, relation=None), ("en",), world.lexicon)[0]


# What is behind them: functions of generator, the ground's colour (3,), that of the first thing (3,), and size.


def _plain(rng: np.random.Generator, ground: np.ndarray, thing: np.ndarray, size: int) -> np.ndarray:
    return ground


def _gradient(rng: np.random.Generator, ground: np.ndarray, thing: np.ndarray, size: int) -> np.ndarray:
    """Brighter from one side to the other, and of another tint."""
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    angle = rng.uniform(0, 2 * math.pi)
    along = (x * math.cos(angle) + y * math.sin(angle)) * math.sqrt(2)  # from -1 to 1 at most
    return ground + SLOPE * along[..., None] * rng.uniform(0.5, 1.0, 3)


def _texture(rng: np.random.Generator, ground: np.ndarray, thing: np.ndarray, size: int) -> np.ndarray:
    """Stripes, checks, or clouds whose amplitude falls with the frequency, as that of photographs does."""
    y, x = np.mgrid[:size, :size] * (64 / size)
    wave = rng.uniform(4, 10)
    kind = rng.integers(3)
    if kind == 0:
        angle = rng.uniform(0, math.pi)
        pattern = np.sign(np.sin(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / wave))
    elif kind == 1:
        pattern = np.sign(np.sin(2 * math.pi * x / wave) * np.sin(2 * math.pi * y / wave))
    else:
        frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
        frequency[0, 0] = np.inf
        pattern = np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) / frequency).real
        pattern /= pattern.std()
    return ground + TEXTURE * ndimage.gaussian_filter(pattern, 0.5)[..., None] * rng.uniform(0.6, 1.2, 3)


def _camouflage(rng: np.random.Generator, ground: np.ndarray, thing: np.ndarray, size: int) -> np.ndarray:
    """A ground of the colour family of the first thing: half way between the two."""
    return (ground + thing) / 2


HARDNESSES: dict[str, tuple[Callable[..., Scene], Callable[..., np.ndarray], float]] = {
    "overlap": (_overlapping, _plain, 0.0),
    "many": (_many, _plain, 0.0),
    "gradient": (_as_in_training, _gradient, 0.0),
    "texture": (_as_in_training, _texture, 0.0),
    "noise": (_as_in_training, _plain, NOISE),
    "camouflage": (_as_in_training, _camouflage, 0.0),
    "together": (_overlapping, _texture, NOISE),
}
"""Kind of hardness -> which things are where, what is behind them, and the standard deviation of noise over all."""
