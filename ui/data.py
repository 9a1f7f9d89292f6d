"""What the page can train on: the scenes, the emoji, and people's own pictures, and what those look like.

A person names data only out of the list that `data_names` gives, and an upload is unpacked by rules: nobody reaches a
file of the server's that way.
"""

import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from pipelines.data.scenes import SceneExamples
from pipelines.data.stream import Example
from pipelines.pictures import fit_picture
from pipelines.scenes.worlds import WORLDS
from pipelines.sources.check import Report, examine
from pipelines.sources.files import is_clutter
from pipelines.sources.findings import DataError
from pipelines.sources.look import open_picture
from pipelines.sources.tables import TABLES
from ui.runs import NAME

DATA = Path("data")
"""Where uploads are kept, below the folder the page was started in."""

SHAPES = "shapes"
PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP"}
"""Kinds of picture taken from an upload, and what Pillow calls them. It reads others too, some by starting programs."""

TAKEN, CAPTION = ("metadata.jsonl", "metadata.csv"), ".txt"
"""What may say in an upload what its pictures show."""

SAID = 12
"""Of what is found in data, the lines shown."""

MOST_BYTES = 2**30
"""Of an upload, unpacked."""

MOST_FILES = 20_000
"""In an upload."""

MOST_RATIO, SMALL = 100, 2**24
"""How many times its size an upload may unpack to, once that is more than `SMALL` bytes. Pictures hardly shrink."""


@dataclass(frozen=True)
class Preview:
    """Some examples of the data, and what there is to say of it, a line each; `usable` unless that forbids training."""

    examples: list[Example]
    findings: list[str]
    usable: bool = True


def data_names() -> list[str]:
    """The scenes, the emoji, uploads, and folders with a table of captions up to two levels below the page's own."""
    tables = [path for table in TABLES for depth in ("*", "*/*") for path in Path().glob(f"{depth}/{table}")]
    uploads = [path for path in DATA.glob("*") if path.is_dir()]
    there = {path.parent for path in tables} | set(uploads)
    folders = {folder for folder in there if not any(part.startswith(".") for part in folder.parts)}
    inside = [str(folder) for folder in folders if folder.resolve().is_relative_to(Path.cwd())]
    return [*WORLDS, *sorted(inside)]


def check_data(name: str) -> str:
    """The name, if it is one of `data_names`. Raises ValueError if it is not."""
    if name not in data_names():
        raise ValueError(f"there is no data {str(name)[:80]!r} here: choose one of {', '.join(data_names())}")
    return name


def preview(name: str, size: int, count: int = 8) -> Preview:
    """A few examples of the data of a name, size×size pixels, and what is found when it is looked through."""
    try:
        data = check_data(name)
        if data in WORLDS:
            examples = [SceneExamples(size, 0, data).example(place) for place in range(count)]
            return Preview(
                examples, ["Scenes without end, captions in English and Chinese, with a mask for each word."]
            )
        report = examine(data, size=size, progress=False)
        rows = report.rows
        chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
        shown = [rows[i] for i in chosen]
        examples = [Example(fit_picture(open_picture(row.read()), size), row.caption) for row in shown]
    except (ValueError, OSError) as error:
        return Preview([], [" ".join(str(error).split())], usable=False)
    return Preview(examples, report.summary() + _first(report), usable=not report.errors and bool(rows))


def _first(report: Report) -> list[str]:
    """The first lines of what was found."""
    said = report.table().splitlines()
    return said[:SAID] + ([f"… and {len(said) - SAID:,} more lines: unet-xattn data check"] if len(said) > SAID else [])


def add_upload(archive: Path) -> str:
    """Unpack a zip of captioned pictures below `DATA`, under a name made of the file's own; returns its data name.

    Raises:
        ValueError: it is no zip, or holds something that does not belong there; then nothing is kept of it.
    """
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", archive.stem).strip("-")[:40] or "pictures"
    DATA.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".upload-", dir=DATA) as scratch:
        new = Path(scratch) / "new"
        unpack(archive, new)
        for path in new.rglob("*"):
            if path.suffix.lower() in PICTURES:
                _check_kind(path)
        try:
            examine(new, progress=False).raise_if_unfit("fail")
        except DataError as error:
            raise ValueError(str(error).replace(str(new), "the zip")) from error
        names = (stem if i == 1 else f"{stem}-{i}" for i in range(1, 1000))
        folder = next(DATA / name for name in names if name not in WORLDS and not (DATA / name).exists())
        assert NAME.fullmatch(folder.name)
        new.rename(folder)
    return str(folder)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip that anybody may have made into a new folder: pictures and their metadata, nothing else.

    If all of it lies in one folder, what is in that one is what counts.

    Raises:
        ValueError: it is no zip, too large, or holds anything else, a name that leads elsewhere, or a link.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = list(_members(file))
            base = _common_folder([path for path, _ in members])
            for path, member in members:
                target = folder / path.relative_to(base)
                target.parent.mkdir(parents=True, exist_ok=True)
                with file.open(member) as source, open(target, "xb") as copy:
                    shutil.copyfileobj(source, copy)  # zipfile gives no more bytes than the size it has declared
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
        raise ValueError(f"the upload cannot be unpacked as a zip: {error}") from error


def _members(archive: zipfile.ZipFile) -> Iterator[tuple[PurePosixPath, zipfile.ZipInfo]]:
    """The files of a zip with their paths, every one checked before the first is written."""
    files = [info for info in archive.infolist() if not info.is_dir() and not is_clutter(info.filename)]
    if len(files) > MOST_FILES:
        raise ValueError(f"the zip holds {len(files):,} files, the limit is {MOST_FILES:,}")
    size, packed = sum(info.file_size for info in files), sum(info.compress_size for info in files)
    if size > MOST_BYTES:
        raise ValueError(f"the zip unpacks to {size / 2**20:,.0f} MiB, the limit is {MOST_BYTES / 2**20:,.0f} MiB")
    if size > SMALL and size > MOST_RATIO * packed:
        raise ValueError(f"the zip unpacks to {size / max(packed, 1):,.0f} times its size, which pictures do not")
    for info in files:
        path, shown = PurePosixPath(info.filename), repr(info.filename[:80])
        if path.is_absolute() or ".." in path.parts or re.search(r'[\\:*?"<>|\x00-\x1f]', info.filename):
            raise ValueError(f"the zip holds {shown}: names that lead elsewhere are refused")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise ValueError(f"the zip holds {shown}, which is a link or a device: only plain files are taken")
        if info.flag_bits & 1:
            raise ValueError("the zip is locked with a password: pack it without one")
        if path.name not in TAKEN and path.suffix.lower() not in (*PICTURES, CAPTION):
            taken = f"pictures ({', '.join(PICTURES)}), {', '.join(TAKEN)} and {CAPTION}"
            raise ValueError(f"the zip holds {shown}: only {taken} are taken")
        yield path, info


def _check_kind(path: Path) -> None:
    """Raise ValueError if a picture is of another kind than its name may have, whatever that says."""
    try:
        Image.open(path, formats=sorted(set(PICTURES.values()))).close()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name[:80]!r} is no picture that is taken: {type(error).__name__}") from error


def _common_folder(paths: list[PurePosixPath]) -> PurePosixPath:
    tops = {path.parts[0] for path in paths if len(path.parts) > 1}
    alone = len(tops) == 1 and all(len(path.parts) > 1 for path in paths)
    return PurePosixPath(*tops) if alone else PurePosixPath()
