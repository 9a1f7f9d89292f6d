"""The colours of every format, mode, depth and colour profile, and what the findings say was done.

Truth is computed with numpy or known from how the file was made, not decoded by Pillow. Shapes: h×w pixels.
"""

import base64
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipelines.picture_files import PICTURE_FORMATS, PictureError, open_picture, picture_errors
from pipelines.pictures import fit_picture, load_picture
from pipelines.pixels import displayed, read_picture
from pipelines.profiles import ADOBE_RGB, CHROMATICITIES, SRGB_CHROMATICITIES, SRGB_CURVE, matrix_profile
from pipelines.sources.findings import ERROR, WARNING
from pipelines.sources.look import look_at
from pipelines.sources.rows import Row

SIDE = 64


def patches() -> np.ndarray:
    """8×8 patches of 8×8 pixels: colours that CIE L*a*b* of 8 bits can hold, white, black, and a ramp of grey."""
    colours = np.random.default_rng(0).integers(70, 236, (48, 3))
    colours[:4] = [(255, 255, 255), (0, 0, 0), (200, 60, 50), (60, 170, 80)]
    ramp = np.repeat(np.linspace(0, 255, 16).round()[:, None], 3, axis=1)
    return np.concatenate([colours, ramp]).reshape(8, 8, 3).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)


RGB = patches()
GREY = np.ascontiguousarray(RGB[..., 1])
ALPHA = np.full((SIDE, SIDE), 255, np.uint8)
ALPHA[:16], ALPHA[16:24] = 0, 128


def grey_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(grey, float)[..., None], 3, axis=-1)


def on_white(colours: np.ndarray) -> np.ndarray:
    opacity = ALPHA[..., None] / 255
    return colours * opacity + 255 * (1 - opacity)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def findings(data: bytes) -> dict[str, str]:
    """The findings of `look_at` about a picture: their kinds and details."""
    found = look_at(Row("a", "a", "a", partial(bytes, data)), SIDE).findings
    return {finding.kind: finding.what for finding in found}


def off(data: bytes, truth: np.ndarray) -> float:
    """The largest difference from the truth, in levels, of the pixels that a file is trained on."""
    shown = load_picture_of(data)
    return float(np.abs(shown - truth).max())


def load_picture_of(data: bytes) -> np.ndarray:
    with picture_errors():
        return fit_picture(open_picture(data), SIDE).astype(float)


def refused(data: bytes) -> str:
    """The kind of error of a file that is neither shown nor passed by the check of data."""
    with pytest.raises(PictureError) as caught:
        load_picture_of(data)
    (finding,) = look_at(Row("a", "a", "a", partial(bytes, data)), SIDE).findings
    assert (finding.severity, finding.kind, finding.what) == (ERROR, caught.value.kind, str(caught.value))
    assert "\n" not in finding.what
    return finding.kind


# Modes × formats.


def with_alpha(picture: Image.Image) -> Image.Image:
    picture.putalpha(Image.fromarray(ALPHA))
    return picture


def in_lab() -> Image.Image:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.applyTransform(Image.fromarray(RGB), ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))


def sixteen(mode: str) -> Image.Image:
    order = ">" if mode == "I;16B" else "<"
    return Image.frombytes(mode, (SIDE, SIDE), (GREY.astype(f"{order}u2") * 257).tobytes())


PALETTE = Image.fromarray(RGB).quantize(256)  # 64 colours: exact
CUT_OUT = PALETTE.copy()
CUT_OUT.info["transparency"] = CUT_OUT.getpixel((40, 0))
HOLE = (RGB[0, 40] == RGB).all(axis=-1, keepdims=True)

