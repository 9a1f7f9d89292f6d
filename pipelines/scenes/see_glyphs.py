"""Picture -> objects of a world of glyphs, by template matching, without a learned model.

The ground is the most frequent ground colour of the border. Each glyph adds a template to the ground: its premultiplied
colours minus alpha times the ground's colour. Least squares finds glyph, size and position together: the template that
reduces the squared difference between picture and ground most. A coarse search on a reduced picture proposes candidates
everywhere; a fine search at full resolution decides between them. Pixels that differ from the ground and that no
template explains become unknown objects.

Shapes: h×w pixels, N things, n×n cells of a template's square.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

from pipelines.scenes.emoji_font import EMOJI_GROUNDS
from pipelines.scenes.glyphs import Glyph
from pipelines.scenes.scene import Object
from pipelines.scenes.sight import UNKNOWN, Sight, check_picture, ground_of, name_of_colour

COARSE_GAIN = 0.3
"""Smallest gain on the reduced picture, as a share of the template's own squares, that makes a candidate."""

BLUR = 0.8
"""Standard deviation in pixels, at 64×64, of the blur of pictures and templates: a shift of half a pixel still matches.
It grows with the square root of the side: larger pictures have finer details, but not in proportion."""

RECOGNISED, DETAILED = 0.7, 0.55
"""Smallest share of the squares in its box that a recognised template explains, and smallest correlation of the centred
colours within it. Chosen on scenes of emoji of seed 31,415: the minima over 150 single emoji, blurred by 0.5 pixels,
shifted by half a pixel, with noise of 8 and a colour cast of up to 10, are 0.89 and 0.70. Of 134 other emoji 11 pass,
most of them closely related: another snowman, or a peach for an apple."""

CERTAIN = 0.85
"""Share of a template's squares from which it is preferred to others that would gain more but explain less."""

CLEAR = 60.0
"""RGB distance from which a pixel differs from the ground."""

SPECK = 0.005
"""Smallest area of an unknown object, in squares of the shorter side: 20 pixels of 64×64."""

Thing = tuple[str, str]
"""The noun of a thing, and its colour, "" for one with its own colours."""


@dataclass(frozen=True, eq=False)
class Glyphs:
    """The glyphs that a world's pictures are made of.

    sides: the longer sides they are drawn in, as shares of the picture's shorter side.
    draw: the glyph of a thing whose longer side has so many pixels.
    size_names: the names of these sides in a picture with so many objects; sides without a name are "?".
    fine_searches: largest number of fine searches, each for one thing in one size, at one place of the picture.
    """

    things: Sequence[Thing]
    sides: Sequence[float]
    draw: Callable[[Thing, int], Glyph]
    size_names: Callable[[int], Mapping[float, str]]
    fine_searches: int = 16


@dataclass(frozen=True)
class _Match:
    """A thing in a size at a position: the top left corner of its box in pixels, and how well it fits.

    gain: by how much it reduces the squared difference between picture and ground.
    explained: the share of the template's squares that the picture has.
    """

    thing: Thing
    share: float  # its side
    top: int
    left: int
    template: np.ndarray  # (h, w, 3)
    gain: float
    explained: float
    recognised: bool


def see_glyphs(picture: np.ndarray, glyphs: Glyphs) -> Sight:
    """The objects and the ground of a picture (h, w, 3) uint8.

    Raises:
        ValueError: not an 8-bit colour picture, or the emoji font is missing.
    """
    check_picture(picture)
    height, width = picture.shape[:2]
    ground = ground_of(picture, EMOJI_GROUNDS)
    pixels = picture - ground  # (h, w, 3)
    found, masks = [], [np.zeros((0, height, width), np.float32)]
    for match in _Search(glyphs, pixels, ground).find():
        mask = np.zeros((height, width), np.float32)
        alpha = glyphs.draw(match.thing, side_of(match.share, height, width))[1]
        h, w = alpha.shape
        mask[match.top : match.top + h, match.left : match.left + w] = alpha
        found.append((match.thing, match.share, match.top + h / 2, match.left + w / 2, max(h, w)))
        masks.append(mask[None])
    explained = ndimage.binary_dilation(np.concatenate(masks).sum(axis=0) > 0, iterations=2)
    unexplained, _ = ndimage.label(((pixels**2).sum(axis=2) > CLEAR**2) & ~explained)
    for index, box in enumerate(ndimage.find_objects(unexplained), 1):
        part = unexplained == index
        if part.sum() >= SPECK * min(height, width) ** 2:
            h, w = (s.stop - s.start for s in box)
            found.append(((UNKNOWN, ""), 0.0, box[0].start + h / 2, box[1].start + w / 2, max(h, w)))
            masks.append(part[None].astype(np.float32))
    names = glyphs.size_names(len(found))
    objects = tuple(
        Object(*thing, names.get(share, UNKNOWN), x / width, y / height, side / 2 / min(height, width))
        for thing, share, y, x, side in found
    )
    return Sight(objects, np.concatenate(masks), name_of_colour(ground, EMOJI_GROUNDS))


