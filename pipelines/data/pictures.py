"""Captioned pictures as examples to train on: which comes when, in which shape, and what is said of it.

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
from pipelines.sources.read import DataError, Row
from unet_xattn.words import phrase_spans

VALIDATION_SHARE = 0.05
"""Of all content hashes there could be, those that are kept for validation."""

SMALL_SET = 20
"""Fewer pictures than these are validated on themselves."""

_SIDES = re.compile(r"\b(left|right)\b|[左右]", re.IGNORECASE)


class PictureExamples:
    """Captioned pictures, again and again, and some that are kept for validation.

    Each epoch has every picture as often as its row's weight says, in an order of its own. Where there are several
    shapes, a picture takes the nearest one, each batch has one shape only, and each shape has epochs of its own; then
    the stream depends on the batch size as well. A row with a translation is captioned by either text in turn.

    Whether a picture is kept for validation depends on its content alone. So more pictures never move others, and
    copies of one are all on the same side. Sets that are too small for it are validated on themselves.

    Nothing is decoded before an example is asked for.

    Args:
        rows: with their digests and sizes.
        shapes: (h, w) to bring the pictures to, such as `pictures.shapes_near`; a single one takes all.
        batch_size: over all processes.
        fit: one of `pictures.FITS`.
        flip: half of the examples, drawn each time, are shown as in a mirror, with their masks.

    Raises:
        DataError: there are no rows, or their weights are no weights; once they are decoded, see `DecodedRows`.
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
            raise DataError(f"a weight is a number from 0 on, and those of {', '.join(bad[:5])} are not")
        if not any(row.weight for row in rows):
            raise DataError("there are no pictures to train on, or all have the weight 0")
        self.rows = rows
        self.seed, self.batch_size, self.fit, self.flip = seed, batch_size, fit, flip
        self.shapes = [nearest_shape(row.width, row.height, shapes) for row in self.rows]

        self.trained, kept = split(self.rows)
        self.kept = sorted(kept, key=lambda i: self.rows[i].digest)
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
        return [self._example(index, turn, False) for turn, index in enumerate(self.kept[:count])]

    def trained_on(self, number: int) -> Example:
        """A picture that is trained on, by its number below `len(self.trained)`, in the source's order."""
        return self._example(self.trained[number], 0, False)

    def fingerprint(self) -> str:
        """Of the pictures' names and contents, and of all that is said of them, in their order."""
        digest = hashlib.sha256()
        for row in self.rows:
            said = [row.name, row.digest, row.caption, row.translation, sorted(row.masks), row.weight]
            digest.update(json.dumps(said).encode())
        return digest.hexdigest()[:16]

    def name(self, places: range) -> str:
        return ", ".join(self.rows[self._which(place)[0]].name for place in places)

    def captions(self) -> Iterable[str]:
        rows = (self.rows[i] for bucket in self.buckets for i in bucket)
        return (text for row in rows for text in (row.caption, row.translation) if text)

    @property
    def notes(self) -> list[str]:
        where = self._pixels.folder
        notes = [f"{len(self.rows):,} pictures, decoded {f'in {where}' if where else 'in memory'}"]
        if self.flip and (sided := sum(bool(_SIDES.search(row.caption + row.translation)) for row in self.rows)):
            notes.append(f"warning: {sided:,} captions say left or right, and lie where --flip mirrors their pictures")
        texts = ((row, phrase, f"{row.caption}\n{row.translation}") for row in self.rows for phrase in row.masks)
        if unsaid := [(row.name, phrase) for row, phrase, text in texts if not phrase_spans(phrase, text)]:
            name, phrase = unsaid[0]
            notes.append(f"warning: {len(unsaid):,} masks are of what no caption says, such as {phrase!r} of {name}")
        return notes

    def _which(self, place: int) -> tuple[int, int]:
        """The row at a place of the stream, and how often it has come before."""
        batch, within = divmod(place, self.batch_size)
        bucket, earlier = self.bucket_order[batch]  # batches of this bucket before
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
        # The longer phrase has the last word: in "red circle" the mask of "red circle" beats that of "circle".
        spans.sort(key=lambda span: span[1] - span[0])
        masks = {phrase: pixels.mask(index, phrase).astype(np.float32) / 255 for _, _, phrase in spans}
        picture = pixels.picture(index)
        if flipped:
            picture, masks = picture[:, ::-1], {phrase: mask[:, ::-1] for phrase, mask in masks.items()}
        return Example(picture, caption, [(start, end, masks[phrase]) for start, end, phrase in spans], translation)


def split(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Which rows to train on and which to validate on: all of them both, where they are too few."""
    trained = [i for i, row in enumerate(rows) if row.weight]
    kept = [i for i, row in enumerate(rows) if is_kept(row.digest)]
    apart = [i for i in trained if not is_kept(rows[i].digest)]
    return (apart, kept) if len(rows) >= SMALL_SET and kept and apart else (trained, trained)


def is_kept(digest: str) -> bool:
    """Whether a picture of this content hash validates, in whatever set it may be."""
    return int(digest[:8], 16) < VALIDATION_SHARE * 16**8
