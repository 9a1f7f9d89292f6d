"""One picture's bytes -> what there is to say of it, and how it looks in a few bytes.

dHash: a picture is what grows brighter from left to right in it, in 64 bits (N. Krawetz, "Kind of Like That", 2013).
"""

import hashlib
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from pipelines.sources.captioned import FORMATS
from pipelines.sources.files import Reader
from pipelines.sources.findings import ERROR, NOTE, WARNING, DataError, Finding, printable
from pipelines.sources.rows import Row

MOST_PIXELS = 89_478_485
"""Of a picture, where Pillow itself begins to warn: a quarter of a GiB as RGB."""

LEAST_SIDE = 8
"""Pixels of a picture's shorter side. What is smaller is a dot that counts visitors, not a picture."""

MOST_ASPECT = 4
"""Longer by shorter side, from where on much of a picture is lost."""

FLAT = 8
"""Levels of grey out of 255. A picture that spans fewer has no shape to compare."""

ORIENTATION = 0x0112

KINDS = {
    "too large": (ERROR, ""),
    "16-bit": (NOTE, "scaled to 8 bits a colour"),
    "32-bit": (WARNING, "numbers beyond 0 to 255 are clipped: save it with 8 or 16 bits"),
    "CMYK": (NOTE, "made RGB, without its colour profile"),
    "palette": (NOTE, "made RGB"),
    "transparent": (NOTE, "laid on white"),
    "animated": (NOTE, "its first frame is taken"),
    "turned": (NOTE, "turned as its EXIF says"),
}
"""What a picture can be -> how grave that is and how it is handled."""


class PictureError(DataError):
    """Why a picture cannot be used: `kind` in a word or two."""

    def __init__(self, kind: str, what: str):
        super().__init__(what)
        self.kind = kind


class Look(NamedTuple):
    """What was seen of a picture. Outline (64 bits) and tints (4×4 RGB) are how it looks; a flat one has neither."""

    findings: list[Finding]
    digest: str = ""
    width: int = 0
    height: int = 0
    outline: int | None = None
    tints: bytes = b""


@contextmanager
def decoding() -> Iterator[None]:
    """The one place where what Pillow raises on bad bytes, nearly anything, becomes a PictureError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except PictureError:
            raise
        except Image.DecompressionBombError as error:
            raise PictureError("too large", str(error)) from error
        except Image.UnidentifiedImageError as error:
            raise PictureError("unreadable", f"not a picture of a kind that is read: {', '.join(FORMATS)}") from error
        except Exception as error:
            said = printable(" ".join(str(error).split())[:150]) or type(error).__name__
            raise PictureError("truncated" if "truncated" in said.lower() else "unreadable", said) from error


def open_picture(data: bytes) -> Image.Image:
    """A picture's file opened, nothing of it decoded. Raises PictureError where it is none, or has too many pixels."""
    if not data:
        raise PictureError("empty", "a file of no bytes")
    Image.init()
    with decoding():
        picture = Image.open(io.BytesIO(data), formats=[kind for kind in FORMATS if kind in Image.OPEN])
        if picture.width * picture.height > MOST_PIXELS:
            what = f"{picture.width}×{picture.height}, the limit is {MOST_PIXELS / 1e6:.0f} million pixels"
            raise PictureError("too large", what)
    return picture


def look_at(row: Row, size: int) -> Look:
    """Read and decode a row's picture and masks, once, for training at size×size pixels. Raises nothing."""
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
        with decoding():
            kinds, width, height, small = _decode(picture)
    except PictureError as error:
        find(ERROR, error.kind, str(error))
        return found
    for kind in kinds:
        find(KINDS[kind][0], kind, KINDS[kind][1])
    long, short = max(width, height), min(width, height)
    if short < LEAST_SIDE:
        find(ERROR, "too small", f"{width}×{height} pixels")
    elif short < size:
        find(WARNING, "small", f"{width}×{height}, smaller than the {size} pixels trained on: it is enlarged")
    if long > MOST_ASPECT * short:
        find(WARNING, "aspect", f"{width}×{height}, longer than {MOST_ASPECT}:1, little of it is seen")
    for phrase, read in row.masks.items():
        if wrong := _wrong_mask(read, width / height):
            find(ERROR, "bad mask", f"the mask of {phrase[:40]!r} {wrong}")
    return Look(found.findings, hashlib.sha256(data).hexdigest(), width, height, *_appearance(small))


def look_at_all(rows: Sequence[Row], size: int) -> list[Look]:
    """`look_at` several, for a process that gets them together."""
    return [look_at(row, size) for row in rows]


def _decode(picture: Image.Image) -> tuple[list[str], int, int, Image.Image]:
    """Of what kinds a picture is, its sides as it is shown, and itself, small and laid on white: (36, 32) RGB."""
    kinds = []
    if ";16" in str(getattr(picture, "tile", "")):  # how the file keeps them; once loaded they may be 8
        kinds.append("16-bit")
    elif picture.mode in ("I", "F"):
        kinds.append("32-bit")
    if picture.mode == "CMYK":
        kinds.append("CMYK")
    if picture.mode in ("P", "PA"):
        kinds.append("palette")
    if picture.has_transparency_data:
        kinds.append("transparent")
    width, height = picture.size
    # A JPEG's data is all read, but for an eighth of its pixels a side no more is reckoned than needed.
    picture.draft(None, (36, 36))
    picture.load()
    if picture.format != "MPO" and getattr(picture, "is_animated", False):  # an MPO's others are no frames
        kinds.append("animated")
    orientation = picture.getexif().get(ORIENTATION, 1)
    if orientation in range(2, 9):
        kinds.append("turned")
        width, height = (height, width) if orientation >= 5 else (width, height)  # mirrored along a diagonal, or turned
        picture = ImageOps.exif_transpose(picture)
    small = eight_bits(picture).resize((36, 32), Image.Resampling.BOX).convert("RGBA")
    return kinds, width, height, Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")


def eight_bits(picture: Image.Image) -> Image.Image:
    """The same picture in a mode of which pixels can be averaged and made RGBA."""
    if picture.mode.startswith("I;16"):  # which Pillow's own conversion would clip
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture.convert("RGBA") if picture.mode in ("1", "P", "PA") else picture


def _appearance(small: Image.Image) -> tuple[int | None, bytes]:
    """The dHash of a small picture and its colours on a grid of 4×4."""
    grey = np.asarray(small.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    if np.ptp(grey) < FLAT:
        return None, b""
    rises = grey[:, 1:] > grey[:, :-1] + 1
    return int.from_bytes(np.packbits(rises).tobytes(), "big"), small.resize((4, 4), Image.Resampling.BOX).tobytes()


def _wrong_mask(read: Reader, aspect: float) -> str:
    """Why a mask cannot be used with a picture of this aspect, or nothing."""
    try:
        mask = open_picture(read())
        with decoding():
            mask.load()
            mask.convert("L")
    except (PictureError, OSError) as error:
        return f"cannot be read: {error}"
    if abs(mask.width / mask.height / aspect - 1) > 0.05:
        return f"is {mask.width}×{mask.height}, of another shape than the picture"
    return ""
