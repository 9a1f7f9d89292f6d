"""Files -> rows. Captions come from tables, from files beside the pictures, or from the names of folders."""

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from pipelines.picture_files import PICTURE_FORMATS
from pipelines.sources.files import Files, Reader, composed, leads_elsewhere
from pipelines.sources.findings import ERROR, NOTE, WARNING, DataError, Finding, printable
from pipelines.sources.pairing import NO_CAPTIONS, TEXTS, companions, ending, texts_of, unread_texts
from pipelines.sources.rows import Row, Source, make_row
from pipelines.sources.tables import CAPTIONS, FILE_NAME, is_table, read_table

NOT_READ = (".heic", ".heif", ".jxl", ".svg", ".eps", ".pdf", ".psd", ".dng", ".cr2", ".nef", ".arw", ".tga")
"""File endings of other picture formats that people have."""

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")

EXAMPLE = '{"file_name": "cat.png", "text": "a black cat"}'


def is_picture(name: str, formats: Collection[str] = PICTURE_FORMATS) -> bool:
    """Whether a file's ending is that of one of these picture formats."""
    return Image.registered_extensions().get(ending(name)) in formats


def _is_unknown(name: str) -> bool:
    return not is_picture(name) and not is_table(name) and ending(name) not in (*NOT_READ, *ARCHIVES)


def _last_part(name: str) -> str:
    return PurePosixPath(name).name.strip().lower()


def lines_of(text: str) -> dict[int, str]:
    """The lines of a text that are not blank, by their numbers from 1."""
    lines = (line.strip() for line in re.split(r"\r\n|\r|\n", text))
    return {number: line for number, line in enumerate(lines, 1) if line}


def words_of(folder: str) -> str:
    """A folder's name as a caption: "red-apple" is "red apple"."""
    return re.sub(r"[-_\s]+", " ", folder).strip()


def read_files(source: str, files: Files) -> Source:
    """The rows of a folder or an archive: from its tables, else from captions beside pictures, else from folder names.

    Raises:
        DataError: no pictures or no captions are found.
    """
    rows = _Gathering(files)
    pictures = [name for name in files.readers if is_picture(name)]
    tables = [name for name in files.readers if is_table(name)]
    explained = files.findings or any(finding.severity == ERROR for finding in files.refused.values())
    if not pictures and len(tables) in (0, len(files.readers)) and not explained:
        raise DataError(f"{source} has no pictures")
    texts = texts_of([*pictures, *filter(is_picture, files.refused)], files.readers, files.samples)
    if tables:
        rows.read_tables(tables, pictures, texts)
    elif texts:
        rows.read_texts(pictures, texts)
    else:
        rows.read_folder_names(pictures)
    for name in files.readers:
        if ending(name) in NOT_READ:
            rows.find(WARNING, "not read", name, "", "this picture format is not read: save it as PNG or JPEG")
        elif ending(name) in ARCHIVES:
            rows.find(WARNING, "not read", name, "", "an archive inside is not read: give it alone, or unpack it")
    findings = rows.findings + [f for name, f in files.refused.items() if name not in rows.used] + files.findings
    if not rows.rows and not any(finding.severity == ERROR for finding in findings):
        raise DataError(f"{source} has no captions: add a metadata.jsonl with one line per picture, {EXAMPLE}")
    return Source(rows.rows, findings)