MODES: dict[str, tuple[Callable[[], Image.Image], np.ndarray, set[str]]] = {
    "1": (lambda: Image.fromarray(GREY > 127), grey_rgb(255 * (GREY > 127)), set()),
    "L": (lambda: Image.fromarray(GREY), grey_rgb(GREY), set()),
    "LA": (lambda: with_alpha(Image.fromarray(GREY)), on_white(grey_rgb(GREY)), {"transparent"}),
    "P": (lambda: PALETTE, RGB, set()),
    "P with transparency": (lambda: CUT_OUT, np.where(HOLE, 255, RGB), {"transparent"}),
    "PA": (lambda: PALETTE.convert("PA"), RGB, set()),
    "RGB": (lambda: Image.fromarray(RGB), RGB, set()),
    "RGBA": (lambda: with_alpha(Image.fromarray(RGB)), on_white(RGB), {"transparent"}),
    "RGBa": (lambda: with_alpha(Image.fromarray(RGB)).convert("RGBa"), on_white(RGB), {"transparent"}),
    "RGBX": (lambda: Image.fromarray(RGB).convert("RGBX"), RGB, set()),
    "CMYK": (lambda: Image.fromarray(RGB).convert("CMYK"), RGB, set()),
    "YCbCr": (lambda: Image.fromarray(RGB).convert("YCbCr"), RGB, set()),
    "HSV": (lambda: Image.fromarray(RGB).convert("HSV"), RGB, set()),
    "LAB": (in_lab, RGB, set()),
    "I": (lambda: Image.fromarray(GREY.astype(np.int32) * 257), grey_rgb(GREY), set()),
    "F": (lambda: Image.fromarray(GREY.astype(np.float32)), grey_rgb(GREY), set()),
    "I;16": (lambda: sixteen("I;16"), grey_rgb(GREY), {"16-bit"}),
    "I;16B": (lambda: sixteen("I;16B"), grey_rgb(GREY), {"16-bit"}),
    "I;16L": (lambda: sixteen("I;16L"), grey_rgb(GREY), {"16-bit"}),
}
"""Mode -> a picture of it, its colours on white, and the kinds of notes about it in a format that keeps the mode."""

OPTIONS: dict[str, dict] = {
    "JPEG": {"quality": 98, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},
    "AVIF": {"quality": 98, "subsampling": "4:4:4"},
    "ICO": {"sizes": [(SIDE, SIDE)]},
}
LOSES = {(mode, kind) for mode in ("LA", "RGBA", "P with transparency") for kind in ("GIF", "BMP", "PPM")}
LOSES |= {("P with transparency", "TIFF"), ("LAB", "AVIF")}
"""Where Pillow writes other alpha, or another colour profile, than it is given."""

CLIPS = {"I", "I;16", "I;16B", "I;16L", "F"}
"""Modes that Pillow's writers of these formats clip or do not have."""

