"""Picture -> emoji scene by template matching, no learned model.

The ground is what the border mostly is. A picture is that ground plus, for each emoji, a template: alpha times how far
its colours are from the ground's. Where, in which size and which emoji it is are told together by least squares: the
template that takes most away from the squared difference between picture and ground. A coarse look at half the
resolution finds candidates everywhere, a close one at full resolution decides between them. What is left, clear of the
ground and explained by no template, is there too, but unknown.

Shapes: h×w pixels, N emoji, n×n pixels of a template's square.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

from pipelines.scenes.emoji import SIZES, glyph
from pipelines.scenes.emoji_font import GROUNDS
from pipelines.scenes.emoji_words import THINGS
from pipelines.scenes.scene import Object
from pipelines.scenes.sight import UNKNOWN, Sight, check_picture, ground_of, name_of_colour

WORTH_A_LOOK = 0.3
"""Share of a template's own square that it must take away at half resolution to be looked at closely."""

LOOKS = 16
"""How many emoji, each in one size, are looked at closely for one place."""

BLUR = 0.8
"""Standard deviation, in pixels, by which pictures and templates are blurred: half a pixel aside still agrees."""

RECOGNISED, DETAILED = 0.7, 0.55
"""For it to be an emoji: the share of the squares in its box that its template must explain, and the correlation of the
colours within it, less their mean. Chosen on scenes of seed 31,415: of 150 single emoji blurred by 0.5 pixels, half a
pixel aside, under noise of 8 and a cast of up to 10, the least have 0.89 and 0.70; of 134 emoji that are none of ours,
11 pass, most of them near relations, another snowman or a peach for an apple."""

CLEAR = 60.0
"""RGB distance at which a pixel is clear of the ground."""

SPECK = 0.005
"""Area, in squares of the shorter side, below which what is left over is nothing: 20 pixels of 64×64."""


@dataclass(frozen=True)
class _Found:
    """An emoji in a size, where its box begins, in pixels, how much it explains, and whether that is enough."""

    thing: str
    size: str
    top: int
    left: int
    template: np.ndarray  # (h, w, 3)
    gain: float
    recognised: bool


def see_emoji(picture: np.ndarray) -> Sight:
    """What a picture (h, w, 3) uint8 shows.

    Raises:
        ValueError: it is no 8-bit colour picture, or the emoji font is missing.
    """
    check_picture(picture)
    height, width = picture.shape[:2]
    ground = ground_of(picture, GROUNDS)
    pixels = picture - ground  # (h, w, 3)
    objects, masks = [], [np.zeros((0, height, width), np.float32)]
    for found in _find(pixels, ground):
        mask = np.zeros((height, width), np.float32)
        alpha = glyph(found.thing, _side(found.size, pixels))[1]
        h, w = alpha.shape
        mask[found.top : found.top + h, found.left : found.left + w] = alpha
        objects.append(_object(found.thing, found.size, found.top + h / 2, found.left + w / 2, (h, w), picture))
        masks.append(mask[None])
    explained = ndimage.binary_dilation(np.concatenate(masks).sum(axis=0) > 0, iterations=2)
    left_over, _ = ndimage.label(((pixels**2).sum(axis=2) > CLEAR**2) & ~explained)
    for index, box in enumerate(ndimage.find_objects(left_over), 1):
        part = left_over == index
        if part.sum() >= SPECK * min(height, width) ** 2:
            h, w = (s.stop - s.start for s in box)
            objects.append(_object(UNKNOWN, UNKNOWN, box[0].start + h / 2, box[1].start + w / 2, (h, w), picture))
            masks.append(part[None].astype(np.float32))
    return Sight(tuple(objects), np.concatenate(masks), name_of_colour(ground, GROUNDS))


def _object(thing: str, size: str, y: float, x: float, box: tuple[int, int], picture: np.ndarray) -> Object:
    height, width = picture.shape[:2]
    return Object(thing, "", size, x / width, y / height, max(box) / 2 / min(height, width))


def _find(pixels: np.ndarray, ground: np.ndarray) -> list[_Found]:
    """The emoji in a picture relative to its ground's colour, (h, w, 3), those that explain most first."""
    pixels = ndimage.gaussian_filter(pixels, (BLUR, BLUR, 0), mode="nearest")
    candidates = _candidates(pixels, ground)
    found: list[_Found] = []
    names = list(THINGS)
    while len(candidates):
        # All that could be said of the place where the likeliest candidate is.
        here = candidates[_overlap(candidates, candidates[0]) > 0.5]
        _, first = np.unique(here[:, :2], axis=0, return_index=True)  # the best place of an emoji in a size
        looks = [
            _look(pixels, ground, names[thing], list(SIZES)[size], top, left)
            for thing, size, top, left in here[np.sort(first)[:LOOKS], :4].tolist()
        ]
        best = max(looks, key=lambda look: look.gain)
        if best.recognised:
            found.append(best)
            h, w = best.template.shape[:2]
            taken = np.array([0, 0, best.top, best.left, h, w])
            pixels[best.top : best.top + h, best.left : best.left + w] -= best.template  # not to be seen twice
        else:
            taken = candidates[0]
        candidates = candidates[1:][_overlap(candidates[1:], taken) <= 0.25]
    return found


