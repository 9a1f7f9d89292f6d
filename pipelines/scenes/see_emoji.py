"""Picture -> objects of the world of emoji, by template matching, without a learned model.

The ground is the most frequent ground colour of the border. Each emoji adds a template to the ground: its premultiplied
colours minus alpha times the ground's colour. Least squares finds emoji, size and position together: the template that
reduces the squared difference between picture and ground most. A coarse search at half resolution proposes candidates
everywhere; a fine search at full resolution decides between them. Pixels that differ from the ground and that no
template explains become unknown objects.

Shapes: h×w pixels, N emoji, n×n pixels of a template's square.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

from pipelines.scenes.emoji import EMOJI_SIZES, glyph
from pipelines.scenes.emoji_font import EMOJI_GROUNDS
from pipelines.scenes.emoji_words import EMOJI
from pipelines.scenes.scene import Object
from pipelines.scenes.sight import UNKNOWN, Sight, check_picture, ground_of, name_of_colour

COARSE_GAIN = 0.3
"""Smallest gain at half resolution, as a share of the template's own squares, that makes a candidate."""

FINE_SEARCHES = 16
"""Largest number of fine searches, each for one emoji in one size, at one place of the picture."""

BLUR = 0.8
"""Standard deviation in pixels of the blur of pictures and templates: a shift of half a pixel still matches."""

RECOGNISED, DETAILED = 0.7, 0.55
"""Smallest share of the squares in its box that a recognised template explains, and smallest correlation of the centred
colours within it. Chosen on scenes of seed 31,415: the minima over 150 single emoji, blurred by 0.5 pixels, shifted by
half a pixel, with noise of 8 and a colour cast of up to 10, are 0.89 and 0.70. Of 134 other emoji 11 pass, most of them
closely related: another snowman, or a peach for an apple."""

CLEAR = 60.0
"""RGB distance from which a pixel differs from the ground."""

SPECK = 0.005
"""Smallest area of an unknown object, in squares of the shorter side: 20 pixels of 64×64."""


@dataclass(frozen=True)
class _Match:
    """An emoji in a size at a position: the top left corner of its box in pixels, and how well it fits.

    gain: by how much it reduces the squared difference between picture and ground.
    """

    name: str
    size: str
    top: int
    left: int
    template: np.ndarray  # (h, w, 3)
    gain: float
    recognised: bool


def see_emoji(picture: np.ndarray) -> Sight:
    """The objects and the ground of a picture (h, w, 3) uint8 of emoji.

    Raises:
        ValueError: not an 8-bit colour picture, or the emoji font is missing.
    """
    check_picture(picture)
    height, width = picture.shape[:2]
    ground = ground_of(picture, EMOJI_GROUNDS)
    pixels = picture - ground  # (h, w, 3)
    objects, masks = [], [np.zeros((0, height, width), np.float32)]
    for match in _find(pixels, ground):
        mask = np.zeros((height, width), np.float32)
        alpha = glyph(match.name, _side(match.size, pixels))[1]
        h, w = alpha.shape
        mask[match.top : match.top + h, match.left : match.left + w] = alpha
        objects.append(_object(match.name, match.size, match.top + h / 2, match.left + w / 2, (h, w), picture))
        masks.append(mask[None])
    explained = ndimage.binary_dilation(np.concatenate(masks).sum(axis=0) > 0, iterations=2)
    unexplained, _ = ndimage.label(((pixels**2).sum(axis=2) > CLEAR**2) & ~explained)
    for index, box in enumerate(ndimage.find_objects(unexplained), 1):
        part = unexplained == index
        if part.sum() >= SPECK * min(height, width) ** 2:
            h, w = (s.stop - s.start for s in box)
            objects.append(_object(UNKNOWN, UNKNOWN, box[0].start + h / 2, box[1].start + w / 2, (h, w), picture))
            masks.append(part[None].astype(np.float32))
    return Sight(tuple(objects), np.concatenate(masks), name_of_colour(ground, EMOJI_GROUNDS))


def _object(name: str, size: str, y: float, x: float, box: tuple[int, int], picture: np.ndarray) -> Object:
    height, width = picture.shape[:2]
    return Object(name, "", size, x / width, y / height, max(box) / 2 / min(height, width))


def _find(pixels: np.ndarray, ground: np.ndarray) -> list[_Match]:
    """The emoji in a picture (h, w, 3) relative to its ground's colour, those with the largest gain first."""
    pixels = ndimage.gaussian_filter(pixels, (BLUR, BLUR, 0), mode="nearest")
    candidates = _candidates(pixels, ground)
    matches: list[_Match] = []
    names = list(EMOJI)
    while len(candidates):
        # All candidates at the place of the best one.
        here = candidates[_overlap(candidates, candidates[0]) > 0.5]
        _, first = np.unique(here[:, :2], axis=0, return_index=True)  # the best position of each emoji in each size
        searched = [
            _search_around(pixels, ground, names[number], list(EMOJI_SIZES)[size], top, left)
            for number, size, top, left in here[np.sort(first)[:FINE_SEARCHES], :4].tolist()
        ]
        best = max(searched, key=lambda match: match.gain)
        if best.recognised:
            matches.append(best)
            h, w = best.template.shape[:2]
            taken = np.array([0, 0, best.top, best.left, h, w])
            pixels[best.top : best.top + h, best.left : best.left + w] -= best.template  # not to be found twice
        else:
            taken = candidates[0]
        candidates = candidates[1:][_overlap(candidates[1:], taken) <= 0.25]
    return matches