class _Gathering:
    """The rows and findings of a set of files, gathered file by file."""

    def __init__(self, files: Files):
        self.files = files
        self.rows: list[Row] = []
        self.findings: list[Finding] = []
        self.used: set[str] = set()

    def find(self, severity: str, kind: str, name: str, where: str, what: str) -> None:
        self.findings.append(Finding(severity, kind, name, where, what))

    @cached_property
    def by_last_part(self) -> dict[str, str]:
        """A file of each name without folders, in lower case."""
        return {_last_part(name): name for name in self.files.readers}

    def read_tables(self, tables: list[str], pictures: list[str], texts: Mapping[str, list[str]]) -> None:
        """Add the rows of tables, and findings on pictures that no table names and on texts that are not read."""
        for table in tables:
            self.read_table(table)
        places: dict[str, list[str]] = {}
        for row in self.rows:
            places.setdefault(row.name, []).append(row.where)
        for name, where in places.items():
            if len(where) > 1:
                others = ", ".join(where[:-1])[:200]
                self.find(NOTE, "several captions", name, where[-1], f"all are used, also {others}")
        for name in pictures:
            if name not in self.used:
                self.find(WARNING, "no row", name, "", "no table names this picture: it is not used")
        if unread := sorted({text for own in texts.values() for text in own}):
            what = f"a table has the captions, so text files of pictures are not read: {len(unread):,} here"
            self.find(WARNING, "not read", unread[0], "", what)

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
        if self.files.root and os.path.isabs(file_name):
            roots = (self.files.root, os.path.realpath(self.files.root))
            inside = [path for root in roots if not leads_elsewhere(path := os.path.relpath(file_name, root))]
            folder, file_name = (PurePosixPath(), inside[0]) if inside else (folder, file_name)
        if leads_elsewhere(file_name.replace("\\", "/")):
            self.find(ERROR, "leaves the folder", shown, where, "only files inside the folder are read")
            return None
        choices = [os.path.normpath(folder / choice) for choice in (file_name, file_name.replace("\\", "/"))]
        names = [composed(choice.replace(os.sep, "/")) for choice in choices]
        found = next((name for name in names if name in self.files.readers), None)
        if found is None:
            refusal = next((self.files.refused[name] for name in names if name in self.files.refused), None)
            if refusal:
                self.used |= set(names)
                self.find(ERROR, refusal.kind, shown, where, refusal.what)
            else:
                like = self.by_last_part.get(_last_part(names[-1]))
                hint = f", but {like} is: {FILE_NAME} is relative to the table, equal in every letter" if like else ""
                self.find(ERROR, "no file", shown, where, f"not found{hint}")
        return found

    def read_texts(self, pictures: list[str], texts: Mapping[str, list[str]]) -> None:
        """Add pictures whose captions are in text files, and findings on texts that belong to several or to none."""
        owners: dict[str, list[str]] = {}
        for name, own in texts.items():
            for text in own:
                owners.setdefault(text, []).append(name)
        shared = {text: names for text, names in owners.items() if len(names) > 1}
        for text, names in shared.items():
            shown = f"this text has the name of {len(names):,} pictures: {', '.join(names[:5])}"
            if len({PurePosixPath(name).parent for name in names}) == 1:
                self.find(WARNING, "one text", names[0], text, f"{shown}: it is the caption of each")
            else:
                for name in names:
                    self.used.add(name)
                    self.find(ERROR, "one text", name, text, f"{shown}: put it beside the one it belongs to")
        for name in sorted(pictures, key=lambda name: name not in texts):  # a mask has no caption but is used by a row
            if name not in self.used:
                self.read_beside(name, texts.get(name, []))
        others = [name for name in self.files.readers if _is_unknown(name) and name not in owners]
        for name, severity in unread_texts(others, pictures).items():
            self.find(severity, "not read", name, "", "no picture of this name is beside it, or it is no .txt or .json")

    def read_beside(self, name: str, texts: list[str]) -> None:
        """Add a picture whose captions are in text files of its name.

        Each line of a .txt is a caption of its own; a row of them all appears as often as a picture with one. A .json
        has one caption, and the other columns of tables.
        """
        if not texts:
            self.find(ERROR, "no caption", name, "", "no text file has its name, such as a .txt or .json")
            return
        captions: dict[str, dict[int, str]] = {}  # file -> number of a line -> caption
        values: dict[str, Any] = {}
        for file in texts:
            text = self._text(name, file)
            if text is None:
                return
            if ending(file) != ".json":
                captions[file] = lines_of(text)
            elif (read := self._json(name, file, text)) is None:
                return
            else:
                values |= read
                if caption := next((read[column] for column in CAPTIONS if column in read), None):
                    captions[file] = lines_of(str(caption))
        where = next(iter(captions), texts[0])
        if len({tuple(lines.values()) for lines in captions.values()}) > 1:
            self.find(ERROR, "several texts", name, where, f"{' and '.join(captions)} differ: keep one of them")
        elif any(column in values for column in CAPTIONS):
            self._add(name, where, values, PurePosixPath(name).parent)
        elif len(lines := captions.get(where, {})) < 2:
            self._add(name, where, values | {"text": "".join(lines.values())}, PurePosixPath(name).parent)
        elif values.get("translation") or values.get("masks"):
            what = f"{len(lines)} lines are {len(lines)} captions, but the .json has a translation or masks of one"
            self.find(ERROR, "several captions", name, where, f"{what}: put the caption into the .json")
        else:
            what = f"{len(lines)} lines, each a caption of its own: each time one of them is used"
            self.find(NOTE, "several captions", name, where, what)
            for number, line in lines.items():
                place = f"{where}:{number}"
                self._add(name, place, values | {"text": line}, PurePosixPath(name).parent, 1 / len(lines))

    def _text(self, name: str, file: str) -> str | None:
        """The content of a text file; None, with a finding, if it cannot be read."""
        try:
            data = self.files.readers[file]()
        except OSError as error:
            self.find(ERROR, "unreadable", name, file, str(error))
            return None
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            self.find(ERROR, "not UTF-8", name, file, "UTF-16: save it as UTF-8")
            return None
        return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")

    def _json(self, name: str, file: str, text: str) -> dict[str, Any] | None:
        """The values of a .json; None, with a finding, if it has none."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            self.find(ERROR, "bad line", name, file, f"not JSON: {error}"[:200])
            return None
        if not isinstance(values, dict):
            self.find(ERROR, "bad line", name, file, 'not a JSON object: expected {"text": …}')
            return None
        return values

    def read_folder_names(self, pictures: list[str]) -> None:
        """Add pictures whose captions are the names of their folders, if these tell the pictures apart."""
        others = [name for name in self.files.readers if _is_unknown(name)]
        unread = dict.fromkeys(companions(others, pictures), ERROR) | unread_texts(others, pictures)
        for name, severity in unread.items():
            what = f"it is not read: captions are read from {', '.join(TEXTS)} of a picture's name, or a metadata.jsonl"
            self.find(severity, "not read", name, "", what)
        folders = {PurePosixPath(name).parent.name for name in pictures} - {""}
        shown = ", ".join(sorted(folders)[:5]) + (", …" if len(folders) > 5 else "")
        if len(set(map(words_of, folders))) < 2 or {folder.lower() for folder in folders} <= NO_CAPTIONS:
            if folders or unread:
                names = f", and the names of folders do not tell pictures apart ({shown})" if folders else ""
                what = f"not found{names}: add a metadata.jsonl with one line per picture, {EXAMPLE}"
                self.find(ERROR, "no captions", "captions", "", what)
            return
        self.find(NOTE, "folder names", "captions", "", f"not found, so the names of folders are used: {shown}")
        for name in pictures:
            folder = PurePosixPath(name).parent
            if folder.name:
                self._add(name, f"{folder}/", {"text": words_of(folder.name)}, folder)
            else:
                self.find(ERROR, "no caption", name, "", "not in a folder whose name could be its caption")

    def _add(self, name: str, where: str, values: dict[str, Any], folder: PurePosixPath, share: float = 1.0) -> None:
        """Add the row of a picture, with this share of its weight; or findings if its values are wrong."""
        self.used.add(name)
        row, findings = make_row(name, where, values, self.files.readers[name])
        self.findings += findings
        if row is None:
            return
        masks, found = self._masks(name, where, values.get("masks"), row.caption, folder)
        if masks is not None:
            self.rows.append(replace(row, masks=masks, weight=row.weight * share))
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
