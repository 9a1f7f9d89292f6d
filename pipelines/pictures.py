"""Pictures as people bring them -> pictures to train on."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def load_picture(path: Path, size: int) -> np.ndarray:
    """A picture as (size, size, 3) uint8: turned as its EXIF says, laid on white where transparent, centre-cropped."""
    with Image.open(path) as file:
        return fit_picture(file, size)


def fit_picture(picture: Image.Image, size: int) -> np.ndarray:
    """`load_picture` of a picture that is open already."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):  # 16 bits of grey, which Pillow's own conversion would clip
        picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture).convert("RGB")
    return np.array(ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS))


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 pictures (B, h, w, 3) -> (B, 3, h, w) float32 in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
