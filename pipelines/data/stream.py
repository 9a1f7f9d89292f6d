"""An example, protocols of endless streams of examples, and the order in which a finite set of rows appears in one."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pipelines.scenes.scene import Scene


@dataclass(frozen=True)
class Example:
    """A picture (h, w, 3) uint8, its caption, and the regions of spans of the caption, where known.

    `translation` is the caption in another language, if there is one; `scene` is the scene of a generated picture.
    """

    picture: np.ndarray
    caption: str
    regions: Sequence[tuple[int, int, np.ndarray]] = ()  # (start, end, mask (h, w) in [0, 1])
    translation: str = ""
    scene: Scene | None = None


class Stream(Protocol):
    """An endless stream of training examples of any kind."""

    def example(self, place: int) -> Any: ...


class Examples(Protocol):
    """An endless stream of training examples, and a fixed set of examples to validate on.

    `translates`: whether some examples have a translation. `notes`: lines to print when training starts.
    `captions`: the texts to train a tokenizer on. `fingerprint`: a hash that changes with the data.
    `name`: the examples at some places, named in one line for a message.
    """

    @property
    def translates(self) -> bool: ...
    @property
    def notes(self) -> Sequence[str]: ...
    def example(self, place: int) -> Example: ...
    def validation(self, count: int) -> list[Example]: ...
    def captions(self) -> Iterable[str]: ...
    def fingerprint(self) -> str: ...
    def name(self, places: range) -> str: ...


class Shuffled:
    """An endless order of rows. Each epoch is shuffled anew and has each row as often as its weight says.

    A row of weight 2 appears twice in every epoch, one of weight ½ in every other epoch. The row at a place is a
    function of (seed, place).
    """

    def __init__(self, weights: Sequence[float], seed: int):
        self.weights, self.seed = np.asarray(weights, np.float64), seed
        assert (self.weights >= 0).all() and self.weights.sum() > 0
        # So rows of weight ½ do not all appear in the same epochs. Steps of 2⁻²⁰ keep integer weights exact.
        self.offsets = np.random.default_rng(seed).integers(2**20, size=len(weights)) / 2**20
        self._epoch: tuple[int, np.ndarray, np.ndarray] = (0, np.empty(0, int), np.empty(0, int))

    def __getitem__(self, place: int) -> tuple[int, int]:
        """The row at a place, and how often it has appeared before."""
        start, rows, times = self._epoch
        if not 0 <= place - start < len(rows):
            start, rows, times = self._epoch = self._shuffle(place)
        return int(rows[place - start]), int(times[place - start])

    def _shuffle(self, place: int) -> tuple[int, np.ndarray, np.ndarray]:
        """The epoch around a place: its start, its rows in order, and how often each has appeared before."""
        latest = int((place + len(self.weights)) / self.weights.sum()) + 2
        epoch = bisect_right(range(latest), place, key=lambda epoch: self._before(epoch).sum()) - 1
        before = self._before(epoch)
        copies = self._before(epoch + 1) - before
        rows = np.repeat(np.arange(len(copies)), copies)
        times = before[rows] + np.arange(len(rows)) - np.repeat(copies.cumsum() - copies, copies)
        shuffled = np.random.default_rng((self.seed, epoch)).permutation(rows)
        in_order = np.empty_like(times)
        in_order[np.argsort(shuffled, kind="stable")] = times
        return int(before.sum()), shuffled, in_order

    def _before(self, epoch: int) -> np.ndarray:
        """How often each row has appeared before an epoch."""
        return np.floor(epoch * self.weights + self.offsets).astype(np.int64)


def seed_of(*numbers: int) -> int:
    """A seed for torch from several numbers, well mixed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
