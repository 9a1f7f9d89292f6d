"""Pictures and masks as Pillow decodes them -> 8 bits per channel, sRGB, upright; and what had to be done for it.

The one place that says how each mode, depth and colour space is converted. Whatever is not known to be right is
refused. Shapes: h×w pixels.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from pipelines.picture_files import (
    BITS_PER_SAMPLE,
    MOST_PIXELS,
    PICTURE_FORMATS,
    PictureError,
    open_picture,
    picture_errors,
)
from pipelines.profiles import lab_to_srgb, stated_profile, to_srgb

ORIENTATION = 0x0112
PHOTOMETRIC = 262
"""A tag of TIFF 6.0; 0 says that white is 0."""

PLAIN = {"1": "L", "La": "LA", "RGBX": "RGB", "YCbCr": "RGB", "HSV": "RGB", "RGBa": "RGBA", "PA": "RGBA"} | {
    mode: mode for mode in ("L", "LA", "RGB", "RGBA", "CMYK", "LAB")
}
"""Pillow's modes of 8 bits or fewer -> the modes in which colours are converted; "P" depends on its palette."""


GREY_ENOUGH = 16
"""Levels that red, green and blue of a grey mask may lie apart: compression adds a little colour."""


class Handling(NamedTuple):
    """Something that was done to a picture: a kind in a word or two, and what. `doubtful`: it may not be right."""

    kind: str
    what: str
    doubtful: bool = False


def read_picture(
    data: bytes, formats: Collection[str] = PICTURE_FORMATS, most_pixels: int = MOST_PIXELS
) -> Image.Image:
    """The picture of a file, decoded and `displayed`.

    Raises:
        PictureError: it cannot be read or used.
    """
    with picture_errors():
        return displayed(open_picture(data, formats, most_pixels))[0]


def displayed(picture: Image.Image) -> tuple[Image.Image, list[Handling]]:
    """A picture upright, in sRGB, of mode L, LA, RGB or RGBA; and what was done.

    Raises:
        PictureError: what its values mean is not known. Decoding raises anything, see `picture_errors`.
    """
    done = []
    bits = _stored_bits(picture)
    if bits > 8:
        done.append(Handling(f"{bits}-bit", "scaled to 8 bits per channel"))
    if bits > 8 and picture.mode == "RGB" and "transparency" in picture.info:
        what = "16-bit colour with one transparent colour: save it with an alpha channel, or with 8 bits"
        raise PictureError("transparent colour", what)
    upright, turned = _upright(picture)
    if picture.mode in ("P", "PA"):
        done.append(Handling("palette", "converted to RGB"))
    plain = _eight_bits(picture, upright) if _is_deep(picture) else _plain(upright)
    if plain.mode in ("LA", "RGBA"):
        done.append(Handling("transparent", "placed on white"))
    if turned:
        done.append(Handling("turned", "rotated or mirrored as its EXIF says"))
    try:
        coloured, colours = _srgb(plain, stated_profile(picture))
    except ValueError as error:
        done.append(Handling("colour profile", f"its colour profile {error}: its colours are taken as sRGB", True))
        coloured, colours = _srgb(plain, None)
    return coloured, done + colours


def opaque(picture: Image.Image, ground: str) -> Image.Image:
    """A displayed picture as RGB, with transparent parts in the colour `ground`."""
    if picture.mode in ("LA", "RGBA"):
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, ground), picture.convert("RGBA"))
    return picture.convert("RGB")


def as_mask(picture: Image.Image) -> Image.Image:
    """A mask upright, of mode L: white where the object is, black elsewhere. Colour profiles have no meaning in it.

    The object may be white or grey on black, one colour on black, one number other than 0 in a map of labels, or what
    is not transparent, if all of it has one colour.

    Raises:
        PictureError: it is not known which part is the object.
    """
    upright, _ = _upright(picture)
    white: int | None = 255
    if _is_deep(picture):
        values, white = _levels(picture, upright)
    else:
        values = _mask_values(_plain(upright))
    marked, most = values != 0, values.max()
    if values.min() >= 0 and (values[marked] == most).all():  # one number: the object
        return Image.fromarray(np.where(marked, np.uint8(255), np.uint8(0)))
    if white is None or not white / 2 <= most:
        what = f"several values, up to {most:g}: save a mask of its own for each phrase, white where the object is"
        raise PictureError("bad mask", what)
    return Image.fromarray((values / white * 255).round().astype(np.uint8))


