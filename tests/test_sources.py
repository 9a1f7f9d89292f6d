"""Sources of captioned pictures -> rows: every kind of source gives the same rows, and every error names its line."""

import io
import json
import os
import pickle
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.sources.files import SMALL, FilePart
from pipelines.sources.findings import ERROR, NOTE, WARNING, DataError
from pipelines.sources.read import expand_braces, read_source
from pipelines.sources.rows import Row, Source

MakeFolder = Callable[..., Path]


def png(grey: int = 0, side: int = 32) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), grey, np.uint8)).save(file, "PNG")
    return file.getvalue()


def jsonl(*rows: object) -> bytes:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()


def captions(source: Source) -> dict[str, str]:
    return {row.name: row.caption for row in source.rows}


def found(source: Source, severity: str = ERROR) -> list[tuple[str, str, str]]:
    return [(f.kind, f.name, f.where) for f in source.findings if f.severity == severity]


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a folder of files, given by name."""

    def put(files: dict[str, bytes], name: str = "pictures") -> Path:
        for path, content in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(content)
        return tmp_path / name

    return put


ROWS = [{"file_name": "0.png", "text": "a cat"}, {"file_name": "x/1.png", "text": "三只猫"}]
TABLE = {"0.png": png(0), "x/1.png": png(9), "metadata.jsonl": jsonl(*ROWS)}
BESIDE = {"0.png": png(0), "0.txt": b"a cat\n", "x/1.png": png(9), "x/1.txt": "三只猫".encode()}


def as_zip(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def as_tar(folder: Path, packed: str = "") -> Path:
    path = folder.with_suffix(".tar.gz" if packed else ".tar")
    with tarfile.open(path, f"w:{packed}") as archive:
        archive.add(folder, ".")
    return path


# Every kind of source


@pytest.mark.parametrize("files", [TABLE, BESIDE], ids=["table", "beside"])
@pytest.mark.parametrize("pack", [Path, as_zip, as_tar, lambda folder: as_tar(folder, "gz")], ids=range(4))
def test_a_folder_and_archives_of_it_give_the_same_rows(put, files: dict[str, bytes], pack: Callable) -> None:
    folder = put(files)
    source = read_source(pack(folder))
    assert captions(source) == {"0.png": "a cat", "x/1.png": "三只猫"} and not source.findings
    again = pickle.loads(pickle.dumps(source.rows))
    assert [row.read() for row in source.rows] == [row.read() for row in again] == [png(0), png(9)]
    assert read_source(str(pack(folder)), limit=1).rows[0].name == "0.png"


def test_the_temporary_file_of_a_packed_tar_goes_with_its_rows(put, tmp_path: Path) -> None:
    source = read_source(as_tar(put(TABLE), "gz"))
    part = source.rows[0].read
    assert isinstance(part, FilePart) and os.path.exists(part.path)
    spool = os.fspath(part.path)
    assert pickle.loads(pickle.dumps(part)).path == spool
    assert os.path.exists(spool)  # the unpickled copy does not own the file
    del source, part
    assert not os.path.exists(spool)


@pytest.mark.parametrize(
    ("table", "content"),
    [
        ("metadata.csv", "file_name,text\n0.png,a cat\nx/1.png,三只猫\n".encode()),
        ("metadata.csv", "\ufefffile_name;text\r\n0.png;a cat\r\nx/1.png;三只猫\r\n".encode()),
        ("metadata.csv", "text\tfile_name\na cat\t0.png\n三只猫\tx\\1.png\n".encode()),
        ("metadata.jsonl", b"\xef\xbb\xbf" + jsonl(ROWS[0], "", ROWS[1])),
        ("metadata.jsonl", jsonl(*({"file_name": row["file_name"], "caption": row["text"]} for row in ROWS))),
    ],
    ids=["csv", "semicolons and BOM", "tabs", "BOM", "caption"],
)
def test_tables_are_read_as_spreadsheets_and_programs_write_them(put, table: str, content: bytes) -> None:
    files = {name: data for name, data in TABLE.items() if name != "metadata.jsonl"}
    assert captions(read_source(put(files | {table: content}))) == {"0.png": "a cat", "x/1.png": "三只猫"}


def test_a_parquet_table_is_read_with_its_masks(put) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [row | {"weight": 2.0 * i + 1, "masks": {"cat": "m.png" if i == 0 else None}} for i, row in enumerate(ROWS)]
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), buffer)
    source = read_source(
        put({"0.png": png(), "x/1.png": png(9), "m.png": png(255)} | {"metadata.parquet": buffer.getvalue()})
    )
    assert [(row.caption, row.weight, list(row.masks)) for row in source.rows] == [
        ("a cat", 1.0, ["cat"]),
        ("三只猫", 3.0, []),
    ]
    assert source.rows[0].masks["cat"]() == png(255) and not source.findings


def test_a_row_has_the_translation_weight_and_masks_of_its_table(put) -> None:
    masks = {"cat": "masks/0.png"}
    row = ROWS[0] | {"translation": "一只猫", "weight": 2.5, "masks": masks}
    files = {"0.png": png(), "masks/0.png": png(255)}
    (one,) = read_source(put(files | {"metadata.jsonl": jsonl(row)}, "jsonl")).rows
    table = f'file_name,text,translation,weight,masks\n0.png,a cat,一只猫,2.5,"{json.dumps(masks)}"\n'
    table = table.replace('"{"cat": "masks/0.png"}"', '"{""cat"": ""masks/0.png""}"')
    (other,) = read_source(put(files | {"metadata.csv": table.encode()}, "csv")).rows
    for row in (one, other):
        assert (row.caption, row.translation, row.weight) == ("a cat", "一只猫", 2.5)
        assert {phrase: read() for phrase, read in row.masks.items()} == {"cat": png(255)}
    assert (one.where, other.where) == ("metadata.jsonl:1", "metadata.csv:2")


def test_a_table_describes_its_own_folder(put) -> None:
    files = {f"{name}/{file}": content for name in "ab" for file, content in TABLE.items()}
    assert sorted(captions(read_source(put(files)))) == ["a/0.png", "a/x/1.png", "b/0.png", "b/x/1.png"]


def test_folder_names_are_captions_where_no_others_are_found(put) -> None:
    source = read_source(put({"red-apple/0.png": png(), "fruit/green_apple/1.png": png(9)}))
    assert captions(source) == {"red-apple/0.png": "red apple", "fruit/green_apple/1.png": "green apple"}
    assert found(source, NOTE) == [("folder names", "captions", "")]
    some = read_source(put({"red-apple/0.txt": b"an apple"}))
    assert captions(some) == {"red-apple/0.png": "an apple"}
    assert found(some) == [("no caption", "fruit/green_apple/1.png", "")]


def test_shards_of_webdataset_are_read_in_order(put, tmp_path: Path) -> None:
    for shard in range(3):
        keys = [f"{shard}{i}" for i in range(2)]
        folder = put({f"{key}.jpg": png(int(key)) for key in keys}, f"shards/{shard:03}")
        put({f"{keys[0]}.txt": keys[0].encode()}, f"shards/{shard:03}")
        put({f"{keys[1]}.json": jsonl({"caption": keys[1], "weight": 2})}, f"shards/{shard:03}")
        as_tar(folder)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    expected = ["00", "01", "10", "11", "20", "21"]
    for source in ("shards", "shards/*.tar", "shards/{000..002}.tar", "shards/{000,001,002}.tar"):
        rows = read_source(str(tmp_path / source)).rows
        assert [row.caption for row in rows] == expected
        assert [row.read() for row in rows] == [png(int(caption)) for caption in expected]
    assert rows[1].weight == 2 and rows[1].name == "000.tar/01.jpg" and rows[1].where == "000.tar: 01.json"
    assert len(read_source(str(tmp_path / "shards/{001..002}.tar")).rows) == 4


def test_braces_expand_as_in_a_shell() -> None:
    assert expand_braces("{8..10}-{a,b}") == ["8-a", "8-b", "9-a", "9-b", "10-a", "10-b"]
    assert expand_braces("s{008..010}") == ["s008", "s009", "s010"]
    assert expand_braces("{a,{b,1..2}c}") == ["a", "bc", "1..2c"] and expand_braces("{1..3") == ["{1..3"]
    with pytest.raises(DataError, match=r"\{3\.\.1\} must count upwards"):
        expand_braces("{3..1}")


@pytest.mark.parametrize("pattern", ["{0..999999999999}", "{0..9999}{0..9999}", "{a,b}" * 99, "{{0..9999},a}" * 99])
def test_braces_that_stand_for_too_many_names_are_refused_at_once(pattern: str) -> None:
    with pytest.raises(DataError, match="more than 100,000 files"):
        expand_braces(pattern)


# Sets of datasets


@pytest.fixture
def saved(make_folder: MakeFolder, tmp_path: Path):
    """A set of `datasets` with three pictures, of which the last has no caption."""
    import datasets

    pictures = [Image.open(io.BytesIO(png(10 * i))) for i in range(3)]
    rows = {"image": pictures, "text": ["a", "b", None], "weight": [1.0, 2.0, 3.0]}
    features = {"image": datasets.Image(), "text": datasets.Value("string"), "weight": datasets.Value("float64")}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def levels(rows: list[Row]) -> list[int]:
    return [Image.open(io.BytesIO(row.read())).getpixel((0, 0))[0] for row in rows]


def test_a_set_saved_to_disk_is_read_row_by_row(saved, tmp_path: Path) -> None:
    saved.save_to_disk(tmp_path / "set")
    source = read_source(tmp_path / "set")
    assert captions(source) == {"train/0": "a", "train/1": "b"} and found(source) == [
        ("no caption", "train/2", "row 2")
    ]
    assert levels(pickle.loads(pickle.dumps(source.rows))) == [0, 10]
    assert source.rows[1].weight == 2
    streamed = read_source(tmp_path / "set", streaming=True, limit=2)
    assert captions(streamed) == captions(source) and levels(streamed.rows) == [0, 10]


def test_the_same_files_are_clutter_in_a_folder_and_in_archives(put) -> None:
    clutter = (".hidden/0.png", "x/.hidden/0.png", "__MACOSX/0.png", "desktop.ini", "x/Thumbs.db")
    read = ("Thumbs.db/0.png", "x/__MACOSX/0.png")
    folder = put(dict.fromkeys([*clutter, *read], png()))
    for pack in (Path, as_zip, as_tar):
        assert captions(read_source(pack(folder))) == {"Thumbs.db/0.png": "Thumbs.db", "x/__MACOSX/0.png": "MACOSX"}


def test_a_caption_called_as_a_file_of_a_saved_set_makes_no_set(put) -> None:
    for name in ("state", "dataset_info"):
        source = read_source(put({f"{name}.png": png(), f"{name}.json": jsonl({"text": "a map"})}, name))
        assert captions(source) == {f"{name}.png": "a map"} and not source.findings


def test_a_set_that_is_parquet_is_streamed_only_as_far_as_asked(saved, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    saved.select([0, 1]).to_parquet(tmp_path / "hub" / "train-0.parquet")
    (tmp_path / "hub" / "train-1.parquet").write_bytes(b"would raise if it were touched")
    streamed = read_source(tmp_path / "hub", streaming=True, limit=1)
    assert captions(streamed) == {"train/0": "a"} and levels(streamed.rows) == [0]
    (tmp_path / "hub" / "train-1.parquet").unlink()
    assert levels(read_source(tmp_path / "hub").rows) == [0, 10]


def test_a_set_without_pictures_or_captions_is_refused_with_its_columns(saved, tmp_path: Path) -> None:
    saved.remove_columns("text").save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=r"no column of captions .*only 'image', 'weight'"):
        read_source(tmp_path / "set")


def test_a_set_cannot_name_a_file_of_this_machine(saved, tmp_path: Path) -> None:
    """A row of a set from the hub may name its picture by a path, which must not be a path on this machine."""
    import datasets

    (tmp_path / "secret.png").write_bytes(png())
    rows = {"image": [{"bytes": None, "path": str(tmp_path / "secret.png")}], "text": ["a secret"]}
    secret = datasets.Dataset.from_dict(rows)
    secret.save_to_disk(tmp_path / "set")
    (row,) = read_source(tmp_path / "set").rows
    with pytest.raises(OSError, match="names a file outside it"):
        row.read()


@pytest.mark.parametrize("name", ["nobody/nothing", "no-such-folder", "", "\x00", "tests/nowhere", "*.tar", "a" * 5000])
def test_a_source_that_is_not_found_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(DataError) as error:
        read_source(name)
    assert "\n" not in str(error.value)


# Every error names its file and line


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("{", "bad line"),
        ("[1]", "bad line"),
        ("[" * 100_000, "bad line"),
        ('{"file_name": "0.png", "text": %s}' % ("9" * 5000), "bad line"),
        ({"text": "a"}, "no file name"),
        ({"file_name": 7, "text": "a"}, "no file name"),
        ({"file_name": "0.png"}, "no caption"),
        ({"file_name": "0.png", "text": None}, "no caption"),
        ({"file_name": "0.png", "text": " \n"}, "no caption"),
        ({"file_name": "0.png", "text": 7}, "no caption"),
        ({"file_name": "0.png", "text": ["a"]}, "no caption"),
        ({"file_name": "0.png", "text": "\ud800"}, "not UTF-8"),
        ({"file_name": "0.png", "text": "a" * 10_001}, "long caption"),
        ({"file_name": "0.png", "text": "a", "translation": 3}, "no translation"),
        ({"file_name": "0.png", "text": "a", "weight": -1}, "bad weight"),
        ({"file_name": "0.png", "text": "a", "weight": "many"}, "bad weight"),
        ({"file_name": "0.png", "text": "a", "weight": float("nan")}, "bad weight"),
        ({"file_name": "0.png", "text": "a", "masks": [1]}, "bad mask"),
        ({"file_name": "0.png", "text": "a", "masks": {"dog": "0.png"}}, "bad mask"),
        ({"file_name": "0.png", "text": "a", "masks": {"a": 1}}, "bad mask"),
        ({"file_name": "0.png", "text": "a", "masks": {"a": "none.png"}}, "bad mask"),
        ({"file_name": "none.png", "text": "a"}, "no file"),
        ({"file_name": "../0.png", "text": "a"}, "leaves the folder"),
        ({"file_name": "/etc/passwd", "text": "a"}, "leaves the folder"),
        ({"file_name": "C:\\0.png", "text": "a"}, "leaves the folder"),
        ({"file_name": "http://127.0.0.1/0.png", "text": "a"}, "leaves the folder"),
        ({"file_name": "0.png\x00", "text": "a"}, "no file"),
    ],
    ids=lambda value: str(value)[:60].encode("unicode_escape").decode(),
)
def test_a_bad_line_is_named_and_the_others_are_read(put, line: object, kind: str) -> None:
    source = read_source(put(TABLE | {"metadata.jsonl": jsonl(ROWS[0], "", line, ROWS[1])}))
    assert len(source.rows) == 2
    assert {where for _, _, where in found(source)} == {"metadata.jsonl:3"}
    assert kind in [kind for kind, _, _ in found(source)]
    assert all("\n" not in str(finding) and str(finding).isprintable() for finding in source.findings)


def test_bytes_that_are_not_utf8_are_named_with_their_line(put) -> None:
    bad = '{"file_name": "0.png", "text": "Bär"}'.encode("latin-1")
    jsonl_file = read_source(put(TABLE | {"metadata.jsonl": jsonl(ROWS[1]) + b"\n" + bad}, "a"))
    csv_file = read_source(put({"0.png": png(), "metadata.csv": "file_name,text\n0.png,Bär".encode("latin-1")}, "b"))
    beside = read_source(put(BESIDE | {"0.txt": "Bär".encode("latin-1")}, "c"))
    wide = read_source(put(BESIDE | {"0.txt": "Bär".encode("utf-16")}, "d"))
    wheres = [found(source)[0][2] for source in (jsonl_file, csv_file, beside, wide)]
    assert wheres == ["metadata.jsonl:2", "metadata.csv:2", "0.txt", "0.txt"]
    assert {found(source)[0][0] for source in (jsonl_file, csv_file, beside, wide)} == {"not UTF-8"}


def test_rows_without_files_and_files_without_rows_are_distinguished(put) -> None:
    files = TABLE | {"2.png": png(), "photo.heic": b"", "notes.txt": b"spring", ".hidden.png": b"", "Thumbs.db": b""}
    source = read_source(put(files | {"metadata.jsonl": jsonl(*ROWS, {"file_name": "3.png", "text": "a"})}))
    assert found(source) == [("no file", "3.png", "metadata.jsonl:3")]
    assert found(source, WARNING) == [("no row", "2.png", ""), ("not read", "photo.heic", "")]


def test_a_text_that_is_not_read_is_named(put) -> None:
    source = read_source(put(BESIDE | {"README.txt": b"spring", "notes.txt": b"spring", "more/tags.csv": b"spring"}))
    assert len(source.rows) == 2 and found(source, NOTE) == [("not read", "README.txt", "")]
    assert found(source) == [("not read", "notes.txt", "")]  # it lies among the captions
    assert found(source, WARNING) == [("not read", "more/tags.csv", "")]


@pytest.mark.parametrize("content", [b"", b"\n", b"{", b"[1, 2]", b'{"file": "0.png", "text": "a"}'])
def test_a_table_that_cannot_be_read_is_one_finding(put, content: bytes) -> None:
    source = read_source(put(TABLE | {"metadata.jsonl": content}))
    assert not source.rows and len(found(source)) == 1


@pytest.mark.parametrize("table", ["jsonl", "csv", "parquet"])
def test_a_table_without_a_text_column_is_named_once_with_the_columns_it_has(put, table: str) -> None:
    import pandas as pd

    folder = put({"0.png": png(), "1.png": png(9)})
    frame = pd.DataFrame({"file_name": ["0.png", "1.png"], "title": ["a", "b"]})
    path = folder / f"metadata.{table}"
    if table == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif table == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    (finding,) = [f for f in read_source(folder).findings if f.severity == ERROR]
    assert "no column 'text', only 'file_name', 'title'" in finding.what


def test_a_damaged_csv_names_the_line(put) -> None:
    table = b'file_name,text\n0.png,a, b\nx/1.png,"b\nc"\n0.png,"never ends\n'
    source = read_source(put({"0.png": png(), "x/1.png": png(), "metadata.csv": table}))
    assert captions(source) == {"x/1.png": "b\nc"} and source.rows[0].where == "metadata.csv:3"
    assert [where for _, _, where in found(source)] == ["metadata.csv:2", "metadata.csv:5"]


# No file outside a source is read


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="creating links needs privileges")
def test_links_out_of_a_folder_are_refused_and_links_within_it_are_read(put, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "more").mkdir()
    rows = [*ROWS, {"file_name": "out.png", "text": "a"}, {"file_name": "in.png", "text": "b"}]
    folder = put(TABLE | {"metadata.jsonl": jsonl(*rows)})
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "in.png").symlink_to("0.png")
    (folder / "lost.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "folder").symlink_to(tmp_path / "more")
    os.mkfifo(folder / "pipe.png")
    source = read_source(folder)
    assert sorted(captions(source)) == ["0.png", "in.png", "x/1.png"]
    assert found(source) == [("leaves the folder", "out.png", "metadata.jsonl:3")]
    assert sorted(found(source, WARNING)) == [
        ("link", "folder", ""),
        ("link", "loop.png", ""),
        ("link", "lost.png", ""),
        ("no file", "pipe.png", ""),
    ]
    (tmp_path / "link").symlink_to(folder)
    assert captions(read_source(tmp_path / "link")) == captions(source)


def test_members_that_lead_out_of_a_zip_are_refused(put, tmp_path: Path) -> None:
    path = as_zip(put(TABLE))
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../out.png", "/tmp/out.png", "C:\\out.png", "a/../../out.png"):
            archive.writestr(name, png())
        archive.writestr(link, "/etc/passwd")
        archive.writestr(zipfile.ZipInfo("slow.png"), png(), zipfile.ZIP_LZMA)
    source = read_source(path)
    assert len(source.rows) == 2
    assert [kind for kind, _, _ in found(source)] == ["leaves the folder"] * 4 + ["unreadable"]
    assert found(source, WARNING) == [("link", "link.png", path.name)]


def test_members_that_lead_out_of_a_tar_are_refused(put) -> None:
    path = as_tar(put(TABLE))
    with tarfile.open(path, "a") as archive:
        for name, kind in (
            ("../out.png", tarfile.REGTYPE),
            ("link.png", tarfile.SYMTYPE),
            ("tty.png", tarfile.CHRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    source = read_source(path)
    assert len(source.rows) == 2
    assert found(source) == [("leaves the folder", "../out.png", path.name)]
    assert [name for _, name, _ in found(source, WARNING)] == ["link.png", "tty.png"]


def test_a_locked_member_of_a_zip_is_named(put) -> None:
    path = as_zip(put(TABLE))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # in the index, of the first: 0.png
    path.write_bytes(content)
    assert found(read_source(path)) == [("locked", "0.png", "metadata.jsonl:1")]


@pytest.mark.parametrize("kind", ["zip", "gz"])
def test_bombs_are_refused_before_they_fill_the_memory(put, kind: str) -> None:
    folder = put({"0.png": bytes(SMALL + 2**20), "0.txt": b"a"})
    with pytest.raises(DataError, match="more than 100 times its size"):
        read_source(as_zip(folder) if kind == "zip" else as_tar(folder, "gz"))


def test_padding_does_not_hide_a_bomb(put) -> None:
    path = as_zip(put({"0.png": bytes(SMALL + 2**20), "0.txt": b"a"}))
    path.write_bytes(bytes(2**20) + path.read_bytes())  # a zip may have any bytes before its first member
    with pytest.raises(DataError, match="more than 100 times its size"):
        read_source(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_a_zip_holds_twice_are_errors(put) -> None:
    path = as_zip(put(BESIDE | {"2.png": png(3), "2.txt": b"a dog"}))
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("0.png", "x\\1.png"):
            archive.writestr(name, png(200))
    source = read_source(path)
    assert captions(source) == {"2.png": "a dog"}
    assert found(source) == [("twice", "0.png", path.name), ("twice", "x/1.png", path.name)]


def test_a_zip_with_a_wrong_size_in_its_index_is_found_when_it_is_read(put) -> None:
    path = as_zip(put({"0.png": bytes(100_000), "0.txt": b"a", "1.png": png(), "1.txt": b"b"}))
    content = path.read_bytes()
    path.write_bytes(content.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    one, other = read_source(path).rows
    with pytest.raises(OSError, match="cannot be unpacked"):
        one.read()
    assert other.read() == png()


def test_a_truncated_tar_gives_its_complete_members_and_an_error(put) -> None:
    path = as_tar(put(BESIDE))
    content = path.read_bytes()
    for end in (len(content) // 3, 512 * 5 + 100):
        path.write_bytes(content[:end])
        source = read_source(path)
        assert found(source)
    packed = as_tar(put(BESIDE), "gz")
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be unpacked"):
        read_source(packed)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.7z", "a.png"])
def test_a_file_that_is_not_an_archive_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"neither zip nor tar")
    with pytest.raises(DataError) as error:
        read_source(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


# Names of folders and files


@pytest.mark.parametrize("name", ["my pictures", "2024 [holiday]", "what*", "test", "图片"])
def test_a_folder_may_have_any_name_and_hold_other_files(make_folder: MakeFolder, name: str) -> None:
    folder = make_folder(name, ["a", "b"])
    (folder / "notes.txt").write_text("taken in spring")
    (folder / ".DS_Store").write_bytes(b"\x00")
    source = read_source(folder)
    assert captions(source) == {"0.png": "a", "1.png": "b"} and not source.findings


def test_file_names_that_look_like_splits_are_only_names(make_folder: MakeFolder) -> None:
    names = ["test.png", "train/0.png", "dog.png", "validation.png"]
    folder = make_folder("pictures", [], rows=[{"file_name": name, "text": name} for name in names])
    (folder / "train").mkdir()
    for name in names:
        (folder / name).write_bytes(png())
    assert captions(read_source(folder)) == {name: name for name in names}


def test_a_folder_without_pictures_is_refused(make_folder: MakeFolder, tmp_path: Path) -> None:
    for folder in (make_folder("table", [], rows=[{"file_name": "0.png", "text": "a"}]), tmp_path):
        with pytest.raises(DataError, match="has no pictures"):
            read_source(folder)


def test_a_folder_without_captions_is_refused_with_an_example(put) -> None:
    with pytest.raises(DataError) as error:
        read_source(put({"0.png": png()}))
    assert '{"file_name": "cat.png", "text": "a black cat"}' in str(error.value)


@pytest.mark.parametrize("asked", [{"limit": 0}, {"streaming": True}])
def test_a_limit_is_positive_and_streaming_needs_one(put, asked: dict) -> None:
    with pytest.raises(DataError, match="limit"):
        read_source(put(TABLE), **asked)
