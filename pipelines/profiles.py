"""Colour profiles: pictures of any colour space -> sRGB.

What a file says about its colours in other ways than an ICC profile (numbers of ITU-T H.273, a PNG's gamma and
primaries, a camera's EXIF) is written as an ICC profile too, so that there is one way of converting.
"""

import io
import struct
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""Pillow's mode -> the colour space that an ICC profile of it has."""

INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC

SAME = 1
"""Levels, out of 255. A profile that changes no colour by more is taken for sRGB."""

SRGB_CHROMATICITIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
"""x and y of white, red, green and blue, in the order of a PNG's cHRM chunk."""

CHROMATICITIES = {
    1: SRGB_CHROMATICITIES,
    2: SRGB_CHROMATICITIES,  # not specified
    5: (0.3127, 0.3290, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (0.3127, 0.3290, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    7: (0.3127, 0.3290, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (0.3127, 0.3290, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    12: (0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
"""Colour primaries of ITU-T H.273, table 2."""

SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
CURVES = dict.fromkeys((1, 2, 6, 13, 14, 15), SRGB_CURVE) | {4: (2.2,), 5: (2.8,), 8: (1.0,)}
"""Transfer characteristics of ITU-T H.273, table 3, as parameters of ICC curves. Those of video, which screens do not
undo exactly, are taken as sRGB, as browsers do."""

ADOBE_RGB = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)


def stated_profile(picture: Image.Image) -> bytes | None:
    """The ICC profile of a picture, or one of what else it says about its colours; None if it says nothing.

    Raises:
        ValueError: it says something that means no colours.
    """
    info = picture.info
    if cicp := info.get("cicp"):  # of a PNG it takes precedence over an ICC profile
        primaries, transfer = cicp
        if primaries not in CHROMATICITIES or transfer not in CURVES:
            raise ValueError(f"has the primaries {primaries} and the transfer {transfer} of H.273, which are not known")
        return matrix_profile(f"H.273 {primaries}/{transfer}", CHROMATICITIES[primaries], CURVES[transfer])
    if icc := info.get("icc_profile"):
        return icc
    if "srgb" in info:
        return None
    if "gamma" in info or "chromaticity" in info:
        # Writers of sRGB say 1/2.2 here, as PNG's specification asks of them.
        gamma, chromaticities = info.get("gamma", 1 / 2.2), info.get("chromaticity", SRGB_CHROMATICITIES)
        if not 0.1 < gamma < 10 or len(chromaticities) != 8:
            raise ValueError("has a gamma or primaries that mean no colours")
        curve = SRGB_CURVE if abs(gamma * 2.2 - 1) < 0.05 else (1 / gamma,)
        return matrix_profile(f"PNG gamma {gamma:.3g}", chromaticities, curve)
    if _exif_says_adobe_rgb(picture):
        return matrix_profile("Adobe RGB of its EXIF", ADOBE_RGB, (563 / 256,))
    return None


def _exif_says_adobe_rgb(picture: Image.Image) -> bool:
    """Whether a camera says so, either in "ColorSpace" or as DCF 2.0 has it, in "InteroperabilityIndex"."""
    try:
        exif = picture.getexif()
        space = exif.get_ifd(0x8769).get(0xA001)
        return space == 2 or (space == 0xFFFF and exif.get_ifd(0xA005).get(1) == "R03")
    except Exception:  # Pillow raises nearly anything on damaged EXIF
        return False


def to_srgb(picture: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    """A picture of mode L, RGB or CMYK converted to sRGB, and the name of its profile; "" if nothing had to change.

    Raises:
        ValueError: the profile is damaged or belongs to another kind of picture.
    """
    transform, name = _transform(profile, picture.mode)
    return (transform.apply(picture), name) if transform else (picture, "")


def lab_to_srgb(picture: Image.Image) -> Image.Image:
    """A picture of mode LAB (CIE L*a*b* of D50) as sRGB."""
    lab = ImageCms.createProfile("LAB")
    transform = ImageCms.buildTransform(lab, ImageCms.createProfile("sRGB"), "LAB", "RGB", INTENT)
    return transform.apply(picture)


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> tuple[ImageCms.ImageCmsTransform | None, str]:
    """The conversion of a profile's colours to sRGB, or None if they are sRGB; and the profile's name."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
        name = " ".join((opened.profile.profile_description or "without a name").split())[:60]
        if mode == "L" and space == "RGB" and _transform(profile, "RGB")[0] is None:
            return None, name  # grey is the same in sRGB
        if space != SPACES[mode]:
            raise ValueError(f"is for {space} pictures, this one is {SPACES[mode]}")
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(opened, srgb, mode, "RGB", INTENT, flags=flags)
    except (ImageCms.PyCMSError, OSError, AttributeError) as error:
        raise ValueError("is damaged") from error
    if mode == "CMYK":
        return transform, name
    steps = np.linspace(0, 255, 18).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(18, -1, 3)
    probe = Image.fromarray(cube if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
    moved = np.asarray(transform.apply(probe), int) - np.asarray(probe.convert("RGB"), int)
    return (None if np.abs(moved).max() <= SAME else transform), name


def matrix_profile(name: str, chromaticities: Sequence[float], curve: Sequence[float]) -> bytes:
    """An ICC profile (ICC.1:2010) of RGB with these primaries.

    Args:
        chromaticities: x and y of white, red, green and blue.
        curve: a gamma alone, or the five parameters of sRGB's kind of curve.

    Raises:
        ValueError: the chromaticities mean no colours.
    """
    try:
        with np.errstate(all="raise"):
            xyz = np.array([(x / y, 1, (1 - x - y) / y) for x, y in np.reshape(chromaticities, (4, 2))])
            white, primaries = xyz[0], xyz[1:].T
            primaries = primaries * np.linalg.solve(primaries, white)
            bradford = np.array([(0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296)])
            d50 = np.array([0.9642, 1.0, 0.8249])  # the white that ICC profiles refer to
            adaptation = np.diag((bradford @ d50) / (bradford @ white)) @ bradford
            colorants = np.linalg.solve(bradford, adaptation @ primaries).T
        numbers = [struct.pack(">3i", *(round(v * 65536) for v in column)) for column in (*colorants, d50)]
    except (ArithmeticError, np.linalg.LinAlgError, struct.error) as error:
        raise ValueError("has primaries that mean no colours") from error
    text = name.encode("utf-16-be")
    described = b"mluc" + struct.pack(">4xII2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    parametric = b"para" + struct.pack(">4xHxx", 0 if len(curve) == 1 else 3)
    parametric += struct.pack(f">{len(curve)}i", *(round(v * 65536) for v in curve))
    tags = {b"desc": described} | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), parametric)
    tags |= {key: b"XYZ \0\0\0\0" + n for key, n in zip((b"rXYZ", b"gXYZ", b"bXYZ", b"wtpt"), numbers, strict=True)}
    table, body = struct.pack(">I", len(tags)), b""
    for key, content in tags.items():
        table += key + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(
        ">I4xI4s4s4s12x4s28x", 132 + 12 * len(tags) + len(body), 0x04300000, b"mntr", b"RGB ", b"XYZ ", b"acsp"
    )
    illuminant = numbers[-1]
    return head + illuminant + bytes(128 - len(head) - len(illuminant)) + table + body
