"""Captioned pictures as people keep them -> rows."""

import glob
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image


class DataError(ValueError):
    """What is wrong with the data somebody gave."""


@dataclass(frozen=True)
class Row:
    """One captioned picture as somebody keeps it. Its files are read when asked for, not before.

    `read` and the values of `masks` give a picture file's bytes, and can be pickled. Raises nothing but OSError.
    """

    name: str  # the picture's path in its source, "cats/1.png"
    where: str  # where its caption stands, "metadata.jsonl:3", "cats/1.txt"
    caption: str
    read: Callable[[], bytes]
    translation: str = ""  # the same in another language, if somebody has said it
    masks: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)  # a phrase of the caption -> where it is
    weight: float = 1.0  # how often it comes, relative to others
    digest: str = ""  # sha256 of its picture's bytes, in hex, and below its size upright, once somebody has looked
    width: int = 0
    height: int = 0


def read_folder(folder: str | Path) -> list[tuple[Path, str]]:
    """(picture, caption) for every row of a folder of captioned pictures, each picture opened once.

    Raises:
        DataError: no such folder, no pictures, no captions, or pictures or captions that cannot be used (all named).
    """
    from datasets import Image as ImageFeature
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give one with pictures and a metadata.jsonl")
    # An empty file too: datasets stumbles over it.
    tables = [folder / f"metadata.{kind}" for kind in ("jsonl", "csv", "parquet")]
    if not any(f.is_file() and f.read_bytes().strip() for f in tables):
        raise DataError(
            f"{folder} has no captions: add a metadata.jsonl with one line a picture, "
            '{"file_name": "cat.png", "text": "a black cat"}'
        )
    if not any(Image.registered_extensions().get(p.suffix.lower()) for p in folder.rglob("*")):
        raise DataError(f"{folder} has no pictures")
    try:
        # "**" keeps datasets from reading splits into names: a picture called my-test.png is no test set.
        table = load_dataset(
            "imagefolder", data_dir=glob.escape(str(folder)), data_files={"train": "**"}, split="train"
        )
    except (DatasetGenerationError, ValueError, FileNotFoundError) as error:
        raise DataError(f"{folder} cannot be read: {error.__cause__ or error}") from error
    if "text" not in table.column_names:
        raise DataError(f"{folder}: its metadata has no column 'text' for captions, only {table.column_names}")
    table = table.cast_column("image", ImageFeature(decode=False))
    rows, bad = [], []
    for row in table:
        path, caption = Path(row["image"]["path"]), row["text"]
        if not isinstance(caption, str) or not caption.strip():
            bad.append(f"{path.name}: no caption")
            continue
        try:
            with Image.open(path) as picture:
                picture.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            bad.append(f"{path.name}: {error}")
            continue
        rows.append((path, caption))
    if bad:
        raise DataError(f"{folder}: {len(bad)} of {len(table)} rows cannot be used: {'; '.join(bad)}")
    return rows
