"""A folder of captioned pictures -> rows with the digest and the size of each picture."""

import hashlib
from io import BytesIO
from pathlib import Path

from PIL import Image

from pipelines.sources import Row, read_folder


def folder_rows(folder: str | Path) -> list[Row]:
    """The rows of a folder, every picture read; see `read_folder` for what is refused."""
    return [_row(path, caption) for path, caption in read_folder(folder)]


def _row(path: Path, caption: str) -> Row:
    data = path.read_bytes()
    with Image.open(BytesIO(data)) as picture:
        width, height = picture.size
        if picture.getexif().get(0x0112, 1) >= 5:  # to be shown turned by 90°
            width, height = height, width
    digest = hashlib.sha256(data).hexdigest()
    return Row(path.name, path.name, caption, path.read_bytes, digest=digest, width=width, height=height)