KEEPS = {"PNG", "TIFF", "PPM", "ICO", "JPEG2000"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:Saving I mode images as PNG:DeprecationWarning")
def test_a_picture_of_any_mode_and_format_has_its_colours_or_is_refused(mode: str, tmp_path: Path) -> None:
    make, truth, notes = MODES[mode]
    checked = 0
    for kind in PICTURE_FORMATS:
        if (mode, kind) in LOSES or (mode in CLIPS and kind not in KEEPS) or (kind == "AVIF" and no_avif()):
            continue
        try:
            data = encoded(make(), kind, **OPTIONS.get(kind, {}))
        except (OSError, ValueError, KeyError):  # Pillow does not write this mode in this format
            continue
        checked += 1
        if (mode, kind) in {("I", "TIFF"), ("F", "TIFF"), ("F", "PPM")}:
            assert refused(data) in ("floating-point", "signed or 32-bit")
            continue
        if (mode, kind) == ("YCbCr", "TIFF"):  # not as TIFF 6.0 has it
            assert refused(data) == "truncated"
            continue
        tolerance = {"AVIF": 12, "JPEG": 3}.get(kind, 6 if mode in ("LAB", "HSV") else 3)
        assert off(data, truth) <= tolerance, kind
        (tmp_path / "file").write_bytes(data)
        assert (load_picture(tmp_path / "file", SIDE) == load_picture_of(data)).all()
        found = set(findings(data))
        assert found <= {"transparent", "palette", "16-bit", "CMYK", "LAB"}, kind
        assert notes <= found, kind
        opened = open_picture(data).mode
        assert ("palette" in found) == (opened in ("P", "PA")) and ("CMYK" in found) == (opened == "CMYK")
        assert ("LAB" in found) == (opened == "LAB")
    assert checked or mode == "I;16L"


def no_avif() -> bool:
    Image.init()
    return "AVIF" not in Image.SAVE


def test_a_picture_that_is_decoded_already_has_the_same_colours() -> None:
    for mode, (make, truth, _) in MODES.items():
        if mode not in ("I", "F", "LAB"):
            assert np.abs(fit_picture(make(), SIDE).astype(float) - truth).max() <= 3, mode
    for mode in ("I", "F"):
        with pytest.raises(PictureError, match="save it with 8 or 16 bits"):
            fit_picture(MODES[mode][0](), SIDE)


# Depths, in files that Pillow does not write.


def png(bits: int, colour: int, samples: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of samples (h, w) or (h, w, C)."""
    h, w = samples.shape[:2]
    flat = samples.reshape(h, -1)
    if bits < 8:
        rows = [
            np.packbits(np.unpackbits(row[:, None].astype(np.uint8), axis=1)[:, 8 - bits :].ravel()) for row in flat
        ]
    else:
        rows = list(flat.astype(f">u{bits // 8}"))
    head = struct.pack(">IIBBBBB", w, h, bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    every = [(b"IHDR", head), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    packed = [struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in every]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def tiff(samples: np.ndarray, bits: int, order: str = "<", **tags: int) -> bytes:
    """An uncompressed TIFF of samples (h, w) or (h, w, C); its tags by name."""
    h, w = samples.shape[:2]
    channels = samples.shape[2] if samples.ndim == 3 else 1
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    values = {256: w, 257: h, 259: 1, 262: tags.get("photometric", 1), 277: channels, 278: h, 279: len(data)}
    values |= {284: tags.get("planar", 1)} | {
        tag: tags[name] for tag, name in ((317, "predictor"), (338, "extra")) if name in tags
    }
    start = 8
    body = struct.pack(f"{order}{channels}H", *[bits] * channels) + struct.pack(
        f"{order}{channels}H", *[tags.get("sample", 1)] * channels
    )
    body += bytes(-len(body) % 4)
    values |= {258: start, 339: start + 2 * channels, 273: start + len(body)}
    if channels <= 2:  # short enough to lie in the directory
        packed = [bits, tags.get("sample", 1)]
        values |= dict(zip((258, 339), [v * (1 if channels == 1 else 65537) for v in packed], strict=True))
    directory = struct.pack(f"{order}H", len(values))
    for tag, value in sorted(values.items()):
        count = channels if tag in (258, 339) else 1
        directory += struct.pack(f"{order}HHI", tag, 3 if tag in (258, 262, 277, 317, 338, 339, 284, 259) else 4, count)
        short = tag in (262, 277, 317, 338, 284, 259) or (tag in (258, 339) and count == 1)
        directory += struct.pack(f"{order}Hxx" if short else f"{order}I", value)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}I", start + len(body) + len(data)) + body + data + directory + bytes(4)


def scaled(samples: np.ndarray, most: int) -> np.ndarray:
    return (samples / 255 * most).round().astype(np.uint16)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("clear", [None, 0, 0.5, 1])
def test_grey_png_of_any_depth_is_right_with_and_without_a_transparent_value(bits: int, clear: float | None) -> None:
    most = 2**bits - 1
    samples = scaled(GREY, most)
    truth = grey_rgb(samples.astype(float) * 255 / most)
    if clear is None:
        data = png(bits, 0, samples)
    else:
        value = samples.flat[np.abs(samples - clear * most).argmin()]
        data = png(bits, 0, samples, (b"tRNS", struct.pack(">H", value)))
        truth = np.where(samples[..., None] == value, 255, truth)
    assert off(data, truth) <= 1
    assert findings(data).keys() == ({"16-bit"} if bits == 16 else set()) | (
        {"transparent"} if clear is not None else set()
    )


def test_coloured_png_of_16_bits_is_right_or_refused() -> None:
    rgba, la = np.dstack([RGB, ALPHA]), np.dstack([GREY, ALPHA])
    for colour, samples, truth in ((2, RGB, RGB), (6, rgba, on_white(RGB)), (4, la, on_white(grey_rgb(GREY)))):
        data = png(16, colour, scaled(samples, 65535))
        assert off(data, truth) <= 1 and "16-bit" in findings(data)
    assert refused(png(16, 2, scaled(RGB, 65535), (b"tRNS", bytes(6)))) == "transparent colour"
    eight = png(8, 2, RGB, (b"tRNS", struct.pack(">3H", *RGB[0, 40])))
    assert off(eight, np.where(HOLE, 255, RGB)) == 0


@pytest.mark.parametrize("most", [1, 15, 100, 255, 256, 1023, 4095, 65535])
@pytest.mark.parametrize("magic", [b"P2", b"P3", b"P5", b"P6"])
def test_pnm_of_any_largest_value_is_right(most: int, magic: bytes) -> None:
    samples = scaled(RGB if magic in (b"P3", b"P6") else GREY, most)
    if magic in (b"P2", b"P3"):
        body = b" ".join(b"%d" % value for value in samples.ravel())
    else:
        body = samples.astype(">u2" if most > 255 else np.uint8).tobytes()
    data = magic + b" %d %d %d\n" % (SIDE, SIDE, most) + body
    truth = samples.astype(float) * 255 / most
    assert off(data, truth if truth.ndim == 3 else grey_rgb(truth)) <= 1
    assert findings(data).keys() == ({f"{most.bit_length()}-bit"} if most > 255 else set())


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_every_kind_of_numbers_is_right_or_refused(order: str) -> None:
    deep = scaled(GREY, 65535)
    rgba = np.dstack([scaled(RGB, 65535), scaled(ALPHA, 65535)])
    right = [
        (tiff(GREY, 8, order), grey_rgb(GREY), set()),
        (tiff(255 - GREY, 8, order, photometric=0), grey_rgb(GREY), set()),
        (tiff(deep, 16, order), grey_rgb(GREY), {"16-bit"}),
        (tiff(scaled(RGB, 65535), 16, order, photometric=2), RGB, {"16-bit"}),
        (tiff(rgba, 16, order, photometric=2, extra=2), on_white(RGB), {"16-bit", "transparent"}),
        (tiff(255 - np.dstack([RGB, np.full_like(GREY, 255)]), 8, order, photometric=5), RGB, {"CMYK"}),
    ]
    if order == "<":  # Pillow reads white as 0 and 12 bits in this order only
        right.append((tiff(65535 - deep, 16, order, photometric=0), grey_rgb(GREY), {"16-bit"}))
        twelve = scaled(GREY, 4095).reshape(-1, 2)
        triples = np.stack(
            [twelve[:, 0] >> 4, (twelve[:, 0] & 15) << 4 | twelve[:, 1] >> 8, twelve[:, 1] & 255], axis=1
        )
        data = bytearray(tiff(np.zeros((SIDE, SIDE * 3 // 2), np.uint8), 12, order))
        data[12 : 12 + triples.size] = triples.astype(np.uint8).tobytes()
        width = data.index(struct.pack("<HHII", 256, 4, 1, SIDE * 3 // 2))
        data[width : width + 12] = struct.pack("<HHII", 256, 4, 1, SIDE)
        right.append((bytes(data), grey_rgb(GREY), {"12-bit"}))
    for data, truth, notes in right:
        assert off(data, truth) <= 1
        assert findings(data).keys() == notes
    assert refused(tiff(deep.astype(np.int16), 16, order, sample=2)) == "signed or 32-bit"
    assert refused(tiff(GREY, 8, order, sample=2)) == "signed"
    assert refused(tiff(GREY.astype(np.int32), 32, order, sample=2)) == "signed or 32-bit"
    assert refused(tiff(GREY.astype(np.float32) / 255, 32, order, sample=3)) == "floating-point"
    assert refused(tiff(scaled(RGB, 65535), 16, order, photometric=2, planar=2)) == "planar"
    assert refused(tiff(GREY, 8, order, predictor=2)) == "predictor"


GREY_12 = base64.b64decode(
    "/0//UQApAAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAABCwEB/1IADAAAAAEAAQQEAAH/XAAHQGBoaHD/ZAAlAAFDcmVhdGVkIGJ5"
    "IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAABwAAH/k9/hRBFqopciE/TwdhG4x2trZq40HXRerM3M22OHark9obSz9AZMmIcokU4+i9hN"
    "CuJwsx1gJwsx1gLN8pbvgU2zQnO1hn4HV4JoVt183zfN84BiP8H5hQA2oZnJ7oA3/d7n/9k="
)
"""imagecodecs.jpeg2k_encode(np.tile(np.arange(0, 4096, 273, np.uint16), (16, 1)), level=0, codecformat="j2k",
bitspersample=12, reversible=True): a ramp of 16 greys from black to white."""


def test_jpeg_2000_of_another_depth_than_8_bits_is_right_or_refused() -> None:
    shown = fit_picture(open_picture(GREY_12), 16)
    assert np.abs(shown[..., 0] - np.linspace(0, 255, 16)).max() <= 1
    assert findings(GREY_12)["12-bit"] == "scaled to 8 bits per channel"
    for picture in (Image.fromarray(RGB), with_alpha(Image.fromarray(RGB)), with_alpha(Image.fromarray(GREY))):
        data = encoded(picture, "JPEG2000")
        (channels,) = data[(place := data.index(b"\xff\x4f\xff\x51") + 41) : place + 1]
        for depth in (1, 4, 10, 16):
            wrong = bytearray(data)
            for channel in range(channels):
                wrong[place + 1 + 3 * channel] = depth - 1
            assert refused(bytes(wrong)) == f"{depth}-bit"
    assert off(encoded(Image.fromarray(RGB), "JPEG2000"), RGB) == 0


# Colour profiles.

PROFILES: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "Display P3": (CHROMATICITIES[12], SRGB_CURVE),
    "Adobe RGB": (ADOBE_RGB, (563 / 256,)),
    "ProPhoto": ((0.3457, 0.3585, 0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001), (1.8,)),
    "swapped": ((0.3127, 0.3290, 0.30, 0.60, 0.64, 0.33, 0.15, 0.06), SRGB_CURVE),
    "linear": (SRGB_CHROMATICITIES, (1.0,)),
}


def to_xyz(chromaticities: Sequence[float]) -> np.ndarray:
    """Linear RGB -> XYZ of its own white."""
    xyz = np.array([(x / y, 1, (1 - x - y) / y) for x, y in np.reshape(chromaticities, (4, 2))])
    return xyz[1:].T * np.linalg.solve(xyz[1:].T, xyz[0])


def bradford(white: np.ndarray, to: np.ndarray) -> np.ndarray:
    cones = np.array([(0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296)])
    return np.linalg.inv(cones) @ np.diag((cones @ to) / (cones @ white)) @ cones


def stored_in(name: str) -> np.ndarray:
    """The patches as a file with this profile stores them: the colours are those of `RGB` as sRGB."""
    chromaticities, curve = PROFILES[name]
    srgb, other = to_xyz(SRGB_CHROMATICITIES), to_xyz(chromaticities)
    values = RGB / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    adapted = np.linalg.inv(other) @ bradford(srgb @ np.ones(3), other @ np.ones(3)) @ srgb
    linear = np.clip(linear @ adapted.T, 0, 1)
    if len(curve) == 1:
        return (255 * linear ** (1 / curve[0])).round().astype(np.uint8)
    return (
        (255 * np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055))
        .round()
        .astype(np.uint8)
    )


def profile_of(name: str) -> bytes:
    return matrix_profile(name, *PROFILES[name])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("name", ["Display P3", "Adobe RGB", "ProPhoto", "swapped"])
def test_colours_of_a_profile_are_converted_and_told(name: str, kind: str) -> None:
    if kind == "AVIF" and no_avif():
        pytest.skip("this Pillow has no AVIF")
    stored = Image.fromarray(stored_in(name))
    data = encoded(stored, kind, icc_profile=profile_of(name), **OPTIONS.get(kind, {}))
    tolerance = {"AVIF": 30, "JPEG": 8}.get(kind, 6)  # steps of the wide gamuts are larger than those of sRGB
    assert off(data, RGB) <= tolerance
    assert np.abs(load_picture_of(data) - RGB).mean() <= (2.5 if kind == "AVIF" else 1)
    assert findings(data) == {"colour profile": f"converted from its colour profile {name} to sRGB"}
    assert np.abs(np.asarray(stored, float) - RGB).max() > 12  # it makes a difference


def test_alpha_and_palette_are_converted_by_their_profile_too() -> None:
    stored = Image.fromarray(stored_in("Display P3"))
    palette = encoded(stored.quantize(256), "PNG", icc_profile=profile_of("Display P3"))
    assert off(palette, RGB) <= 4 and findings(palette).keys() == {"palette", "colour profile"}
    transparent = encoded(with_alpha(stored), "PNG", icc_profile=profile_of("Display P3"))
    assert off(transparent, on_white(RGB)) <= 4 and findings(transparent).keys() == {"transparent", "colour profile"}


@pytest.mark.parametrize("made", ["by Pillow", "of its numbers", "nearly"])
def test_a_profile_of_srgb_changes_no_pixel_and_needs_no_note(made: str) -> None:
    profiles = {
        "by Pillow": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        "of its numbers": matrix_profile("sRGB", SRGB_CHROMATICITIES, SRGB_CURVE),
        "nearly": matrix_profile("sRGB", (0.31271, 0.32902, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06), SRGB_CURVE),
    }
    for picture, truth in ((Image.fromarray(RGB), RGB), (Image.fromarray(GREY), grey_rgb(GREY))):
        data = encoded(picture, "PNG", icc_profile=profiles[made])
        assert off(data, truth) == 0 and findings(data) == {}


def test_a_profile_two_levels_from_srgb_is_converted() -> None:
    near = matrix_profile("near", SRGB_CHROMATICITIES, (2.44, *SRGB_CURVE[1:]))
    data = encoded(Image.fromarray(RGB), "PNG", icc_profile=near)
    assert 1 < off(data, RGB) <= 4 and findings(data).keys() == {"colour profile"}


def icc(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"scnr", connection: bytes = b"Lab ") -> bytes:
    """An ICC profile (version 2) of these tags; of the kind that needs tables of one direction only."""
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 6) + b"print\0" + bytes(78)} | tags
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for key, content in tags.items():
        table += key + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s28x", start + len(body), 0x02400000, kind, space, connection, b"acsp")
    return head + struct.pack(">3i", 63190, 65536, 54061) + bytes(48) + table + body


def lab_as_srgb(lab: Sequence[float]) -> np.ndarray:
    """CIE L*a*b* of D50 as sRGB, 0 to 255."""
    f = (lab[0] + 16) / 116 + np.array([lab[1] / 500, 0, -lab[2] / 200])
    d50 = np.array([0.9642, 1, 0.8249])
    xyz = d50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    srgb = to_xyz(SRGB_CHROMATICITIES)
    linear = np.clip(np.linalg.solve(srgb, bradford(d50, srgb @ np.ones(3)) @ xyz), 0, 1)
    return 255 * np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


INKS = {(0, 0, 0, 0): (100, 0, 0), (1, 0, 0, 0): (60, -20, -40), (0, 1, 0, 0): (50, 60, 0), (0, 0, 1, 0): (88, -5, 60)}
"""Inks on paper -> L*a*b* of a printer's profile; all others are black."""


def printer_profile(black: float = 0) -> bytes:
    corners = [tuple(i >> shift & 1 for shift in (3, 2, 1, 0)) for i in range(16)]
    table = [INKS.get(corner, (black, 0, 0)) for corner in corners]
    colours = bytes(round(v) for L, a, b in table for v in (L * 2.55, a + 128, b + 128))
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    steps = bytes(range(256))
    lookup = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + steps * 4 + colours + steps * 3
    return icc(b"CMYK", {b"A2B0": lookup, b"A2B1": lookup})


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_is_converted_by_its_profile_if_it_has_one(kind: str) -> None:
    inks = np.zeros((SIDE, SIDE, 4), np.uint8)
    for i, ink in enumerate([*INKS, (0, 0, 0, 1)]):
        inks[:, 8 * i : 8 * i + 8] = np.array(ink) * 255
    picture = Image.frombytes("CMYK", (SIDE, SIDE), inks.tobytes())
    plain, profiled = (encoded(picture, kind, icc_profile=profile) for profile in (b"", printer_profile()))
    assert findings(profiled) == {"colour profile": "converted from its colour profile print to sRGB"}
    assert "without a colour profile" in findings(plain)["CMYK"]
    shown = load_picture_of(profiled)
    for i, lab in enumerate([*INKS.values(), (0, 0, 0)]):
        assert np.abs(shown[20, 8 * i + 4] - lab_as_srgb(lab)).max() <= 4, lab
    assert np.abs(shown[20, 12] - load_picture_of(plain)[20, 12]).max() > 50  # cyan
    dark = load_picture_of(encoded(picture, kind, icc_profile=printer_profile(black=10)))
    assert dark[20, 36].max() <= 2  # the darkest that a printer can do is black


def test_grey_is_converted_by_its_profile() -> None:
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, 256)  # a gamma of 1.0
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    linear = icc(b"GRAY", {b"kTRC": curve, b"wtpt": white}, b"mntr", b"XYZ ")
    values = GREY / 255
    truth = grey_rgb(255 * np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055))
    assert off(encoded(Image.fromarray(GREY), "PNG", icc_profile=linear), truth) <= 1
    transparent = encoded(with_alpha(Image.fromarray(GREY)), "PNG", icc_profile=linear)
    assert off(transparent, on_white(truth)) <= 1
    deep = encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG", icc_profile=linear)
    assert off(deep, truth) <= 1 and findings(deep).keys() == {"16-bit", "colour profile"}


