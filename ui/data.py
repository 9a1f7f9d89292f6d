"""The data that the page can train on: the worlds of scenes, and people's own pictures; with previews and uploads.

Data is named only from the list of `data_names`, and an upload is read by `sources.files` and checked before it is
stored. So nobody reaches another file of the server.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from pipelines.data.scenes import SceneExamples
from pipelines.data.stream import Example
from pipelines.picture_files import open_picture
from pipelines.pictures import fit_picture
from pipelines.pixels import read_picture
from pipelines.scenes.worlds import WORLDS
from pipelines.sources.captioned import is_picture
from pipelines.sources.check import Report, examine
from pipelines.sources.files import open_zip
from pipelines.sources.findings import DataError
from pipelines.sources.pairing import TEXTS, ending
from pipelines.sources.tables import TABLES
from ui.runs import NAME

DATA = Path("data")
"""The folder of uploads, below the folder the page was started in."""

DEFAULT_DATA = "shapes"
UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Picture formats accepted in an upload, by Pillow's names: the widely used ones of those that `sources` reads."""

UPLOAD_TABLES = ("metadata.jsonl", "metadata.csv")
UPLOAD_TEXTS = tuple(ending for ending in TEXTS if ending != ".json")
"""Files accepted in an upload as captions: names of tables, and endings of texts."""

FINDINGS_SHOWN = 12
"""Lines of findings shown in a preview."""

MOST_UNPACKED = 2**30
"""Limit on the bytes of an upload, unpacked."""

MOST_FILES = 20_000
"""Limit on the files of an upload."""

UNSAFE = re.compile(r'[:*?"<>|\x00-\x1f]')
"""Characters that no file name on Windows may have. The page refuses them everywhere."""


@dataclass(frozen=True)
class Preview:
    """Some examples of the data and the findings about it, one line each. `usable`: whether it can be trained on."""

    examples: list[Example]
    findings: list[str]
    usable: bool = True


def data_names() -> list[str]:
    """The worlds of scenes, uploads, and folders with a table of captions up to two levels below the page's folder."""
    tables = [path for table in TABLES for depth in ("*", "*/*") for path in Path().glob(f"{depth}/{table}")]
    uploads = [path for path in DATA.glob("*") if path.is_dir()]
    found = {path.parent for path in tables} | set(uploads)
    folders = {folder for folder in found if not any(part.startswith(".") for part in folder.parts)}
    inside = [str(folder) for folder in folders if folder.resolve().is_relative_to(Path.cwd())]
    return [*WORLDS, *sorted(inside)]


def check_data(name: str) -> str:
    """The name, if it is one of `data_names`. Raises ValueError if it is not."""
    if name not in data_names():
        raise ValueError(f"data {str(name)[:80]!r} not found: choose one of {', '.join(data_names())}")
    return name


def preview(name: str, size: int, count: int = 8) -> Preview:
    """A few examples of the data of a name, size×size pixels, and the findings of its check."""
    try:
        data = check_data(name)
        if data in WORLDS:
            examples = [SceneExamples(size, 0, data).example(place) for place in range(count)]
            return Preview(examples, ["Endless scenes, with captions in English and Chinese and a mask for each word."])
        report = examine(data, size=size, progress=False)
        rows = report.rows
        chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
        shown = [rows[i] for i in chosen]
        examples = [Example(fit_picture(read_picture(row.read()), size), row.caption) for row in shown]
    except (ValueError, OSError) as error:
        return Preview([], [" ".join(str(error).split())], usable=False)
    return Preview(examples, report.summary() + _first(report), usable=not report.errors and bool(rows))


def _first(report: Report) -> list[str]:
    """The first lines of the findings."""
    lines = report.table().splitlines()
    more = len(lines) - FINDINGS_SHOWN
    return lines[:FINDINGS_SHOWN] + ([f"… and {more:,} more lines: unet-xattn data check"] if more > 0 else [])


def add_upload(archive: Path) -> str:
    """Store a zip of captioned pictures as a folder below `DATA`, named after the zip; returns its data name.

    Raises:
        ValueError: the zip cannot be read, has a file that is not accepted, or has errors; then nothing of it is kept.
    """
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", archive.stem).strip("-")[:40] or "pictures"
    DATA.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".upload-", dir=DATA) as scratch:
        new = Path(scratch) / "new"
        try:
            unpack(archive, new)
            examine(new, progress=False).raise_if_unfit("fail")
        except (DataError, OSError) as error:
            raise ValueError(str(error).replace(str(new), "the upload").replace(str(archive), "the upload")) from error
        names = (stem if i == 1 else f"{stem}-{i}" for i in range(1, 1000))
        folder = next(DATA / name for name in names if name not in WORLDS and not (DATA / name).exists())
        assert NAME.fullmatch(folder.name)
        new.rename(folder)
    return str(folder)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip from anybody into a new folder: pictures and their captions, nothing else.

    If all files are in one folder of the zip, the content of that folder is unpacked.

    Raises:
        DataError: the file is not a zip, exceeds a limit, or has a file that `open_zip` or the page refuses.
    """
    folder.mkdir()
    files = open_zip(archive, MOST_FILES, MOST_UNPACKED)
    for finding in (*files.refused.values(), *files.findings):
        raise DataError(f"the upload has {finding.name[:80]!r}: {finding.kind}: {finding.what}")
    for name in files.readers:
        _check_name(name)
    base = _common_folder([PurePosixPath(name) for name in files.readers])
    for name, read in files.readers.items():
        target = folder / PurePosixPath(name).relative_to(base)
        try:
            data = read()
            if is_picture(name):  # whatever its name says, it must be in an accepted format
                open_picture(data, UPLOAD_FORMATS)
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "xb") as file:
                file.write(data)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise DataError(f"the upload has {name[:80]!r}, which cannot be stored: {reason}") from error


def _check_name(name: str) -> None:
    """Raise DataError unless this is the name of a picture or of captions, and safe to store on every system."""
    if unsafe := UNSAFE.search(name):
        what = f"{unsafe[0]!r} in a name, which not every system can store: rename the file"
        raise DataError(f"the upload has {name[:80]!r}: {what}")
    is_text = PurePosixPath(name).name.lower() in UPLOAD_TABLES or ending(name) in UPLOAD_TEXTS
    if not is_text and not is_picture(name, UPLOAD_FORMATS):
        accepted = f"pictures ({', '.join(UPLOAD_FORMATS)}), {', '.join(UPLOAD_TABLES)} and {', '.join(UPLOAD_TEXTS)}"
        raise DataError(f"the upload has {name[:80]!r}: only {accepted} are accepted")


def _common_folder(paths: list[PurePosixPath]) -> PurePosixPath:
    """The one top folder of all these files, or the root."""
    tops = {path.parts[0] for path in paths if len(path.parts) > 1}
    alone = len(tops) == 1 and all(len(path.parts) > 1 for path in paths)
    return PurePosixPath(*tops) if alone else PurePosixPath()
