"""Rows -> the pixels of their pictures and masks. Each file is decoded once.

Shapes: h×w pixels.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np

from pipelines.data.cache import VERSION, DecodedArrays, cache_folder, decode_in_memory, decode_on_disk
from pipelines.picture_files import PictureError, open_picture, picture_errors
from pipelines.pictures import Shape, fit_mask, fit_picture
from pipelines.sources.findings import DataError
from pipelines.sources.rows import Row

IN_MEMORY = 2**24
"""Decoded pictures and masks of up to this many bytes are kept in memory rather than on disk."""


class DecodedRows:
    """The pixels of rows, in memory if they are few, else in the cache on disk.

    Args:
        rows: rows with digests and sizes.
        shapes: the shape of each row's picture in training.
        fit: "crop" or "pad", see `pictures.load_picture`.

    Raises:
        DataError: a picture or a mask cannot be used, or the cache cannot be written.
    """

    def __init__(self, rows: Sequence[Row], shapes: Sequence[Shape], fit: str):
        self.rows, self.shapes, self.fit = rows, shapes, fit
        size = sum(h * w * (3 + len(row.masks)) for (h, w), row in zip(shapes, rows, strict=True))
        self.folder = None if size <= IN_MEMORY else cache_folder() / VERSION
        with ThreadPoolExecutor() as pool:
            self._mask_keys = list(pool.map(_mask_keys, rows))
        self._pictures: dict[Shape, DecodedArrays] = {}
        self._masks: dict[Shape, DecodedArrays] = {}
        for shape in dict.fromkeys(shapes):
            pictures: dict[str, Callable[[], np.ndarray]] = {}
            masks: dict[str, Callable[[], np.ndarray]] = {}
            for row, keys, own_shape in zip(rows, self._mask_keys, shapes, strict=True):
                if own_shape != shape:
                    continue
                pictures[row.digest] = partial(_picture, row, shape, fit)
                masks |= {key: partial(_mask, row, phrase, shape, fit) for phrase, key in keys.items()}
            self._pictures[shape] = self._decode(pictures, (*shape, 3), "")
            self._masks[shape] = self._decode(masks, shape, "-masks")

    def picture(self, index: int) -> np.ndarray:
        """The picture of a row, (h, w, 3) uint8."""
        return self._pictures[self.shapes[index]][self.rows[index].digest]

    def mask(self, index: int, phrase: str) -> np.ndarray:
        """The mask of a phrase of a row, (h, w) uint8."""
        return self._masks[self.shapes[index]][self._mask_keys[index][phrase]]

    def _decode(self, wanted: dict[str, Callable[[], np.ndarray]], shape: tuple[int, ...], kind: str) -> DecodedArrays:
        if self.folder is None or not wanted:
            return decode_in_memory(wanted, shape)
        folder = self.folder / f"{shape[0]}x{shape[1]}-{self.fit}{kind}"
        try:
            return decode_on_disk(wanted, shape, folder)
        except OSError as error:
            raise DataError(
                f"decoded pictures cannot be kept in {folder}: {error.strerror or error}; "
                "set UNET_XATTN_CACHE to a folder with enough room"
            ) from error


def _picture(row: Row, shape: Shape, fit: str) -> np.ndarray:
    with _naming(row.name), picture_errors():
        return fit_picture(open_picture(row.read()), shape, fit)


def _mask(row: Row, phrase: str, shape: Shape, fit: str) -> np.ndarray:
    with _naming(f"{row.name}, mask of {phrase!r}"), picture_errors():
        return fit_mask(open_picture(row.masks[phrase]()), (row.width, row.height), shape, fit)


def _mask_keys(row: Row) -> dict[str, str]:
    """Phrase -> a hash of all that its mask's pixels depend on: the mask's file and the size of the picture."""
    size = f"{row.width}x{row.height} ".encode()
    with _naming(f"{row.name}, its masks"):
        return {phrase: hashlib.sha256(size + read()).hexdigest() for phrase, read in row.masks.items()}


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, PictureError) as error:
        raise DataError(f"{name}: {error}") from error