def _mask_values(plain: Image.Image) -> np.ndarray:
    """The brightness of a plain mask, or its opacity if what can be seen of it has one colour: (h, w) uint8."""
    if plain.mode == "L":
        return np.asarray(plain)
    *colours, alpha = (np.asarray(channel) for channel in plain.convert("RGBA").split())  # (h, w) each
    seen = [channel[alpha > 0] for channel in colours]
    if alpha.min() < 255 and all((channel == channel[:1]).all() for channel in seen):
        return alpha
    rgb = opaque(plain, "black")
    few = rgb.getcolors(2) or []
    if len(few) == 1 or (0, 0, 0) in [colour for _, colour in few]:
        return np.maximum.reduce([np.asarray(channel) for channel in rgb.split()])
    if (np.maximum.reduce(seen) - np.minimum.reduce(seen)).max() > GREY_ENOUGH:
        what = "several colours: save a mask of its own for each phrase, white where the object is"
        raise PictureError("bad mask", what)
    return np.asarray(rgb.convert("L"))


def _upright(picture: Image.Image) -> tuple[Image.Image, bool]:
    """A picture, decoded and rotated by its EXIF orientation, and whether that changed it."""
    turned = picture.getexif().get(ORIENTATION, 1) in range(2, 9)
    picture.load()  # here Pillow itself turns a TIFF
    return (ImageOps.exif_transpose(picture) if turned else picture), turned


def _plain(upright: Image.Image) -> Image.Image:
    """A picture of 8 bits or fewer per channel in one of the modes L, LA, RGB, RGBA, CMYK and LAB."""
    if upright.mode == "P":
        return upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    mode = PLAIN.get(upright.mode)
    if mode is None:
        raise PictureError("mode", f"{upright.mode}, a kind of picture that is not read: save it as a PNG")
    if "transparency" in upright.info and mode in ("L", "RGB"):
        return upright.convert({"L": "LA", "RGB": "RGBA"}[mode])
    return upright if upright.mode == mode else upright.convert(mode)


def _is_deep(picture: Image.Image) -> bool:
    """Whether it is grey of more than 8 bits, which Pillow's own conversion would clip."""
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def _levels(picture: Image.Image, upright: Image.Image) -> tuple[np.ndarray, int | None]:
    """The values of a deep picture, (h, w), and which of them is white; None if it is not known."""
    tags, values = getattr(picture, "tag_v2", {}), np.asarray(upright)
    if picture.mode.startswith("I;16"):
        white = 4095 if tags.get(BITS_PER_SAMPLE) == (12,) else 65535
    elif picture.mode == "I" and picture.format == "PPM":
        white = 65535
    else:
        return values, None
    return (white - values if tags.get(PHOTOMETRIC) == 0 else values), white


def _eight_bits(picture: Image.Image, upright: Image.Image) -> Image.Image:
    """A deep picture with 8 bits, L or LA."""
    values, white = _levels(picture, upright)
    if white is None:
        kind = "floating-point" if picture.mode == "F" else "signed or 32-bit"
        raise PictureError(kind, "which of its numbers is white is not known: save it with 8 or 16 bits")
    grey = Image.fromarray((values / white * 255).round().astype(np.uint8))
    if (transparency := picture.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparency, np.uint8(0), np.uint8(255))))
    return grey


def _stored_bits(picture: Image.Image) -> int:
    """Bits per channel in the file, as far as it matters: of a picture that is decoded already, those that it has."""
    if bits := picture.info.get("bit_depth"):
        return bits
    tiles = getattr(picture, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    if picture.format == "PPM" and isinstance(arguments, tuple) and isinstance(arguments[-1], int):
        return arguments[-1].bit_length()  # of the largest value
    if picture.mode.startswith("I;16") or re.search(r"(?<!BGR);16", str(arguments)):
        return 12 if getattr(picture, "tag_v2", {}).get(BITS_PER_SAMPLE) == (12,) else 16
    return 8


def _srgb(picture: Image.Image, profile: bytes | None) -> tuple[Image.Image, list[Handling]]:
    """A plain picture in sRGB, and what was done. Raises ValueError if the profile cannot be used."""
    if picture.mode == "LAB":
        return lab_to_srgb(picture), [Handling("LAB", "converted from CIE L*a*b* to sRGB")]
    if profile is not None:
        colours = picture.convert(picture.mode[:-1]) if picture.mode in ("LA", "RGBA") else picture
        converted, name = to_srgb(colours, profile)
        if not name:
            return picture, []
        if colours is not picture:
            converted.putalpha(picture.getchannel("A"))
        return converted, [Handling("colour profile", f"converted from its colour profile {name} to sRGB")]
    if picture.mode == "CMYK":
        what = "converted to RGB without a colour profile, so its colours are approximate"
        return picture.convert("RGB"), [Handling("CMYK", what)]
    return picture, []