def side_of(share: float, height: int, width: int) -> int:
    """The longer side in pixels of a glyph in a picture, from its share of the picture's shorter side."""
    return max(1, round(share * min(height, width)))


class _Search:
    """The search for glyphs in a picture (h, w, 3) relative to its ground's colour."""

    def __init__(self, glyphs: Glyphs, pixels: np.ndarray, ground: np.ndarray):
        side = min(pixels.shape[:2])
        self.glyphs, self.ground = glyphs, ground
        self.blur = BLUR * (side / 64) ** 0.5
        self.cell = 2 if side < 128 else 4
        self.pixels = ndimage.gaussian_filter(pixels, (self.blur, self.blur, 0), mode="nearest")

    def find(self) -> list[_Match]:
        """The glyphs in the picture, those with the largest gain first."""
        candidates = self._candidates()
        matches: list[_Match] = []
        while len(candidates):
            # All candidates at the place of the best one.
            here = candidates[_overlap(candidates, candidates[0]) > 0.5]
            # The best position of each thing in each size.
            _, first = np.unique(here[:, 0] * len(self.glyphs.sides) + here[:, 1], return_index=True)
            searched = [
                self._search_around(*row) for row in here[np.sort(first)[: self.glyphs.fine_searches], :4].tolist()
            ]
            # A large template may gain most from several small objects together: what fits well goes first.
            best = max(searched, key=lambda match: (match.recognised and match.explained >= CERTAIN, match.gain))
            if best.recognised:
                matches.append(best)
                h, w = best.template.shape[:2]
                taken = np.array([0, 0, best.top, best.left, h, w])
                self.pixels[best.top : best.top + h, best.left : best.left + w] -= (
                    best.template
                )  # not to be found twice
            else:
                taken = candidates[0]
            candidates = candidates[1:][_overlap(candidates[1:], taken) <= 0.25]
        return matches

    def _candidates(self) -> np.ndarray:
        """Templates with enough gain on the reduced picture, those with the largest gain, and best fit, first.

        The gain alone would prefer a large template that spans several small objects, the fit a small one inside a
        large object.

        Rows (index of the thing, index of the side, top, left, height, width), the box in pixels of the picture.
        """
        scores, rows = [], []
        cell = self.cell
        height, width = self.pixels.shape[:2]
        for number, share in enumerate(self.glyphs.sides):
            colours, alphas, boxes = _templates(self.glyphs, side_of(share, height, width), self.blur, cell)
            templates = (colours - alphas * self.ground).reshape(len(colours), -1)  # (N, n · n · 3)
            square = (templates**2).sum(axis=1)  # (N,)
            n = colours.shape[1]  # cells
            around = n * cell // 2
            padded = np.pad(self.pixels, ((around, around + -height % cell), (around, around + -width % cell), (0, 0)))
            reduced = _reduced(padded[None], cell)[0]
            windows = sliding_window_view(reduced, (n, n), axis=(0, 1)).transpose(0, 1, 3, 4, 2)  # (h', w', n, n, 3)
            gain = 2 * windows.reshape(-1, templates.shape[1]) @ templates.T - square  # (h' · w', N)
            place, thing = np.nonzero(gain > COARSE_GAIN * square)
            top, left = np.divmod(place, windows.shape[1])
            dy, dx, h, w = boxes[thing].T
            energy = (reduced**2).sum(axis=2)
            energy = sliding_window_view(energy, (n, n)).sum(axis=(2, 3)).ravel()  # (h' · w',)
            found = gain[place, thing]
            explained = 1 - (energy[place] - found) / square[thing]
            scores.append(found * explained.clip(0.05, 1) * cell**2)
            tops, lefts = cell * top - around + dy, cell * left - around + dx
            rows.append(np.stack([thing, np.full_like(thing, number), tops, lefts, h, w], axis=1))
        return np.concatenate(rows)[np.argsort(-np.concatenate(scores), kind="stable")]

    def _search_around(self, number: int, size: int, top: int, left: int) -> _Match:
        """The best position of a thing within a cell of (top, left), entirely inside the picture."""
        pixels, near = self.pixels, self.cell
        height, width = pixels.shape[:2]
        thing, share = self.glyphs.things[number], self.glyphs.sides[size]
        side = side_of(share, height, width)
        colours, alpha = _blurred(self.glyphs, thing, side, self.blur)
        template = colours - alpha * self.ground  # (h, w, 3)
        h, w = alpha.shape[:2]
        y, x = min(max(top - near, 0), height - h), min(max(left - near, 0), width - w)
        part = pixels[y : max(top, 0) + h + near, x : max(left, 0) + w + near]
        windows = sliding_window_view(part, (h, w), axis=(0, 1))  # (up to 2 · near + 1, the same, 3, h, w)
        square = (template**2).sum()
        gain = 2 * np.einsum("abchw,hwc->ab", windows, template) - square
        dy, dx = np.unravel_index(gain.argmax(), gain.shape)
        window = windows[dy, dx].transpose(1, 2, 0)  # (h, w, 3)
        explained = float(1 - ((window - template) ** 2).sum() / square)
        recognised = explained >= RECOGNISED and _is_detailed(window, template, self.glyphs.draw(thing, side)[1])
        return _Match(thing, share, y + int(dy), x + int(dx), template, float(gain[dy, dx]), explained, recognised)


