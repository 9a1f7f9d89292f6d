"""The bytes of one picture -> findings about it, and a fingerprint of its appearance.

The fingerprint's outline is a dHash: 64 bits that say where the picture grows brighter from left to right (N. Krawetz,
"Kind of Like That", 2013).
"""

import hashlib
import io
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipelines.sources.captioned import PICTURE_FORMATS
from pipelines.sources.files import Reader
from pipelines.sources.findings import ERROR, NOTE, WARNING, DataError, Finding, printable
from pipelines.sources.rows import Row

MOST_PIXELS = 89_478_485
"""Limit on the pixels of a picture, where Pillow itself begins to warn: a quarter of a GiB as RGB."""

LEAST_SIDE = 8
"""Least pixels of a picture's shorter side. Smaller files are tracking pixels rather than pictures."""

MOST_ASPECT = 4
"""Longer by shorter side. Beyond this, much of a picture is lost."""

FLAT = 8
"""Levels of grey, out of 255. A picture that spans fewer has no outline to compare."""

ORIENTATION = 0x0112

TRAITS = {
    "16-bit": (NOTE, "scaled to 8 bits per channel"),
    "32-bit": (WARNING, "values outside 0 to 255 are clipped: save it with 8 or 16 bits"),
    "CMYK": (NOTE, "converted to RGB, without its colour profile"),
    "palette": (NOTE, "converted to RGB"),
    "transparent": (NOTE, "placed on white"),
    "animated": (NOTE, "the first frame is used"),
    "turned": (NOTE, "rotated or mirrored as its EXIF says"),
}
"""Trait of a picture that needs handling -> severity and how it is handled."""


class PictureError(DataError):
    """A picture cannot be used. `kind` says why in a word or two."""

    def __init__(self, kind: str, what: str):
        super().__init__(what)
        self.kind = kind


class Look(NamedTuple):
    """What is known of a picture. `outline` (64 bits) and `tints` (4×4 RGB) are its fingerprint, unless it is flat."""

    findings: list[Finding]
    digest: str = ""
    width: int = 0
    height: int = 0
    outline: int | None = None
    tints: bytes = b""


@contextmanager
def picture_errors() -> Iterator[None]:
    """Turn whatever Pillow raises on bad bytes, which is nearly anything, into a PictureError; silence its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except PictureError:
            raise
        except Image.DecompressionBombError as error:
            raise PictureError("too large", str(error)) from error
        except Exception as error:
            message = printable(" ".join(str(error).split())[:150]) or type(error).__name__
            raise PictureError("truncated" if "truncated" in message.lower() else "unreadable", message) from error


def open_picture(data: bytes, formats: Collection[str] = PICTURE_FORMATS) -> Image.Image:
    """A picture, opened but not decoded. Raises PictureError if it has another format or too many pixels."""
    if not data:
        raise PictureError("empty", "the file is empty")
    Image.init()
    with picture_errors():
        try:
            picture = Image.open(io.BytesIO(data), formats=[kind for kind in formats if kind in Image.OPEN])
        except UnidentifiedImageError as error:
            raise PictureError("unreadable", f"not a picture in a format that is read: {', '.join(formats)}") from error
        if picture.width * picture.height > MOST_PIXELS:
            what = f"{picture.width}×{picture.height}, the limit is {MOST_PIXELS / 1e6:.0f} million pixels"
            raise PictureError("too large", what)
    return picture


def look_at(row: Row, size: int) -> Look:
    """Read and decode a row's picture and masks once, for training at size×size pixels. Raises nothing."""
    found = Look([])

    def find(severity: str, kind: str, what: str) -> None:
        found.findings.append(Finding(severity, kind, row.name, row.where, what))

    try:
        data = row.read()
    except OSError as error:
        find(ERROR, "unreadable", str(error.strerror or error))
        return found
    try:
        picture = open_picture(data)
        with picture_errors():
            traits, width, height, small = _decode(picture)
    except PictureError as error:
        find(ERROR, error.kind, str(error))
        return found
    for trait in traits:
        severity, handling = TRAITS[trait]
        find(severity, trait, handling)
    long, short = max(width, height), min(width, height)
    if short < LEAST_SIDE:
        find(ERROR, "too small", f"{width}×{height} pixels")
    elif short < size:
        find(WARNING, "small", f"{width}×{height}, smaller than the {size} pixels of training: it is enlarged")
    if long > MOST_ASPECT * short:
        find(WARNING, "aspect", f"{width}×{height}, longer than {MOST_ASPECT}:1: much of it is lost")
    for phrase, read in row.masks.items():
        if wrong := _wrong_mask(read, width / height):
            find(ERROR, "bad mask", f"the mask of {phrase[:40]!r} {wrong}")
    return Look(found.findings, hashlib.sha256(data).hexdigest(), width, height, *_appearance(small))


def look_at_all(rows: Sequence[Row], size: int) -> list[Look]:
    """`look_at` each of these rows, for a worker process."""
    return [look_at(row, size) for row in rows]


def _decode(picture: Image.Image) -> tuple[list[str], int, int, Image.Image]:
    """A picture's traits, its width and height as displayed, and a small copy on white, (36, 32) RGB."""
    traits = []
    if ";16" in str(getattr(picture, "tile", "")):  # as stored in the file; Pillow may load 8 bits
        traits.append("16-bit")
    elif picture.mode in ("I", "F"):
        traits.append("32-bit")
    if picture.mode == "CMYK":
        traits.append("CMYK")
    if picture.mode in ("P", "PA"):
        traits.append("palette")
    if picture.has_transparency_data:
        traits.append("transparent")
    width, height = picture.size
    # A JPEG is read in full, but decoded at a reduced scale, down to an eighth.
    picture.draft(None, (36, 36))
    picture.load()
    if picture.format != "MPO" and getattr(picture, "is_animated", False):  # an MPO's pictures are not frames
        traits.append("animated")
    orientation = picture.getexif().get(ORIENTATION, 1)
    if orientation in range(2, 9):
        traits.append("turned")
        width, height = (height, width) if orientation >= 5 else (width, height)  # these swap the sides
        picture = ImageOps.exif_transpose(picture)
    small = eight_bits(picture).resize((36, 32), Image.Resampling.BOX).convert("RGBA")
    return traits, width, height, Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")


def eight_bits(picture: Image.Image) -> Image.Image:
    """The same picture in a mode whose pixels can be averaged and converted to RGBA."""
    if picture.mode.startswith("I;16"):  # Pillow's own conversion would clip the values
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture.convert("RGBA") if picture.mode in ("1", "P", "PA") else picture


def _appearance(small: Image.Image) -> tuple[int | None, bytes]:
    """The dHash of a small picture, and its colours on a grid of 4×4."""
    grey = np.asarray(small.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    if np.ptp(grey) < FLAT:
        return None, b""
    rises = grey[:, 1:] > grey[:, :-1] + 1
    return int.from_bytes(np.packbits(rises).tobytes(), "big"), small.resize((4, 4), Image.Resampling.BOX).tobytes()


def _wrong_mask(read: Reader, aspect: float) -> str:
    """Why a mask cannot be used with a picture of this aspect ratio, or ""."""
    try:
        mask = open_picture(read())
        with picture_errors():
            mask.load()
            mask.convert("L")
    except (PictureError, OSError) as error:
        return f"cannot be read: {error}"
    if abs(mask.width / mask.height / aspect - 1) > 0.05:
        return f"is {mask.width}×{mask.height}, a different aspect ratio than the picture"
    return ""