def _overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The area boxes (n, 6) share with a box (6,), as a share of the smaller of the two; rows of `_candidates`."""
    top, left, height, width = boxes[:, 2:].T
    y, x, h, w = box[2:]
    rows = np.minimum(top + height, y + h) - np.maximum(top, y)
    columns = np.minimum(left + width, x + w) - np.maximum(left, x)
    return rows.clip(0) * columns.clip(0) / np.minimum(height * width, h * w)


def _candidates(pixels: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Templates that explain something at half resolution, the most first.

    Rows (number of the emoji, number of the size, top, left, height, width), the box in pixels of the picture.
    """
    gains, rows = [], []
    for number, size in enumerate(SIZES):
        paints, alphas, boxes = _templates(_side(size, pixels))
        templates = (paints - alphas * ground).reshape(len(paints), -1)  # (N, n · n · 3)
        square = (templates**2).sum(axis=1)  # (N,)
        n = paints.shape[1]  # of half-resolution pixels
        padded = np.pad(pixels, ((n, n + len(pixels) % 2), (n, n + pixels.shape[1] % 2), (0, 0)))
        half = _halved(padded[None])[0]
        windows = sliding_window_view(half, (n, n), axis=(0, 1)).transpose(0, 1, 3, 4, 2)  # (h', w', n, n, 3)
        gain = 2 * windows.reshape(-1, templates.shape[1]) @ templates.T - square  # (h' · w', N)
        place, thing = np.nonzero(gain > WORTH_A_LOOK * square)
        top, left = np.divmod(place, windows.shape[1])
        dy, dx, h, w = boxes[thing].T
        gains.append(gain[place, thing])
        rows.append(np.stack([thing, np.full_like(thing, number), 2 * top - n + dy, 2 * left - n + dx, h, w], axis=1))
    return np.concatenate(rows)[np.argsort(-np.concatenate(gains), kind="stable")]


def _look(pixels: np.ndarray, ground: np.ndarray, thing: str, size: str, top: int, left: int) -> _Found:
    """An emoji in a size at the best place within two pixels of (top, left) that has all of it in the picture."""
    paint, alpha = _blurred(thing, _side(size, pixels))
    template = paint - alpha * ground  # (h, w, 3)
    h, w = alpha.shape[:2]
    y = min(max(top - 2, 0), len(pixels) - h)
    x = min(max(left - 2, 0), pixels.shape[1] - w)
    near = pixels[y : max(top, 0) + h + 2, x : max(left, 0) + w + 2]
    windows = sliding_window_view(near, (h, w), axis=(0, 1))  # (up to 5, up to 5, 3, h, w)
    square = (template**2).sum()
    gain = 2 * np.einsum("abchw,hwc->ab", windows, template) - square
    dy, dx = np.unravel_index(gain.argmax(), gain.shape)
    there = windows[dy, dx].transpose(1, 2, 0)  # (h, w, 3)
    fits = 1 - ((there - template) ** 2).sum() / square >= RECOGNISED
    sharp = glyph(thing, _side(size, pixels))[1]
    solid = sharp > 0.9 * sharp.max()  # tiny emoji are nowhere quite opaque
    seen, due = ((part[solid] - part[solid].mean(axis=0)).ravel() for part in (there, template))
    detailed = seen @ due >= DETAILED * np.linalg.norm(seen) * np.linalg.norm(due)
    return _Found(thing, size, y + int(dy), x + int(dx), template, float(gain[dy, dx]), bool(fits and detailed))


def _side(size: str, pixels: np.ndarray) -> int:
    return max(1, round(SIZES[size] * min(pixels.shape[:2])))


@cache
def _blurred(thing: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The light (h, w, 3) and the alpha (h, w, 1) of an emoji, blurred."""
    paint, alpha = glyph(thing, side)
    pixels = np.pad(np.concatenate([paint, alpha[..., None]], axis=2), ((4, 4), (4, 4), (0, 0)))
    pixels = ndimage.gaussian_filter(pixels, (BLUR, BLUR, 0))[4:-4, 4:-4]
    return pixels[..., :3], pixels[..., 3:]


@cache
def _templates(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every emoji amid a square at half resolution: its light (N, n, n, 3) and alpha (N, n, n, 1), and its box, (N, 4).

    Boxes are (top, left, height, width) in pixels of the full resolution, within the square.
    """
    square = side + side % 2
    pixels = np.zeros((len(THINGS), square, square, 4), np.float32)
    boxes = []
    for i, thing in enumerate(THINGS):
        paint, alpha = _blurred(thing, side)
        h, w = alpha.shape[:2]
        top, left = (square - h) // 2, (square - w) // 2
        pixels[i, top : top + h, left : left + w] = np.concatenate([paint, alpha], axis=2)
        boxes.append((top, left, h, w))
    half = _halved(pixels)
    return half[..., :3], half[..., 3:], np.array(boxes)


def _halved(pixels: np.ndarray) -> np.ndarray:
    """(n, h, w, c) -> (n, h/2, w/2, c), means of four pixels."""
    n, h, w, c = pixels.shape
    return pixels.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