@pytest.mark.parametrize(
    ("profile", "why"),
    [
        (b"no profile", "is damaged"),
        (profile_of("Display P3")[:300], "is damaged"),
        (printer_profile(), "is for CMYK pictures, this one is RGB"),
    ],
    ids=["nonsense", "cut short", "another space"],
)
def test_a_profile_that_cannot_be_used_is_a_warning_and_colours_are_taken_as_srgb(profile: bytes, why: str) -> None:
    data = encoded(Image.fromarray(RGB), "PNG", icc_profile=profile)
    assert off(data, RGB) == 0
    (finding,) = look_at(Row("a", "a", "a", partial(bytes, data)), SIDE).findings
    assert finding.severity == WARNING and finding.what == f"its colour profile {why}: its colours are taken as sRGB"


# What a file says of its colours without an ICC profile.


def test_gamma_and_primaries_of_a_png_are_applied_unless_they_are_those_of_srgb() -> None:
    srgb = (b"cHRM", struct.pack(">8I", *(round(v * 1e5) for v in SRGB_CHROMATICITIES)))
    for chunks in ([(b"gAMA", struct.pack(">I", 45455))], [(b"gAMA", struct.pack(">I", 45455)), srgb], [srgb]):
        assert off(png(8, 2, RGB, *chunks), RGB) == 0 and findings(png(8, 2, RGB, *chunks)) == {}
    linear = (b"gAMA", struct.pack(">I", 100_000))
    assert off(png(16, 2, scaled(stored_in("linear"), 65535), linear), RGB) <= 13  # 8 bits of light: coarse in the dark
    assert "PNG gamma 1" in findings(png(8, 2, RGB, linear))["colour profile"]
    assert off(png(8, 2, RGB, linear, (b"sRGB", b"\0")), RGB) == 0  # takes precedence
    wide = (b"cHRM", struct.pack(">8I", *(round(v * 1e5) for v in CHROMATICITIES[12])))
    assert off(png(8, 2, stored_in("Display P3"), wide), RGB) <= 4
    assert "mean no colours" in findings(png(8, 2, RGB, (b"cHRM", bytes(32))))["colour profile"]


