"""Sets of the `datasets` library, saved to disk or on the Hugging Face hub -> rows."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.sources.files import LARGEST, FilePart, Reader, Spool
from pipelines.sources.findings import ERROR, DataError, Finding, printable
from pipelines.sources.rows import Source, make_row
from pipelines.sources.tables import CAPTIONS

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")
"""Names of the column of pictures, where no column has the type of pictures."""

TEXTS = (*CAPTIONS, "txt")
OTHERS = ("translation", "weight")
SPLIT = "train"


@dataclass(frozen=True, slots=True)
class SetPart:
    """A reader of the picture of one row of a set. Raises OSError."""

    column: Any  # datasets.Dataset of this column only; rows pickled together share it, as the names of its files
    index: int

    def __call__(self) -> bytes:
        (value,) = self.column[self.index].values()
        return picture_bytes(value)


def is_name(name: str) -> bool:
    """Whether this can be a set's name on the hub, "owner/name", rather than a mistyped path."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name)) and not Path(name).parent.exists()


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` made this folder. A state.json alone may be a caption, or of another program."""
    one = all((folder / name).is_file() for name in ("state.json", "dataset_info.json"))
    return one or (folder / "dataset_dict.json").is_file()


def read_set(name: str, streaming: bool = False, limit: int | None = None) -> Source:
    """The rows of a set's split "train", or of its only split: a column of pictures, and one called text or caption.

    With `streaming` the first `limit` rows are taken as they arrive and kept in one temporary file.

    Raises:
        DataError: the set is not found, cannot be loaded, or lacks these columns.
    """
    rows = _load(name, streaming)
    if not streaming:
        rows = rows.select(range(min(limit or len(rows), len(rows))))
        image, text = _columns(name, rows.features, rows.column_names)
        return _gather(rows, image, text)
    try:
        if rows.features:
            image, text = _columns(name, rows.features, rows.features)
            return _stream(islice(_undecoded(rows, image), limit), image, text)
        coming = iter(rows)
        first: Mapping[str, Any] = next(coming, {})
        image, text = _columns(name, None, first)
        return _stream(islice(chain([first], coming), limit), image, text)
    except DataError:
        raise
    except Exception as error:  # a hub, its file systems and builders raise unrelated types
        raise _unloadable(name, error) from error


def _load(name: str, streaming: bool) -> Any:
    from datasets import DatasetDict, load_dataset, load_from_disk

    try:
        if not is_saved(Path(name)):
            return load_dataset(name, split=SPLIT, streaming=streaming)
        found = load_from_disk(name)
    except Exception as error:  # see above
        raise _unloadable(name, error) from error
    if isinstance(found, DatasetDict):
        if SPLIT not in found and len(found) != 1:
            raise DataError(f"{printable(name)} has no split 'train', only {', '.join(map(repr, found))}")
        found = found[SPLIT] if SPLIT in found else next(iter(found.values()))
    return found.to_iterable_dataset() if streaming else found


def _unloadable(name: str, error: Exception) -> DataError:
    message = " ".join(str(error.__cause__ or error).split())[:300]
    return DataError(f"{printable(name)} cannot be loaded by datasets: {type(error).__name__}: {message}")


def _columns(name: str, features: Mapping[str, Any] | None, names: Iterable[str]) -> tuple[str, str]:
    """The names of the columns with the pictures and with the captions."""
    from datasets import Image

    names = list(names)
    typed = [column for column, kind in (features or {}).items() if isinstance(kind, Image)]
    images = [column for column in IMAGES if column in (typed or names)] or typed
    texts = [column for column in TEXTS if column in names]
    if not images or not texts:
        missing = "captions ('text' or 'caption')" if images else "pictures ('image')"
        raise DataError(f"{printable(name)} has no column of {missing}, only {', '.join(map(repr, names))}")
    for columns in (images, texts):
        if len(columns) > 1 and columns[0] not in ("image", "text"):
            shown = " or ".join(map(repr, columns))
            raise DataError(f"{printable(name)}: it is not clear which column to read, {shown}: rename one of them")
    return images[0], texts[0]


def _undecoded(rows: Any, image: str) -> Any:
    """The same rows, with the bytes of a picture in place of the picture."""
    from datasets import Image

    decoded = rows.features is not None and isinstance(rows.features.get(image), Image)
    return rows.cast_column(image, Image(decode=False)) if decoded else rows


def _gather(rows: Any, image: str, text: str) -> Source:
    pictures = _undecoded(rows.select_columns([image]), image)
    texts = rows.select_columns([column for column in (text, *OTHERS) if column in rows.column_names])
    found = Source([], [])
    for index, values in enumerate(texts):
        _add(found, index, values, text, SetPart(pictures, index))
    return found


def _stream(rows: Iterable[Mapping], image: str, text: str) -> Source:
    found, spool, offset = Source([], []), Spool(), 0
    with open(spool, "wb") as file:
        for index, values in enumerate(rows):
            try:
                data = picture_bytes(values[image])
            except OSError as error:
                found.findings.append(Finding(ERROR, "no file", f"{SPLIT}/{index}", f"row {index}", str(error)))
                continue
            file.write(data)
            _add(found, index, values, text, FilePart(spool, offset, len(data)))
            offset += len(data)
    return found


def _add(found: Source, index: int, values: Mapping[str, Any], text: str, read: Reader) -> None:
    columns = {"text": values.get(text)} | {column: values.get(column) for column in OTHERS}
    row, wrong = make_row(f"{SPLIT}/{index}", f"row {index}", columns, read)
    found.rows.extend([row] if row else [])
    found.findings.extend(wrong)


def picture_bytes(value: Any) -> bytes:
    """The bytes of an undecoded value of a column of pictures. Raises OSError."""
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(data, bytes):
        path = value.get("path") if isinstance(value, Mapping) else None
        if not isinstance(path, str):
            raise OSError("the row has no picture")
        data = _fetch(path)
    if len(data) > LARGEST:
        raise OSError(f"larger than {LARGEST / 2**20:,.0f} MiB")
    return data


def _fetch(path: str) -> bytes:
    """A picture that a set names instead of holding it. It is read from the hub or its cache, and from nowhere else."""
    import datasets
    import fsspec

    if "://" not in path:
        cache = os.path.realpath(datasets.config.HF_CACHE_HOME)
        if not os.path.realpath(path).startswith(cache + os.sep):
            raise OSError(f"the set names a file outside it, {PurePosixPath(path).name[:80]!r}")
        return FilePart(path)()
    if not re.fullmatch(r"(zip://[^:]*::)?hf://.*", path):
        raise OSError(f"the set names a file that is not on the hub, {path[:80]!r}")
    try:
        with fsspec.open(path, "rb") as file:
            return file.read(LARGEST + 1)
    except Exception as error:  # file systems raise unrelated types
        raise OSError(f"cannot be fetched: {error}") from error
