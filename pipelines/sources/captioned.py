"""Files -> rows. Captions come from tables, from files beside the pictures, or from the names of folders."""

import json
import os
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from pipelines.sources.files import Files, Reader, leads_elsewhere
from pipelines.sources.findings import ERROR, NOTE, WARNING, DataError, Finding, printable
from pipelines.sources.rows import Row, Source, make_row
from pipelines.sources.tables import CAPTIONS, FILE_NAME, TABLES, read_table

PICTURE_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "PPM", "AVIF", "JPEG2000")
"""Picture formats that are read, by Pillow's names. Pillow knows others, some of which start programs."""

NOT_READ = (".heic", ".heif", ".jxl", ".svg", ".eps", ".pdf", ".psd", ".dng", ".cr2", ".nef", ".arw", ".tga")
"""File endings of other picture formats that people have."""

EXAMPLE = '{"file_name": "cat.png", "text": "a black cat"}'


def is_picture(name: str, formats: Collection[str] = PICTURE_FORMATS) -> bool:
    """Whether a file's ending is that of one of these picture formats."""
    return Image.registered_extensions().get(PurePosixPath(name).suffix.lower()) in formats


def read_files(source: str, files: Files) -> Source:
    """The rows of a folder or an archive: from its tables, else from captions beside pictures, else from folder names.

    Raises:
        DataError: no pictures or no captions are found.
    """
    rows = _Gathering(files)
    pictures = [name for name in files.readers if is_picture(name)]
    tables = [name for name in files.readers if PurePosixPath(name).name in TABLES]
    explained = files.findings or any(finding.severity == ERROR for finding in files.refused.values())
    if not pictures and len(tables) in (0, len(files.readers)) and not explained:
        raise DataError(f"{source} has no pictures")
    beside = {} if tables else {name: text for name in pictures if (text := _beside(name, files))}
    if tables:
        for table in tables:
            rows.read_table(table)
        for name in pictures:
            if name not in rows.used:
                rows.find(WARNING, "no row", name, "", "no table names this picture: it is not used")
    elif beside:
        for name in sorted(pictures, key=lambda name: name not in beside):  # a mask has no caption but is used by a row
            if name in beside or name not in rows.used:
                rows.read_beside(name, beside.get(name))
        for name in files.readers:
            if name.endswith(".txt") and name not in beside.values():
                rows.find(NOTE, "no picture", name, "", "no picture has the name of this text: it is not read")
    else:
        rows.read_folder_names(pictures)
    for name in files.readers:
        if PurePosixPath(name).suffix.lower() in NOT_READ:
            rows.find(WARNING, "not read", name, "", "this picture format is not read: save it as PNG or JPEG")
    findings = rows.findings + [f for name, f in files.refused.items() if name not in rows.used] + files.findings
    if not rows.rows and not any(finding.severity == ERROR for finding in findings):
        raise DataError(f"{source} has no captions: add a metadata.jsonl with one line per picture, {EXAMPLE}")
    return Source(rows.rows, findings)


def _beside(name: str, files: Files) -> str | None:
    """The file with a picture's caption: the same name with another ending."""
    stem = str(PurePosixPath(name).with_suffix(""))
    # In WebDataset a sample's name ends at the first dot, so "7.rgb.png" goes with "7.txt".
    folder, short = PurePosixPath(name).parent, PurePosixPath(name).name.split(".", 1)[0]
    candidates = [base + ending for base in (stem, str(folder / short)) for ending in (".txt", ".json")]
    return next((candidate for candidate in candidates if candidate in files.readers), None)


