"""The bytes of a picture file -> an open picture, with what Pillow does not tell of the file."""

import io
import struct
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from PIL import Image, UnidentifiedImageError

PICTURE_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "PPM", "AVIF", "JPEG2000")
"""Picture formats that are read, by Pillow's names. Pillow knows others, some of which start programs."""

MOST_PIXELS = 89_478_485
"""Limit on the pixels of a picture, where Pillow itself begins to warn: a quarter of a GiB as RGB."""


BITS_PER_SAMPLE, COMPRESSION, PLANAR, PREDICTOR, SAMPLE_FORMAT, PACKBITS = 258, 259, 284, 317, 339, 32773
"""Tags of TIFF 6.0, and a value of the second."""


class PictureError(ValueError):
    """A picture cannot be used. `kind` says why in a word or two."""

    def __init__(self, kind: str, what: str):
        super().__init__(what)
        self.kind = kind


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
            message = "".join(c if c.isprintable() else " " for c in str(error))
            message = " ".join(message.split())[:150] or type(error).__name__
            raise PictureError("truncated" if "truncated" in message.lower() else "unreadable", message) from error


def open_picture(
    data: bytes, formats: Collection[str] = PICTURE_FORMATS, most_pixels: int = MOST_PIXELS
) -> Image.Image:
    """A picture, opened but not decoded. What `_complete` finds in the file is added to its `info`.

    Raises:
        PictureError: it has another format or too many pixels, or Pillow would decode it wrongly.
    """
    if not data:
        raise PictureError("empty", "the file is empty")
    Image.init()
    with picture_errors():
        try:
            picture = Image.open(io.BytesIO(data), formats=[kind for kind in formats if kind in Image.OPEN])
        except UnidentifiedImageError as error:
            raise PictureError("unreadable", f"not a picture in a format that is read: {', '.join(formats)}") from error
        if picture.format == "ICO":  # Pillow reads a PNG inside without its transparency and colour profile
            start = picture.ico.entry[0].offset  # type: ignore[attr-defined]
            if data[start : start + 8] == b"\x89PNG\r\n\x1a\n":
                return open_picture(data[start:], ("PNG",), most_pixels)
        if picture.width * picture.height > most_pixels:
            what = f"{picture.width}×{picture.height}, the limit is {most_pixels / 1e6:.0f} million pixels"
            raise PictureError("too large", what)
        _complete(picture, data)
    return picture


def _complete(picture: Image.Image, data: bytes) -> None:
    """Add to `picture.info`: "icc_profile", "cicp" (primaries and transfer of H.273), "bit_depth", "transparency"."""
    if picture.format == "PNG":
        _complete_png(picture, data)
    elif picture.format == "AVIF":
        _complete_avif(picture, memoryview(data))
    elif picture.format == "JPEG2000":
        _complete_jpeg2000(picture, memoryview(data))
    elif picture.format == "TIFF":
        _check_tiff(picture.tag_v2)  # type: ignore[attr-defined]
    elif picture.format == "BMP" and data[70:74] == b"DEBM":  # version 5, with an embedded profile
        start, length = struct.unpack_from("<II", data, 126)
        picture.info["icc_profile"] = data[14 + start : 14 + start + length]
    if picture.info.get("cicp", (0, 0))[1] in (16, 18):  # PQ and HLG of H.273
        raise PictureError("HDR", "high dynamic range, which cannot be shown as it is meant: save it as sRGB")


def _check_tiff(tags: Mapping[int, Any]) -> None:
    """Raise PictureError for the TIFFs that Pillow decodes to other pixels without a word."""
    bits, compression = max(tags.get(BITS_PER_SAMPLE, (1,))), tags.get(COMPRESSION, 1)
    if 2 in tags.get(SAMPLE_FORMAT, (1,)) and bits <= 8:
        raise PictureError("signed", "signed numbers: which of them is white is not known, save it as a PNG")
    if tags.get(PLANAR, 1) == 2 and bits > 8 and compression == 1:
        raise PictureError("planar", "a TIFF with separate channels of more than 8 bits: save it as a PNG")
    if tags.get(PREDICTOR, 1) != 1 and compression in (1, PACKBITS):
        raise PictureError("predictor", "a TIFF with a predictor that its compression does not have: save it as a PNG")


def _complete_png(picture: Image.Image, data: bytes) -> None:
    depth, place = data[24], 8
    if picture.mode == "L" and depth < 8 and "transparency" in picture.info:  # Pillow scales the pixels, but not this
        picture.info["transparency"] *= 255 // (2**depth - 1)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"cICP" and length == 4:
            picture.info["cicp"] = (data[place + 8], data[place + 9])
        if kind == b"IDAT":
            return
        place += 12 + length


def _complete_avif(picture: Image.Image, data: memoryview) -> None:
    for kind, content in _boxes_at(data, b"meta", b"iprp", b"ipco"):
        if kind == b"colr" and content[:4] == b"nclx" and "icc_profile" not in picture.info:
            picture.info.setdefault("cicp", struct.unpack_from(">HH", content, 4))
        elif kind == b"pixi" and len(content) > 5:
            picture.info["bit_depth"] = max(picture.info.get("bit_depth", 8), *content[5:])


def _complete_jpeg2000(picture: Image.Image, data: memoryview) -> None:
    stream = data
    if data[:2] != b"\xff\x4f":  # a JP2 file, whose boxes hold the stream
        stream = next((content for kind, content in _boxes(data) if kind == b"jp2c"), data[:0])
        colours = next((content for kind, content in _boxes_at(data, b"jp2h") if kind == b"colr"), None)
        if colours and colours[0] in (2, 3):
            picture.info["icc_profile"] = bytes(colours[3:])
        elif colours and struct.unpack_from(">I", colours, 3)[0] not in (0, 12, 15, 16, 17, 18):
            raise PictureError("colour space", "a JPEG 2000 of a colour space that is not read: save it as sRGB")
    (channels,) = struct.unpack_from(">H", stream, 40)  # of the SIZ marker, ISO/IEC 15444-1, A.5.1
    depths = {(stream[42 + 3 * i] & 0x7F) + 1 for i in range(channels)}
    # Pillow shifts other depths to 8 bits: of 4 bits white becomes 240, of 10 bits it wraps around to black.
    if depths != {8} and not (picture.mode == "I;16" and max(depths) <= 16):
        least, most = min(depths), max(depths)
        found = f"{most}" if least == most else f"{least} to {most}"
        raise PictureError(f"{max(depths)}-bit", f"a JPEG 2000 with {found} bits per channel: save it as a PNG")
    picture.info["bit_depth"] = max(depths)


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The boxes of an ISO base media file (ISO/IEC 14496-12, 4.2): kind and content."""
    place = 0
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        head = 8
        if length == 1:
            head, (length,) = 16, struct.unpack_from(">Q", data, place + 8)
        elif length == 0:  # to the end
            length = len(data) - place
        if length < head:
            return
        yield kind, data[place + head : place + length]
        place += length


def _boxes_at(data: memoryview, *path: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """The boxes inside the boxes of a path."""
    if not path:
        yield from _boxes(data)
        return
    for kind, content in _boxes(data):
        if kind == path[0]:
            yield from _boxes_at(content[4:] if kind == b"meta" else content, *path[1:])  # it has version and flags