def _is_detailed(window: np.ndarray, template: np.ndarray, alpha: np.ndarray) -> bool:
    """Whether the colours within a glyph's opaque part vary as its template's do; all are (h, w, …)."""
    solid = alpha > 0.9 * alpha.max()  # tiny emoji are nowhere fully opaque
    found, expected = ((part[solid] - part[solid].mean(axis=0)).ravel() for part in (window, template))
    return bool(found @ expected >= DETAILED * np.linalg.norm(found) * np.linalg.norm(expected))


def _overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The area that boxes (n, 6) share with a box (6,), divided by the smaller of the two; rows as in `_candidates`."""
    top, left, height, width = boxes[:, 2:].T
    y, x, h, w = box[2:]
    rows = np.minimum(top + height, y + h) - np.maximum(top, y)
    columns = np.minimum(left + width, x + w) - np.maximum(left, x)
    return rows.clip(0) * columns.clip(0) / np.minimum(height * width, h * w)


@cache
def _blurred(glyphs: Glyphs, thing: Thing, side: int, blur: float) -> tuple[np.ndarray, np.ndarray]:
    """The premultiplied colours (h, w, 3) and the alpha (h, w, 1) of a glyph, blurred."""
    premultiplied, alpha = glyphs.draw(thing, side)
    pixels = np.pad(np.concatenate([premultiplied, alpha[..., None]], axis=2), ((4, 4), (4, 4), (0, 0)))
    pixels = ndimage.gaussian_filter(pixels, (blur, blur, 0))[4:-4, 4:-4]
    return pixels[..., :3], pixels[..., 3:]


@cache
def _templates(glyphs: Glyphs, side: int, blur: float, cell: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every glyph in the middle of a square of cells.

    Returns premultiplied colours (N, n, n, 3), alpha (N, n, n, 1), and boxes (N, 4): (top, left, height, width) within
    the square, in pixels of the full resolution.
    """
    square = side + -side % cell
    pixels = np.zeros((len(glyphs.things), square, square, 4), np.float32)
    boxes = []
    for i, thing in enumerate(glyphs.things):
        colours, alpha = _blurred(glyphs, thing, side, blur)
        h, w = alpha.shape[:2]
        top, left = (square - h) // 2, (square - w) // 2
        pixels[i, top : top + h, left : left + w] = np.concatenate([colours, alpha], axis=2)
        boxes.append((top, left, h, w))
    reduced = _reduced(pixels, cell)
    return reduced[..., :3], reduced[..., 3:], np.array(boxes)


def _reduced(pixels: np.ndarray, cell: int) -> np.ndarray:
    """(n, h, w, c) -> (n, h / cell, w / cell, c), means of the pixels of each cell."""
    n, h, w, c = pixels.shape
    return pixels.reshape(n, h // cell, cell, w // cell, cell, c).mean(axis=(2, 4))
