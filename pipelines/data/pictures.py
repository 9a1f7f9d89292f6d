"""Captioned pictures as training examples: their order, shapes, captions and masks, and which are held out.

Shapes: h×w pixels.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from pipelines.data.decode import DecodedRows
from pipelines.data.stream import Example, Shuffled, seed_of
from pipelines.pictures import Shape, nearest_shape
from pipelines.sources.findings import DataError
from pipelines.sources.rows import Row
from unet_xattn.words import phrase_spans

VALIDATION_SHARE = 0.05
"""Share of pictures that are held out for validation, by the hash of their content."""

SMALL_SET = 20
"""Sets of fewer pictures are validated on the pictures they train on."""

_SIDES = re.compile(r"\b(left|right)\b|[左右]", re.IGNORECASE)


class PictureExamples:
    """An endless stream of captioned pictures, and a held-out set to validate on.

    Each epoch has an order of its own and shows every picture as often as its row's weight says. With several shapes, a
    picture takes the nearest shape, each batch has one shape, and each shape has its own epochs; then the stream also
    depends on the batch size. For a row with a translation, caption and translation change places each time it appears.

    Whether a picture is held out depends on its content alone. So adding pictures never moves others, and copies of one
    picture are on the same side. Sets that are too small are validated on the pictures they train on.

    Nothing is decoded before the first example is needed.

    Args:
        rows: rows with digests and sizes.
        shapes: (h, w) of the training pictures, such as `pictures.shapes_near`.
        batch_size: examples per batch, over all processes.
        fit: "crop" or "pad", see `pictures.load_picture`.
        flip: mirror half of the examples, chosen anew each time, and their masks.

    Raises:
        DataError: there are no rows, or a weight is not a finite number of 0 or more. Decoding raises as `DecodedRows`.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        shapes: Sequence[Shape],
        seed: int,
        batch_size: int = 1,
        fit: str = "crop",
        flip: bool = False,
    ):
        if bad := [row.name for row in rows if not 0 <= row.weight < float("inf")]:
            raise DataError(f"weights must be finite numbers of 0 or more, unlike those of {', '.join(bad[:5])}")
        if not any(row.weight for row in rows):
            raise DataError("no pictures to train on: there are none, or all have the weight 0")
        self.rows = rows
        self.seed, self.batch_size, self.fit, self.flip = seed, batch_size, fit, flip
        self.shapes = [nearest_shape(row.width, row.height, shapes) for row in self.rows]

        self.trained, held_out = held_out_split(self.rows)
        self.held_out = sorted(held_out, key=lambda i: self.rows[i].digest)
        buckets = [[i for i in self.trained if self.shapes[i] == shape] for shape in shapes]
        self.buckets = [bucket for bucket in buckets if bucket]
        weights = [[self.rows[i].weight for i in bucket] for bucket in self.buckets]
        self.orders = [Shuffled(weight, seed_of(seed, i)) for i, weight in enumerate(weights)]
        self.bucket_order = Shuffled([sum(weight) / batch_size for weight in weights], seed)
        self.translates = any(row.translation for row in self.rows)

    def example(self, place: int) -> Example:
        index, times = self._which(place)
        flipped = self.flip and seed_of(self.seed, place, 1) % 2 == 1
        return self._example(index, times + index, flipped)

    def validation(self, count: int) -> list[Example]:
        return [self._example(index, turn, False) for turn, index in enumerate(self.held_out[:count])]

    def trained_on(self, number: int) -> Example:
        """The training picture of a number below `len(self.trained)`, in the source's order."""
        return self._example(self.trained[number], 0, False)

    def fingerprint(self) -> str:
        """A hash of the pictures' names, contents, captions, mask phrases and weights, in their order."""
        digest = hashlib.sha256()
        for row in self.rows:
            described = [row.name, row.digest, row.caption, row.translation, sorted(row.masks), row.weight]
            digest.update(json.dumps(described).encode())
        return digest.hexdigest()[:16]

    def name(self, places: range) -> str:
        return ", ".join(self.rows[self._which(place)[0]].name for place in places)

    def captions(self) -> Iterable[str]:
        rows = (self.rows[i] for bucket in self.buckets for i in bucket)
        return (text for row in rows for text in (row.caption, row.translation) if text)

    @property
    def notes(self) -> list[str]:
        where, count = self._pixels.folder, len({row.digest for row in self.rows})
        notes = [f"{count:,} pictures, decoded {f'in {where}' if where else 'in memory'}"]
        if self.flip and (sided := sum(bool(_SIDES.search(row.caption + row.translation)) for row in self.rows)):
            notes.append(f"warning: {sided:,} captions say left or right, but --flip mirrors their pictures")
        texts = ((row, phrase, f"{row.caption}\n{row.translation}") for row in self.rows for phrase in row.masks)
        if unused := [(row.name, phrase) for row, phrase, text in texts if not phrase_spans(phrase, text)]:
            name, phrase = unused[0]
            notes.append(f"warning: {len(unused):,} masks match no word of a caption, such as {phrase!r} of {name}")
        return notes

    def _which(self, place: int) -> tuple[int, int]:
        """The row at a place of the stream, and how often it has appeared before."""
        batch, within = divmod(place, self.batch_size)
        bucket, earlier = self.bucket_order[batch]  # batches of this bucket so far
        row, times = self.orders[bucket][earlier * self.batch_size + within]
        return self.buckets[bucket][row], times

    @cached_property
    def _pixels(self) -> DecodedRows:
        return DecodedRows(self.rows, self.shapes, self.fit)

    def _example(self, index: int, turn: int, flipped: bool) -> Example:
        row, pixels = self.rows[index], self._pixels
        caption, translation = row.caption, row.translation
        if translation and turn % 2:
            caption, translation = translation, caption
        spans = [(*span, phrase) for phrase in row.masks for span in phrase_spans(phrase, caption)]
        # Longer phrases last, so that they win: on "red circle" its own mask replaces that of "circle".
        spans.sort(key=lambda span: span[1] - span[0])
        masks = {phrase: pixels.mask(index, phrase).astype(np.float32) / 255 for _, _, phrase in spans}
        picture = pixels.picture(index)
        if flipped:
            picture, masks = picture[:, ::-1], {phrase: mask[:, ::-1] for phrase, mask in masks.items()}
        return Example(picture, caption, [(start, end, masks[phrase]) for start, end, phrase in spans], translation)


def held_out_split(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """The indices of rows to train on and of rows to validate on; the same rows twice where they are too few."""
    weighted = [i for i, row in enumerate(rows) if row.weight]
    held_out = [i for i, row in enumerate(rows) if is_validation_picture(row.digest)]
    trained = [i for i in weighted if not is_validation_picture(rows[i].digest)]
    small = len({row.digest for row in rows}) < SMALL_SET
    return (weighted, weighted) if small or not held_out or not trained else (trained, held_out)


def is_validation_picture(digest: str) -> bool:
    """Whether a picture with this hash of its content is held out for validation, in any set."""
    return int(digest[:8], 16) < VALIDATION_SHARE * 16**8