def test_primaries_by_number_are_applied_and_high_dynamic_range_is_refused() -> None:
    assert off(png(8, 2, stored_in("Display P3"), (b"cICP", bytes([12, 13, 0, 1]))), RGB) <= 4
    assert off(png(8, 2, RGB, (b"cICP", bytes([1, 13, 0, 1]))), RGB) == 0
    assert refused(png(16, 2, scaled(RGB, 65535), (b"cICP", bytes([9, 16, 0, 1])))) == "HDR"
    unknown = png(8, 2, RGB, (b"cICP", bytes([99, 13, 0, 1])))
    assert off(unknown, RGB) == 0 and "not known" in findings(unknown)["colour profile"]


@pytest.mark.skipif(no_avif(), reason="this Pillow has no AVIF")
def test_primaries_of_an_avif_are_applied() -> None:
    data = encoded(Image.fromarray(stored_in("Display P3")), "AVIF", **OPTIONS["AVIF"])
    place = data.index(b"colrnclx") + 8
    p3 = data[:place] + struct.pack(">HH", 12, 13) + data[place + 4 :]
    assert findings(data) == {} and "H.273 12/13" in findings(p3)["colour profile"]
    assert np.abs(load_picture_of(p3) - RGB).mean() < 2 < np.abs(load_picture_of(data) - RGB).mean()
    assert refused(data[:place] + struct.pack(">HH", 9, 18) + data[place + 4 :]) == "HDR"


