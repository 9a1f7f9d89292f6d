"""The files of a folder, a zip or a tar by their names, read in place: no archive is unpacked over other files."""

import gzip
import os
import re
import stat
import tarfile
import tempfile
import unicodedata
import weakref
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipelines.sources.findings import ERROR, WARNING, DataError, Finding

Reader = Callable[[], bytes]

LARGEST = 2**28
"""Limit, in bytes, of one file. Files are read into memory in full."""

MOST_RATIO, SMALL = 100, 2**24
"""Limit of unpacked by packed size, where the unpacked size exceeds `SMALL` bytes. Pictures are compressed already."""


@dataclass
class Files:
    """Names, with `/` between folders -> readers, sorted by name; and files that are not read, with the reasons.

    Names are as `composed` makes them. `root` is the folder that they are relative to, "" for an archive. `samples`:
    whether names may follow WebDataset's rule, see `pairing.texts_of`.
    """

    readers: dict[str, Reader] = field(default_factory=dict)
    refused: dict[str, Finding] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    root: str = ""
    samples: bool = False

    def add(self, name: str, where: str, read: Reader) -> None:
        """Add a file; of several files of one name, none is read."""
        name = composed(name)
        if self.readers.pop(name, None) or name in self.refused:
            self.refuse(name, where, "twice", "several files have this name, or write its accents differently", ERROR)
        else:
            self.readers[name] = read

    def refuse(self, name: str, where: str, kind: str, what: str, severity: str = WARNING) -> None:
        name = composed(name)
        self.refused[name] = Finding(severity, kind, name, where, what)

    def sort(self) -> "Files":
        self.readers = dict(sorted(self.readers.items()))
        return self


