"""Shapes: h×w pixels."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.picture_files import PictureError
from pipelines.pictures import fit_mask, fit_picture, load_picture, nearest_shape, shapes_near

# Picture files.


def test_a_picture_is_rotated_by_its_exif_orientation(tmp_path: Path) -> None:
    picture = Image.new("RGB", (32, 32), "white")
    picture.paste("black", (0, 0, 32, 8))  # the top, as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated clockwise: the stored top is the right side
    picture.save(tmp_path / "turned.png", exif=exif)
    shown = load_picture(tmp_path / "turned.png", 32)
    assert (shown[:, 24:] == 0).all() and (shown[:, :24] == 255).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white_whatever_their_colour(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (0, 0, 8, 16))
    picture.convert(mode).save(tmp_path / "cut-out.png")
    shown = load_picture(tmp_path / "cut-out.png", 16)
    assert (shown[:, 8:] == 255).all() and (shown[:, :8] == 0).all()


def test_half_transparent_black_is_grey(tmp_path: Path) -> None:
    Image.new("RGBA", (16, 16), (0, 0, 0, 128)).save(tmp_path / "half.png")
    assert np.abs(load_picture(tmp_path / "half.png", 16).astype(int) - 127).max() <= 1


@pytest.mark.parametrize(
    ("mode", "suffix"), [("1", "png"), ("L", "png"), ("CMYK", "tiff"), ("P", "gif"), ("RGB", "jpg")]
)
def test_pictures_of_every_mode_become_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    Image.new("RGB", (20, 20), "white").convert(mode).save(tmp_path / f"picture.{suffix}")
    shown = load_picture(tmp_path / f"picture.{suffix}", 16)
    assert shown.shape == (16, 16, 3) and shown.dtype == np.uint8
    assert shown.min() >= 254


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, 32).astype(np.uint16), (32, 1))
    Image.fromarray(ramp).save(tmp_path / "scan.png")
    shown = load_picture(tmp_path / "scan.png", 32)[0, :, 0].astype(int)
    assert np.abs(shown - np.linspace(0, 255, 32)).max() <= 2


@pytest.mark.parametrize("tall", [False, True])
def test_the_middle_is_kept_of_pictures_that_are_not_square(tmp_path: Path, tall: bool) -> None:
    bands = np.zeros((30, 90, 3), np.uint8)
    bands[:, 30:60] = (0, 200, 0)
    Image.fromarray(bands.transpose(1, 0, 2) if tall else bands).save(tmp_path / "bands.png")
    shown = load_picture(tmp_path / "bands.png", 30)
    assert shown.shape == (30, 30, 3) and (shown == (0, 200, 0)).all()


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert load_picture(tmp_path / "moving.gif", 16).min() == 255


# Shapes.


@pytest.mark.parametrize(
    ("size", "multiple", "count"), [(64, 16, 3), (128, 16, 7), (256, 16, 7), (96, 16, 5), (16, 16, 1)]
)
def test_shapes_have_sides_a_model_can_draw_and_about_as_many_pixels(size: int, multiple: int, count: int) -> None:
    shapes = shapes_near(size, multiple)
    assert shapes[0] == (size, size) and len(shapes) == len(set(shapes)) == count
    for h, w in shapes:
        assert h % multiple == w % multiple == 0
        assert 0.75 < h * w / size**2 < 1.25
        assert (w, h) in shapes


def test_a_picture_gets_the_shape_of_the_nearest_aspect_ratio() -> None:
    shapes = shapes_near(128, 16)
    for height, width in shapes:
        assert nearest_shape(3 * width + 1, 3 * height, shapes) == (height, width)
    assert nearest_shape(4000, 3000, shapes) == (112, 144)
    assert nearest_shape(3000, 4000, shapes) == (144, 112)
    assert nearest_shape(5000, 100, shapes) == (96, 176)


@pytest.mark.parametrize("tall", [False, True])
def test_padding_keeps_the_full_picture_in_the_middle_of_white(tall: bool) -> None:
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 20:] = (0, 200, 0)
    shown = fit_picture(Image.fromarray(wide.transpose(1, 0, 2) if tall else wide), 80, "pad")
    shown = shown.transpose(1, 0, 2) if tall else shown
    assert (shown[:20] == 255).all() and (shown[60:] == 255).all()
    assert (shown[20:60, :30] == 0).all() and (shown[20:60, 50:] == (0, 200, 0)).all()


@pytest.mark.parametrize("shape", [(48, 80), (80, 48)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_picture_can_be_fitted_to_any_shape(shape: tuple[int, int], fit: str) -> None:
    assert fit_picture(Image.new("RGB", (123, 77)), shape, fit).shape == (*shape, 3)


# Masks.


def marked(width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """A black picture with a white disc, and the disc's mask."""
    y, x = np.mgrid[:height, :width]
    disc = (((x - 0.4 * width) ** 2 + (y - 0.6 * height) ** 2) < (0.2 * min(width, height)) ** 2) * np.uint8(255)
    return Image.fromarray(np.repeat(disc[..., None], 3, axis=2)), Image.fromarray(disc)


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("shape", [(64, 64), (48, 80), (80, 48)])
@pytest.mark.parametrize("size", [(200, 100), (100, 200), (51, 30)])
def test_a_fitted_mask_covers_the_object_in_the_fitted_picture(
    size: tuple[int, int], shape: tuple[int, int], fit: str
) -> None:
    picture, mask = marked(*size)
    border = fit_picture(Image.new("RGB", size), shape, fit)[..., 0] > 127
    expected = (fit_picture(picture, shape, fit)[..., 0] > 127) & ~border
    assert expected.any()
    fitted = fit_mask(mask, size, shape, fit)
    assert fitted.shape == shape
    assert ((fitted > 127) != expected).mean() < 0.01
    coarse = fit_mask(mask.resize((size[0] // 2, size[1] // 2)), size, shape, fit)
    assert ((coarse > 127) != expected).mean() < 0.03


def test_a_mask_may_be_black_and_white_or_transparent() -> None:
    _, mask = marked(40, 40)
    expected = fit_mask(mask, (40, 40), 40)
    cut_out = Image.new("RGBA", (40, 40), "white")
    cut_out.putalpha(mask)
    for other in (mask.convert("1"), mask.convert("P"), cut_out):
        assert (fit_mask(other, (40, 40), 40) == expected).all()


def mask_in(kind: str) -> Image.Image:
    """The disc of `marked` as people save masks."""
    disc = np.asarray(marked(40, 40)[1]) > 0
    clear = Image.fromarray(np.uint8(255) * disc)
    if kind == "16-bit label":
        return Image.fromarray(disc.astype(np.uint16))
    if kind == "32-bit label":
        return Image.fromarray(disc.astype(np.int32) * 7)
    if kind == "floating-point":
        return Image.fromarray(disc.astype(np.float32))
    if kind == "8-bit label":
        return Image.fromarray(disc.astype(np.uint8))
    if kind == "16-bit white":
        return Image.fromarray(disc.astype(np.uint16) * 65535)
    if kind == "label with a colour":
        palette = Image.fromarray(disc.astype(np.uint8), "P")
        palette.putpalette([0, 0, 0, 128, 0, 0])
        return palette
    colour = {"black cut out": "black", "white cut out": "white", "red cut out": "red"}[kind]
    cut_out = Image.new("RGBA", (40, 40), colour)
    cut_out.putalpha(clear)
    return cut_out


@pytest.mark.parametrize(
    "kind",
    ["16-bit label", "32-bit label", "floating-point", "8-bit label", "16-bit white", "label with a colour"]
    + ["black cut out", "white cut out", "red cut out"],
)
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_a_mask_of_one_object_is_white_on_black_however_it_is_saved(kind: str) -> None:
    _, mask = marked(40, 40)
    assert (fit_mask(mask_in(kind), (40, 40), 40) == np.asarray(mask)).all()


def test_a_soft_mask_stays_soft() -> None:
    ramp = np.tile(np.arange(0, 256, 255 / 39).round().astype(np.uint8), (40, 1))
    assert (fit_mask(Image.fromarray(ramp), (40, 40), 40) == ramp).all()
    assert (fit_mask(Image.fromarray(ramp.astype(np.uint16) * 257), (40, 40), 40) == ramp).all()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_a_mask_may_be_saved_with_loss(kind: str) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    _, mask = marked(40, 40)
    file = io.BytesIO()
    mask.convert("RGB").save(file, kind, quality=60)
    assert np.abs(fit_mask(Image.open(file), (40, 40), 40).astype(int) - np.asarray(mask)).mean() < 8


def test_a_mask_of_several_objects_is_refused() -> None:
    labels = np.arange(1600, dtype=np.uint8).reshape(40, 40) % 4
    coloured = Image.fromarray(np.stack([labels * 80, labels * 40, 0 * labels], axis=-1))
    for mask in (Image.fromarray(labels), Image.fromarray(labels.astype(np.int32)), coloured, coloured.quantize(4)):
        with pytest.raises(PictureError, match=r"several .* save a mask of its own for each phrase"):
            fit_mask(mask, (40, 40), 40)


def test_a_mask_of_another_aspect_ratio_is_refused() -> None:
    with pytest.raises(ValueError, match="the mask has 40×40 pixels, its picture 60×40"):
        fit_mask(Image.new("L", (40, 40)), (60, 40), 32)