class _Gathering:
    """The rows and findings of a set of files, gathered file by file."""

    def __init__(self, files: Files):
        self.files = files
        self.rows: list[Row] = []
        self.findings: list[Finding] = []
        self.used: set[str] = set()

    def find(self, severity: str, kind: str, name: str, where: str, what: str) -> None:
        self.findings.append(Finding(severity, kind, name, where, what))

    def read_table(self, table: str) -> None:
        """Add the rows of one table. The files they name are relative to the table's folder."""
        try:
            data = self.files.readers[table]()
        except OSError as error:
            self.find(ERROR, "unreadable", table, "", str(error))
            return
        columns: set[str] = set()
        lines = 0
        bad: list[tuple[int, dict[str, Any]]] = []
        for number, values in read_table(table, data):
            where = f"{table}:{number}"
            if isinstance(values, str):
                self.find(ERROR, "bad line", table, where, values[:200])
                continue
            lines += 1
            if len(columns) < 100:
                columns |= values.keys()
            if not isinstance(values.get(FILE_NAME), str) or not any(column in values for column in CAPTIONS):
                bad.append((number, values))
            self._read_line(PurePosixPath(table).parent, where, values)
        needed = {f"'{FILE_NAME}'": FILE_NAME in columns, "'text'": any(column in columns for column in CAPTIONS)}
        if lines and (missing := [name for name, present in needed.items() if not present]):
            # One finding for the table instead of one per line.
            covered = {f"{table}:{number}" for number, _ in bad}
            self.findings = [f for f in self.findings if f.where not in covered]
            have = ", ".join(sorted(map(repr, columns))[:10])
            self.find(ERROR, "no column", table, "", f"no column {' and no '.join(missing)}, only {have}")
        elif not lines and not any(f.name == table for f in self.findings):
            self.find(ERROR, "no captions", table, "", f"the table is empty: expected one line per picture, {EXAMPLE}")

    def _read_line(self, folder: PurePosixPath, where: str, values: dict[str, Any]) -> None:
        file_name = values.get(FILE_NAME)
        if not isinstance(file_name, str) or not file_name:
            self.find(ERROR, "no file name", printable(str(file_name))[:80], where, "the row's file_name is not text")
            return
        if name := self._resolve(folder, file_name, where):
            self._add(name, where, values, folder)

    def _resolve(self, folder: PurePosixPath, file_name: str, where: str) -> str | None:
        """The name among `files` of the file that a table names; None, with a finding, if it cannot be used."""
        shown = file_name[:200]
        if leads_elsewhere(file_name.replace("\\", "/")):
            self.find(ERROR, "leaves the folder", shown, where, "only files inside the folder are read")
            return None
        choices = [os.path.normpath(folder / choice) for choice in (file_name, file_name.replace("\\", "/"))]
        names = [choice.replace(os.sep, "/") for choice in choices]
        found = next((name for name in names if name in self.files.readers), None)
        if found is None:
            refusal = next((self.files.refused[name] for name in names if name in self.files.refused), None)
            if refusal:
                self.used |= set(names)
                self.find(ERROR, refusal.kind, shown, where, refusal.what)
            else:
                self.find(ERROR, "no file", shown, where, "not found")
        return found

    def read_beside(self, name: str, caption: str | None) -> None:
        """Add a picture whose caption is in a .txt of the same name, or in a .json with the columns of tables."""
        if caption is None:
            self.find(ERROR, "no caption", name, "", "no .txt or .json of the same name is beside it")
            return
        try:
            data = self.files.readers[caption]()
        except OSError as error:
            self.find(ERROR, "unreadable", name, caption, str(error))
            return
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            self.find(ERROR, "not UTF-8", name, caption, "UTF-16: save it as UTF-8")
            return
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
        values: Any = {"text": text}
        if caption.endswith(".json"):
            try:
                values = json.loads(text)
            except (ValueError, RecursionError) as error:
                self.find(ERROR, "bad line", name, caption, f"not JSON: {error}"[:200])
                return
        if not isinstance(values, dict):
            self.find(ERROR, "bad line", name, caption, 'not a JSON object: expected {"text": …}')
            return
        self._add(name, caption, values, PurePosixPath(name).parent)

    def read_folder_names(self, pictures: list[str]) -> None:
        """Add pictures whose captions are the names of their folders."""
        folders = {PurePosixPath(name).parent.name for name in pictures} - {""}
        if not folders:
            return
        shown = ", ".join(sorted(folders)[:5]) + (", …" if len(folders) > 5 else "")
        self.find(NOTE, "folder names", "captions", "", f"not found, so the names of folders are used: {shown}")
        for name in pictures:
            folder = PurePosixPath(name).parent
            if folder.name:
                self._add(name, f"{folder}/", {"text": re.sub(r"[-_\s]+", " ", folder.name)}, folder)
            else:
                self.find(ERROR, "no caption", name, "", "not in a folder whose name could be its caption")

    def _add(self, name: str, where: str, values: dict[str, Any], folder: PurePosixPath) -> None:
        """Add the row of a picture, or findings if its values are wrong."""
        self.used.add(name)
        row, findings = make_row(name, where, values, self.files.readers[name])
        self.findings += findings
        if row is None:
            return
        masks, found = self._masks(name, where, values.get("masks"), row.caption, folder)
        if masks is not None:
            self.rows.append(replace(row, masks=masks))
        self.findings += [Finding(ERROR, "bad mask", name, where, what) for what in found]

    def _masks(
        self, name: str, where: str, value: Any, caption: str, folder: PurePosixPath
    ) -> tuple[dict[str, Reader] | None, list[str]]:
        """Readers of a row's masks by phrase and no messages, or None and what is wrong."""
        if value is None or value == "":
            return {}, []
        try:
            value = json.loads(value) if isinstance(value, str) else dict(value)
        except (ValueError, TypeError, RecursionError):
            value = None
        if not isinstance(value, dict):
            return None, ['masks must be an object: {"phrase": "path of a PNG"}']
        masks: dict[str, Reader] = {}
        wrong = []
        for phrase, path in value.items():
            if path is None:  # parquet gives every row all keys
                continue
            if not isinstance(path, str) or not isinstance(phrase, str):
                wrong.append(f"the mask of {str(phrase)[:40]!r} must be a path")
            elif phrase.casefold() not in caption.casefold() or not phrase:
                wrong.append(f"{phrase[:40]!r} is not in the caption")
            elif found := self._resolve(folder, path, where):
                self.used.add(found)
                masks[phrase] = self.files.readers[found]
            else:
                wrong.append(f"{path[:80]!r}, the mask of {phrase[:40]!r}, cannot be used")
        return (None if wrong else masks), wrong