def test_profile_and_colour_space_of_a_jpeg_2000_are_found() -> None:
    data = encoded(Image.fromarray(stored_in("Display P3")), "JPEG2000")
    place, header = data.index(b"colr") - 4, data.index(b"jp2h") - 4
    (length,) = struct.unpack_from(">I", data, place)

    def with_colours(content: bytes) -> bytes:
        box = struct.pack(">I", 8 + len(content)) + b"colr" + content
        (old,) = struct.unpack_from(">I", data, header)
        sized = struct.pack(">I", old + len(box) - length)
        return data[:header] + sized + data[header + 4 : place] + box + data[place + length :]

    converted = with_colours(b"\2\0\0" + profile_of("Display P3"))
    assert off(converted, RGB) <= 4 and "Display P3" in findings(converted)["colour profile"]
    assert refused(with_colours(b"\1\0\0" + struct.pack(">I", 14))) == "colour space"  # L*a*b*


def test_adobe_rgb_that_only_exif_tells_of_is_converted() -> None:
    first = struct.pack(">HHHIII", 1, 0x8769, 4, 1, 26, 0)  # each directory: entries of tag, type, count, value
    camera = struct.pack(">HHHIHxxHHIII", 2, 0xA001, 3, 1, 0xFFFF, 0xA005, 4, 1, 56, 0)
    index = struct.pack(">HHHI4sI", 1, 1, 2, 4, b"R03\0", 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">I", 8) + first + camera + index
    data = encoded(Image.fromarray(stored_in("Adobe RGB")), "JPEG", exif=exif, **OPTIONS["JPEG"])
    assert "Adobe RGB" in findings(data)["colour profile"] and off(data, RGB) <= 8
    said = exif.replace(struct.pack(">HHIH", 0xA001, 3, 1, 0xFFFF), struct.pack(">HHIH", 0xA001, 3, 1, 2))
    assert "Adobe RGB" in findings(encoded(Image.fromarray(RGB), "JPEG", exif=said))["colour profile"]
    for other in (exif.replace(b"R03", b"R98"), exif[:-18], exif[:40]):
        assert findings(encoded(Image.fromarray(RGB), "JPEG", exif=other, **OPTIONS["JPEG"])) == {}