class Spool:
    """A temporary file, removed when its last reference goes or the process ends."""

    def __init__(self) -> None:
        handle, self.path = tempfile.mkstemp(prefix="unet-xattn-")
        os.close(handle)
        self._remove = weakref.finalize(self, _remove, self.path, os.getpid())

    def __fspath__(self) -> str:
        return self.path

    def __reduce__(self) -> tuple:  # another process may read the file, but never removes it
        return str, (self.path,)


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker inherits the finalizer
        Path(path).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class FilePart:
    """A reader of `size` bytes of a file from `offset`, or of the rest of the file. Raises OSError."""

    path: str | Spool
    offset: int = 0
    size: int | None = None

    def __call__(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            data = file.read(LARGEST + 1 if self.size is None else self.size)
        if len(data) > LARGEST:
            raise OSError(f"larger than {LARGEST / 2**20:,.0f} MiB")
        if self.size is not None and len(data) < self.size:
            raise OSError("the archive ends within it")
        return data


@dataclass(frozen=True, slots=True)
class ZipPart:
    """A reader of one member of a zip. Each call opens the file anew, so that processes do not share a position in it.

    Raises OSError, also where size or checksum differ from the zip's index.
    """

    path: str
    member: zipfile.ZipInfo

    def __call__(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.member.header_offset)
            header = file.read(30)
            if header[:4] != b"PK\x03\x04" or len(header) < 30:
                raise OSError("cannot be unpacked: not found where the zip's index says")
            file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
            try:
                with zipfile.ZipExtFile(file, "r", self.member) as unpacked:  # type: ignore[arg-type]
                    data = unpacked.read(self.member.file_size)
                    unpacked.read(1)  # reading past the end compares the checksum
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise OSError(f"cannot be unpacked: {error}") from error
        if len(data) < self.member.file_size:
            raise OSError("cannot be unpacked: shorter than the zip's index says")
        return data


def composed(name: str) -> str:
    """A name with its accents as single characters (NFC), as most tables have them. macOS stores "é" as "e" and "´"."""
    return unicodedata.normalize("NFC", name)


def leads_elsewhere(name: str) -> bool:
    """Whether a name, with `/` between folders, leads out of the folder it is relative to."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:/|[A-Za-z][\w+.-]*://", name) is not None


def is_clutter(name: str) -> bool:
    """Whether a file is hidden, or one that macOS or Windows adds to zips and folders."""
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") and part not in (".", "..") for part in parts)
    return hidden or parts[:1] == ("__MACOSX",) or parts[-1:] in (("Thumbs.db",), ("desktop.ini",))


def open_folder(folder: Path) -> Files:
    """The files of a folder and of its subfolders. Links to folders and links out of the folder are refused."""
    files, root = Files(root=os.path.abspath(folder)), os.path.realpath(folder)

    def unreadable(error: OSError) -> None:
        files.refuse(_relative(error.filename, folder), "", "unreadable", f"{error.strerror}", ERROR)

    for place, folders, names in os.walk(folder, onerror=unreadable):
        for name in [name for name in folders if os.path.islink(os.path.join(place, name))]:
            shown = _relative(os.path.join(place, name), folder)
            files.refuse(shown, "", "link", "a link to a folder, which is not followed: copy the folder here")
        inside = {name: f"{_relative(os.path.join(place, name), folder)}/_" for name in folders}  # any file in it
        folders[:] = sorted(name for name in folders if not is_clutter(inside[name]))
        for name in sorted(names):
            path = os.path.join(place, name)
            shown = _relative(path, folder)
            if is_clutter(shown):
                continue
            if os.path.islink(path) and not _inside(os.path.realpath(path), root):
                files.refuse(shown, "", "leaves the folder", f"a link to {os.path.realpath(path)}", ERROR)
            elif not os.path.exists(path):
                files.refuse(shown, "", "link", "a broken link")
            elif not os.path.isfile(path):
                files.refuse(shown, "", "no file", "a pipe, a socket or a device")
            else:
                files.add(shown, "", FilePart(path))
    return files.sort()


def _relative(path: str, folder: Path) -> str:
    return os.path.relpath(path, folder).replace(os.sep, "/")


def _inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def open_zip(path: Path, most_files: int | None = None, most_bytes: int | None = None) -> Files:
    """The files of a zip.

    Args:
        most_files: limit on the number of files.
        most_bytes: limit on their size, unpacked.

    Raises:
        DataError: the file is not a zip, exceeds a limit, or unpacks to far more than pictures do.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a zip: {error}") from error
    files, count, size = Files(), 0, 0
    for member in members:
        name = _name_in_zip(member)
        if not _take(files, name, path.name, member.file_size):
            continue
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            files.refuse(name, path.name, "link", "a link or a device, which is not read")
        elif member.flag_bits & 1:
            files.refuse(name, path.name, "locked", "locked with a password: pack it without one", ERROR)
        elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            files.refuse(name, path.name, "unreadable", "compressed by a method other than deflate", ERROR)
        else:
            count, size = count + 1, size + member.file_size
            files.add(name, path.name, ZipPart(str(path), member))
    if most_files is not None and count > most_files:
        raise DataError(f"{path} holds {count:,} files, the limit is {most_files:,}")
    if most_bytes is not None and size > most_bytes:
        raise DataError(f"{path} unpacks to {size / 2**20:,.0f} MiB, the limit is {most_bytes / 2**20:,.0f} MiB")
    # Overlapping members claim more bytes than the file has, and bytes of no member may pad the file.
    packed = min(os.path.getsize(path), sum(member.compress_size for member in members))
    _check_ratio(path, sum(member.file_size for member in members), packed)
    return files.sort()


def _name_in_zip(member: zipfile.ZipInfo) -> str:
    """A member's name. macOS writes UTF-8 without the mark for it, and without the mark zipfile reads code page 437."""
    name = member.filename
    if not member.flag_bits & 0x800:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return _plain(name.replace("\\", "/"))


def _plain(name: str) -> str:
    """A name without "./" and "//"."""
    return str(PurePosixPath(name)) if name else name


def open_tar(path: Path) -> Files:
    """The files of a tar. A .tar.gz is decompressed to one temporary tar, because gzip has no random access.

    Raises:
        DataError: the file is neither, or unpacks to far more than pictures do.
    """
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    plain = _gunzip(path) if packed else str(path)
    files, count = Files(samples=True), 0
    written: dict[str, str] = {}
    try:
        with tarfile.open(plain, "r:") as archive:
            size = os.path.getsize(plain)
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every member in memory
                count += 1
                name = _plain(member.name)
                if member.isdir() or not _take(files, name, path.name, member.size):
                    continue
                if not member.isreg() or member.issparse():
                    files.refuse(name, path.name, "link", "a link or a device, which is not read")
                elif member.offset_data + member.size > size:
                    files.refuse(name, path.name, "truncated", "the archive ends within it", ERROR)
                else:
                    if written.setdefault(composed(name), name) == name:
                        files.readers.pop(composed(name), None)  # as when unpacking, the last of equal names counts
                    files.add(name, path.name, FilePart(plain, member.offset_data, member.size))
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:  # a header may hold any number
        if not count:
            raise DataError(f"{path} cannot be read as a tar: {error}") from error
        what = f"damaged after {count:,} members, and the rest is not read: {error}"
        files.findings.append(Finding(ERROR, "truncated", path.name, "", what))
    return files.sort()


def _take(files: Files, name: str, where: str, size: int) -> bool:
    """Whether to read a member of an archive: it is not clutter, and its name and size are not refused."""
    if leads_elsewhere(name):
        files.refuse(name, where, "leaves the folder", "its name leads out of the archive", ERROR)
    elif size > LARGEST:
        files.refuse(name, where, "too large", f"a file larger than {LARGEST / 2**20:,.0f} MiB", ERROR)
    else:
        return not is_clutter(name)
    return False


def _check_ratio(path: Path, size: int, packed: int) -> None:
    if size > SMALL and size > MOST_RATIO * packed:
        raise DataError(f"{path} unpacks to more than {MOST_RATIO} times its size, which pictures do not")


def _gunzip(path: Path) -> Spool:
    spool, size, packed_size = Spool(), 0, os.path.getsize(path)
    try:
        with gzip.open(path) as packed, open(spool, "wb") as plain:
            while chunk := packed.read(2**20):
                size += len(chunk)
                _check_ratio(path, size, packed_size)
                plain.write(chunk)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} cannot be unpacked: {error}") from error
    return spool