def _overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The area that boxes (n, 6) share with a box (6,), divided by the smaller of the two; rows as in `_candidates`."""
    top, left, height, width = boxes[:, 2:].T
    y, x, h, w = box[2:]
    rows = np.minimum(top + height, y + h) - np.maximum(top, y)
    columns = np.minimum(left + width, x + w) - np.maximum(left, x)
    return rows.clip(0) * columns.clip(0) / np.minimum(height * width, h * w)


def _candidates(pixels: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Templates with enough gain at half resolution, the largest first.

    Rows (index of the emoji, index of the size, top, left, height, width), the box in pixels of the picture.
    """
    gains, rows = [], []
    for number, size in enumerate(EMOJI_SIZES):
        colours, alphas, boxes = _templates(_side(size, pixels))
        templates = (colours - alphas * ground).reshape(len(colours), -1)  # (N, n · n · 3)
        square = (templates**2).sum(axis=1)  # (N,)
        n = colours.shape[1]  # of half-resolution pixels
        padded = np.pad(pixels, ((n, n + len(pixels) % 2), (n, n + pixels.shape[1] % 2), (0, 0)))
        half = _halved(padded[None])[0]
        windows = sliding_window_view(half, (n, n), axis=(0, 1)).transpose(0, 1, 3, 4, 2)  # (h', w', n, n, 3)
        gain = 2 * windows.reshape(-1, templates.shape[1]) @ templates.T - square  # (h' · w', N)
        place, emoji = np.nonzero(gain > COARSE_GAIN * square)
        top, left = np.divmod(place, windows.shape[1])
        dy, dx, h, w = boxes[emoji].T
        gains.append(gain[place, emoji])
        rows.append(np.stack([emoji, np.full_like(emoji, number), 2 * top - n + dy, 2 * left - n + dx, h, w], axis=1))
    return np.concatenate(rows)[np.argsort(-np.concatenate(gains), kind="stable")]


def _search_around(pixels: np.ndarray, ground: np.ndarray, name: str, size: str, top: int, left: int) -> _Match:
    """The best position of an emoji within two pixels of (top, left), entirely inside the picture."""
    colours, alpha = _blurred(name, _side(size, pixels))
    template = colours - alpha * ground  # (h, w, 3)
    h, w = alpha.shape[:2]
    y = min(max(top - 2, 0), len(pixels) - h)
    x = min(max(left - 2, 0), pixels.shape[1] - w)
    near = pixels[y : max(top, 0) + h + 2, x : max(left, 0) + w + 2]
    windows = sliding_window_view(near, (h, w), axis=(0, 1))  # (up to 5, up to 5, 3, h, w)
    square = (template**2).sum()
    gain = 2 * np.einsum("abchw,hwc->ab", windows, template) - square
    dy, dx = np.unravel_index(gain.argmax(), gain.shape)
    window = windows[dy, dx].transpose(1, 2, 0)  # (h, w, 3)
    fits = 1 - ((window - template) ** 2).sum() / square >= RECOGNISED
    sharp = glyph(name, _side(size, pixels))[1]
    solid = sharp > 0.9 * sharp.max()  # tiny emoji are nowhere fully opaque
    found, expected = ((part[solid] - part[solid].mean(axis=0)).ravel() for part in (window, template))
    detailed = found @ expected >= DETAILED * np.linalg.norm(found) * np.linalg.norm(expected)
    return _Match(name, size, y + int(dy), x + int(dx), template, float(gain[dy, dx]), bool(fits and detailed))


def _side(size: str, pixels: np.ndarray) -> int:
    return max(1, round(EMOJI_SIZES[size] * min(pixels.shape[:2])))


@cache
def _blurred(name: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The premultiplied colours (h, w, 3) and the alpha (h, w, 1) of an emoji, blurred."""
    premultiplied, alpha = glyph(name, side)
    pixels = np.pad(np.concatenate([premultiplied, alpha[..., None]], axis=2), ((4, 4), (4, 4), (0, 0)))
    pixels = ndimage.gaussian_filter(pixels, (BLUR, BLUR, 0))[4:-4, 4:-4]
    return pixels[..., :3], pixels[..., 3:]


@cache
def _templates(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every emoji in the middle of a square at half resolution.

    Returns premultiplied colours (N, n, n, 3), alpha (N, n, n, 1), and boxes (N, 4): (top, left, height, width) within
    the square, in pixels of the full resolution.
    """
    square = side + side % 2
    pixels = np.zeros((len(EMOJI), square, square, 4), np.float32)
    boxes = []
    for i, name in enumerate(EMOJI):
        colours, alpha = _blurred(name, side)
        h, w = alpha.shape[:2]
        top, left = (square - h) // 2, (square - w) // 2
        pixels[i, top : top + h, left : left + w] = np.concatenate([colours, alpha], axis=2)
        boxes.append((top, left, h, w))
    half = _halved(pixels)
    return half[..., :3], half[..., 3:], np.array(boxes)


def _halved(pixels: np.ndarray) -> np.ndarray:
    """(n, h, w, c) -> (n, h/2, w/2, c), means of four pixels."""
    n, h, w, c = pixels.shape
    return pixels.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