def test_a_profile_inside_a_bmp_is_found() -> None:
    profile = profile_of("Display P3")
    plain = encoded(Image.fromarray(stored_in("Display P3")), "BMP")
    pixels = plain[54:]
    head = struct.pack("<IiiHHIIiiII", 124, SIDE, SIDE, 1, 24, 0, len(pixels), 0, 0, 0, 0) + bytes(16) + b"DEBM"
    head += bytes(48) + struct.pack("<IIII", 4, 124 + len(pixels), len(profile), 0)
    data = b"BM" + struct.pack("<IHHI", 138 + len(pixels) + len(profile), 0, 0, 138) + head + pixels + profile
    assert off(data, RGB) <= 4 and "Display P3" in findings(data)["colour profile"]


# The fast way of the check, and reading by one function.


def test_the_fingerprint_has_the_colours_that_are_trained_on() -> None:
    side = 512
    srgb, wide = (
        Image.fromarray(a).resize((side, side), Image.Resampling.NEAREST) for a in (RGB, stored_in("Display P3"))
    )
    jpegs = [
        encoded(srgb, "JPEG", quality=95),
        encoded(wide, "JPEG", quality=95, icc_profile=profile_of("Display P3")),
        encoded(srgb.convert("CMYK"), "JPEG", quality=95),
    ]
    looks = [look_at(Row("a", "a", "a", partial(bytes, data)), SIDE) for data in jpegs]
    truth = np.asarray(Image.fromarray(RGB).resize((4, 4), Image.Resampling.BOX), int)
    for look, data in zip(looks, jpegs, strict=True):
        tints = np.frombuffer(look.tints, np.uint8).reshape(4, 4, 3).astype(int)
        assert np.abs(tints - truth).max() <= 3 and (look.width, look.height) == (side, side)
        assert np.abs(fit_picture(open_picture(data), 64)[4::8, 4::8].astype(int) - RGB[4::8, 4::8]).max() <= 8


def test_a_displayed_picture_stays_as_it_is() -> None:
    for name in ("Display P3", "linear"):
        shown = read_picture(encoded(Image.fromarray(stored_in(name)), "PNG", icc_profile=profile_of(name)))
        again, done = displayed(shown)
        assert not done and (np.asarray(again) == np.asarray(shown)).all()
