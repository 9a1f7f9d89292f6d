"""Captioned pictures as people keep them -> rows.

A source is a folder, a .zip or .tar of one, shards of WebDataset, or a set that `datasets` knows. Nothing of it is
changed, and no picture is read yet: `pipelines.sources.check` does that.
"""

import glob
import os
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pipelines.sources.captioned import is_picture, read_files
from pipelines.sources.files import open_folder, open_tar, open_zip
from pipelines.sources.findings import ERROR, DataError, Finding, printable
from pipelines.sources.rows import Row, Source
from pipelines.sources.sets import is_name, is_saved, read_set
from pipelines.sources.tables import TABLES

__all__ = ["DataError", "Row", "Source", "read_source"]


def read_source(source: str | os.PathLike, streaming: bool = False, limit: int | None = None) -> Source:
    """The rows of captioned pictures of any kind we know.

    Args:
        source: a folder, a .zip, .tar or .tar.gz of one, shards of WebDataset (a folder of .tar files, or a pattern
            such as "shards/{000..009}.tar"), a folder that `datasets` has saved, or a set's name on the hub.
        streaming: take the rows of a set of `datasets` as they come; what is beyond `limit` is never downloaded.
        limit: the first rows only.

    Raises:
        DataError: there is no such source, it holds no pictures or no captions, or it cannot be read at all.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit must be 1 or more, got {limit}")
    if streaming and limit is None:
        raise DataError("streaming needs a limit: how many pictures to take")
    try:
        found = _read(source, streaming, limit)
    except OSError as error:
        raise DataError(f"{printable(str(source))} cannot be read: {error.strerror or error}") from error
    return found if limit is None else Source(found.rows[:limit], found.findings)


def _read(source: str | os.PathLike, streaming: bool, limit: int | None) -> Source:
    name, path = os.fspath(source), Path(source)
    shown = printable(name)
    if path.is_dir():
        if is_saved(path):
            return read_set(name, streaming, limit)
        files = open_folder(path)
        pictures = any(map(is_picture, files.readers))
        endings = {PurePosixPath(name).suffix for name in files.readers if PurePosixPath(name).name not in TABLES}
        if not pictures and ".parquet" in endings:  # a set of `datasets` as it lies on the hub
            return read_set(name, streaming, limit)
        shards = [path / name for name in files.readers if name.endswith((".tar", ".tar.gz", ".tgz"))]
        return read_shards(shown, shards) if shards and not pictures else read_files(shown, files)
    if path.is_file():
        if path.suffix.lower() == ".zip":
            return read_files(shown, open_zip(path))
        if path.name.lower().endswith((".tar", ".tar.gz", ".tgz")):
            return read_files(shown, open_tar(path))
        raise DataError(f"{shown} is neither a folder nor a .zip, .tar or .tar.gz of captioned pictures")
    if re.search(r"[*?{\[]", name):
        shards = [Path(found) for pattern in expand_braces(name) for found in sorted(glob.glob(pattern))]
        if not shards:
            raise DataError(f"no file is called {shown}")
        return read_shards(shown, shards)
    if is_name(name):
        return read_set(name, streaming, limit)
    raise DataError(f"there is no {shown}: give a folder of captioned pictures, or a .zip or .tar of one")


def expand_braces(pattern: str) -> list[str]:
    """A shell's braces: "{a,b}.tar" -> "a.tar", "b.tar"; "{08..10}" counts from 08 to 10."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    numbers = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", found[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if not 0 <= last - first < 100_000:
            raise DataError(f"{printable(found[0])} counts to no end: from a number to a larger one is meant")
        choices = [f"{number:0{len(numbers[1])}}" for number in range(first, last + 1)]
    else:
        choices = found[1].split(",")
    return [
        rest for choice in choices for rest in expand_braces(pattern[: found.start()] + choice + pattern[found.end() :])
    ]


def read_shards(source: str, shards: list[Path]) -> Source:
    """The rows of tars, one after another, in each of which a caption's file lies beside its picture."""
    rows, findings = [], []
    for shard in shards:
        try:
            found = read_files(shard.name, open_tar(shard))
        except DataError as error:
            findings.append(Finding(ERROR, "unreadable", shard.name, "", str(error)))
            continue
        where = [f"{shard.name}: {row.where}" for row in found.rows]
        rows += [
            replace(row, name=f"{shard.name}/{row.name}", where=w) for row, w in zip(found.rows, where, strict=True)
        ]
        findings += [replace(f, where=f"{shard.name}: {f.where}".rstrip(": ")) for f in found.findings]
    if not rows and not findings:
        raise DataError(f"{source} has no captioned pictures")
    return Source(rows, findings)
