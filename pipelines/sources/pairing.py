"""Which text files hold the captions of which pictures, by their names alone.

A text belongs to a picture of the same name in the same folder: "cat.txt" or "cat.png.txt" to "cat.png". A folder of
texts may also be apart from a folder of pictures: "captions/cat.txt" belongs to "images/cat.png".
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

from pipelines.sources.findings import ERROR, NOTE, WARNING
from pipelines.sources.tables import is_table

TEXTS = (".txt", ".caption", ".captions", ".cap", ".prompt", ".tags", ".tag", ".json")
"""File endings, in any letter case, of captions beside pictures: those that trainers read and captioners write."""

OTHER_TEXTS = (".yaml", ".yml", ".xml", ".csv", ".tsv", ".jsonl", ".parquet", ".md", ".rtf", ".docx", ".xlsx")
"""File endings of texts that may hold captions, but are not read."""

TEXT_FOLDERS = ("captions", "caption", "texts", "text", "txt", "labels", "label", "tags", "prompts", "annotations")
PICTURE_FOLDERS = ("images", "image", "imgs", "img", "pictures", "picture", "pics", "photos", "photo")
"""Names of folders, in any letter case, that hold the texts or the pictures of a set."""

NOT_TEXT = (".npz", ".npy", ".pt", ".safetensors", ".mov", ".mp4", ".wav", ".mp3", ".xmp", ".aae", ".thm", ".db")
"""File endings of what programs and cameras keep beside pictures under their names, without captions."""

SPLITS = ("data", "dataset", "train", "training", "val", "valid", "validation", "dev", "test", "testing")
NO_CAPTIONS = {*TEXT_FOLDERS, *PICTURE_FOLDERS, *SPLITS, "masks", "mask"}
"""Names of folders that say what their files are for, not what a picture shows."""

_DOCUMENT = re.compile(r"(readme|licen[cs]e|copying|notice|authors|credits|change(s|log)|citation)\b", re.IGNORECASE)
"""Beginnings of the names of files about a set as a whole."""


def ending(name: str) -> str:
    """A file's ending in lower case, ".txt"."""
    return PurePosixPath(name).suffix.lower()


def texts_of(pictures: Collection[str], names: Collection[str], samples: bool = False) -> dict[str, list[str]]:
    """The text files of each picture that has any.

    With `samples`, as in shards of WebDataset, the name of a sample ends at its first dot, so that "7.txt" belongs to
    "7.rgb.png" too; unless texts have dots in their own names, where that rule cannot be meant.
    """
    texts = [name for name in names if ending(name) in TEXTS and not is_table(name)]
    near, apart = defaultdict(list), defaultdict(list)
    for picture in pictures:
        for key in (_without_ending(picture), picture):
            near[key].append(picture)
            apart[_without_folders(key, PICTURE_FOLDERS)].append(picture)
    found = defaultdict(list)
    for text in texts:
        key = _without_ending(text)
        for picture in near.get(key) or apart.get(_without_folders(key, TEXT_FOLDERS)) or ():
            found[picture].append(text)
    if samples and not any("." in _without_ending(_last(text)) for text in texts):
        of_sample = defaultdict(list)
        for text in texts:
            of_sample[_without_ending(text)].append(text)
        for picture in pictures:
            last = _last(picture)
            key = picture.removesuffix(last) + last.split(".", 1)[0]
            if picture not in found and key in of_sample:
                found[picture] = of_sample[key]
    return dict(found)


def unread_texts(names: Iterable[str], pictures: Collection[str]) -> dict[str, str]:
    """The files among these that may hold captions -> how severe it is that they are not read.

    It is an error where captions lie: beside pictures, in a folder of texts, or under a picture's name.
    """
    folders = {PurePosixPath(picture).parent for picture in pictures}
    known = {_without_ending(_last(picture)) for picture in pictures}
    found = {}
    for name in names:
        path = PurePosixPath(name)
        if ending(name) not in (*TEXTS, *OTHER_TEXTS) or is_table(name):
            continue
        beside = path.parent in folders or path.parent.name.lower() in TEXT_FOLDERS or path.stem in known
        found[name] = NOTE if _DOCUMENT.match(path.name) else ERROR if beside else WARNING
    return found


def companions(names: Iterable[str], pictures: Collection[str]) -> list[str]:
    """The files among these, with any ending that may be of text, that have the name of a picture beside them."""
    known = {_without_ending(picture) for picture in pictures}
    return [name for name in names if _without_ending(name) in known and ending(name) not in NOT_TEXT]


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _without_ending(name: str) -> str:
    last = _last(name)
    return name.removesuffix(last) + (last.rpartition(".")[0] or last)


def _without_folders(name: str, folders: Collection[str]) -> str:
    *parents, last = name.split("/")
    return "/".join([*(parent for parent in parents if parent.lower() not in folders), last])
