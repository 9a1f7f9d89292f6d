"""Which text becomes the caption of which picture: the one that a person meant, or a finding that says why none."""

import io
import json
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image
from test_sources import as_tar, as_zip, captions, found, jsonl, png

from pipelines.data.pairs import read_pairs
from pipelines.data.pictures import PictureExamples
from pipelines.sources.check import check, examine
from pipelines.sources.findings import ERROR, NOTE, WARNING, DataError
from pipelines.sources.pairing import TEXTS
from pipelines.sources.read import read_source

Put = Callable[..., Path]
MAC = unicodedata.normalize("NFD", "café")


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """A function that writes a folder of files, given by name."""
    return lambda files, name="pictures": write(tmp_path / name, files)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


# The files of captions


@pytest.mark.parametrize("ending", [*TEXTS[:-1], ".TXT", ".Caption"])
@pytest.mark.parametrize("pack", [Path, as_zip, as_tar], ids=["folder", "zip", "tar"])
def test_captions_have_the_endings_that_people_use_in_any_letter_case(put: Put, ending: str, pack: Callable) -> None:
    files = {"10_token/0.PNG": png(0), f"10_token/0{ending}": b"a cat", "10_token/1.Jpg": png(9)}
    source = read_source(pack(put(files | {f"10_token/1.Jpg{ending}": b"a dog"})))
    assert captions(source) == {"10_token/0.PNG": "a cat", "10_token/1.Jpg": "a dog"} and not source.findings


@pytest.mark.parametrize(
    ("picture", "text"),
    [
        ("images/0.png", "captions/0.txt"),
        ("images/0.png", "labels/0.caption"),
        ("Images/0.png", "Captions/0.TXT"),
        ("images/train/0.png", "captions/train/0.txt"),
        ("train/img/0.png", "train/txt/0.txt"),
        ("0.png", "captions/0.txt"),
        ("images/0.png", "0.txt"),
    ],
)
def test_texts_may_have_a_folder_of_their_own(put: Put, picture: str, text: str) -> None:
    source = read_source(put({picture: png(), text: b"a cat"}))
    assert captions(source) == {picture: "a cat"} and not source.findings


def test_texts_of_another_folder_are_not_guessed(put: Put) -> None:
    source = read_source(put({"images/a/0.png": png(), "images/b/0.png": png(9), "captions/a/0.txt": b"a cat"}))
    assert captions(source) == {"images/a/0.png": "a cat"} and found(source) == [("no caption", "images/b/0.png", "")]
    source = read_source(put({"images/0.png": png(), "photos/0.png": png(9), "captions/0.txt": b"a cat"}, "two"))
    assert not source.rows and [kind for kind, _, _ in found(source)] == ["one text", "one text"]


@pytest.mark.parametrize(
    "files",
    [
        {"set/0.yaml": b"caption: a cat"},
        {"set/0.wd14": b"a cat"},
        {"set/captions.csv": b"0.png,a cat"},
        {"captions.json": b"{}", "set/0.xml": b"<a/>"},
        {"captions/one.txt": b"a cat"},
        {},
    ],
    ids=lambda files: " ".join(files) or "one folder",
)
@pytest.mark.parametrize("folders", [["set"], ["images", "masks"], ["train", "test"]], ids=" ".join)
def test_names_of_folders_that_say_nothing_are_never_captions(
    put: Put, files: dict[str, bytes], folders: list[str]
) -> None:
    pictures = {f"{folder}/{i}.png": png(10 * i) for folder in folders for i in range(2)}
    files = {name.replace("set/", f"{folders[0]}/"): content for name, content in files.items()}
    source = read_source(put(pictures | files))
    assert not source.rows and found(source)[-1] == ("no captions", "captions", "")
    assert {(kind, name) for kind, name, _ in [*found(source)[:-1], *found(source, WARNING)]} == {
        ("not read", name) for name in files
    }


def test_folders_of_classes_are_captions_unless_texts_beside_their_pictures_are_not_read(put: Put) -> None:
    classes = {"red-apple/0.png": png(), "train/1.png": png(9), "red-apple/0.npz": b"", "README.md": b"apples, trains"}
    source = read_source(put(classes))
    assert captions(source) == {"red-apple/0.png": "red apple", "train/1.png": "train"} and not found(source)
    source = read_source(put({"red-apple/0.blip": b"an apple on a tree"}))
    assert found(source) == [("not read", "red-apple/0.blip", "")]


def test_one_caption_for_all_pictures_is_asked_for_by_writing_it(put: Put) -> None:
    files = {f"set/{i}.{ending}": data for i in range(3) for ending, data in (("png", png(i)), ("txt", b"a sks dog"))}
    report = examine(put(files), progress=False)
    assert len(report.rows) == 3 and not report.errors
    assert [f.severity for f in report.findings if f.kind == "one caption"] == [WARNING]


def test_training_prints_every_finding_that_it_counts(put: Put, capsys: pytest.CaptureFixture) -> None:
    check(put({"cat/0.png": png(0, 64), "dog/1.png": png(9, 64)}))
    printed = capsys.readouterr().out
    assert "note: captions: folder names: not found, so the names of folders are used: cat, dog" in printed
    assert "0 errors, 0 warnings, 1 notes" in printed


def test_texts_of_one_picture_that_differ_are_an_error(put: Put) -> None:
    files = {"0.png": png(), "0.txt": b"a cat\n", "0.caption": b"a cat", "1.png": png(9), "1.txt": b"a dog"}
    source = read_source(put(files))
    assert captions(source) == {"0.png": "a cat", "1.png": "a dog"} and not source.findings
    source = read_source(put({"1.caption": b"a cat"}))
    assert captions(source) == {"0.png": "a cat"} and found(source) == [("several texts", "1.png", "1.caption")]
    apart = {"images/0.png": png(), "images/0.txt": b"a cat", "captions/0.txt": b"a dog"}
    assert found(read_source(put(apart, "apart"))) == [("several texts", "images/0.png", "captions/0.txt")]


def test_a_json_beside_a_text_gives_the_other_columns(put: Put) -> None:
    source = read_source(put({"0.png": png(), "0.txt": b"a cat", "0.json": jsonl({"weight": 2, "width": 7})}))
    assert captions(source) == {"0.png": "a cat"} and source.rows[0].weight == 2 and not source.findings
    source = read_source(put({"0.json": jsonl({"weight": 2, "caption": "a dog"})}))
    assert found(source) == [("several texts", "0.png", "0.json")]


def test_a_text_and_a_caption_that_differ_are_an_error(put: Put) -> None:
    rows = [{"file_name": "0.png", "text": "a cat", "caption": "a dog"}]
    rows += [{"file_name": "1.png", "text": "", "caption": "a"}]
    source = read_source(put({"0.png": png(), "1.png": png(), "metadata.jsonl": jsonl(*rows)}))
    assert captions(source) == {"1.png": "a"} and found(source) == [("several captions", "0.png", "metadata.jsonl:1")]


def test_one_text_for_two_pictures_is_told(put: Put) -> None:
    source = read_source(put({"cat.jpg": png(0), "cat.png": png(9), "cat.txt": b"a cat"}))
    assert captions(source) == {"cat.jpg": "a cat", "cat.png": "a cat"}
    assert found(source, WARNING) == [("one text", "cat.jpg", "cat.txt")]


def test_labels_of_boxes_are_no_captions(put: Put) -> None:
    source = read_source(put({"images/0.png": png(), "labels/0.txt": b"0 0.5 0.5 0.25 0.1\n7 0.1 0.2 0.3 0.4\n"}))
    assert not source.rows and {kind for kind, _, _ in found(source)} == {"no caption"}
    assert captions(read_source(put({"0.png": png(), "0.txt": b"7"}, "digits"))) == {"0.png": "7"}


def test_a_table_of_captions_and_texts_that_it_overrides_are_told(put: Put) -> None:
    table = jsonl({"file_name": "0.png", "text": "a cat"})
    source = read_source(put({"0.png": png(), "0.txt": b"a dog", "Metadata.JSONL": table}))
    assert captions(source) == {"0.png": "a cat"} and found(source, WARNING) == [("not read", "0.txt", "")]


# Several lines


def test_each_line_of_a_text_is_a_caption(put: Put) -> None:
    files = {"0.png": png(), "0.txt": b"\xef\xbb\xbf\r\na cat\r\n\r\n  a small cat \r\na pet\r\n", "1.png": png(9)}
    source = read_source(put(files | {"1.txt": b"\n\na dog\n\n"}))
    assert [(row.caption, row.where, row.weight) for row in source.rows] == [
        ("a cat", "0.txt:2", 1 / 3),
        ("a small cat", "0.txt:4", 1 / 3),
        ("a pet", "0.txt:5", 1 / 3),
        ("a dog", "1.txt", 1.0),
    ]
    assert found(source, NOTE) == [("several captions", "0.png", "0.txt")] and not found(source)
    assert len(read_source(put({}), limit=1).rows) == 3  # one picture
    report = examine(put({}), progress=False)
    assert report.summary()[0].startswith("2 pictures, 4 different captions")


def test_a_picture_of_several_lines_appears_as_often_as_others_and_with_each_of_them(put: Put) -> None:
    lines = {"0.txt": b"zero\nnull\nnought", "1.txt": b"one", "2.txt": b"two"}
    rows = check(put(lines | {f"{i}.png": png(60 * i, 64) for i in range(3)}), progress=False).rows
    examples = PictureExamples(rows, [(16, 16)], seed=0)
    shown = [examples.example(place).caption for place in range(450)]
    counts = {caption: shown.count(caption) for caption in set(shown)}
    assert {caption: round(count / 50) for caption, count in counts.items()} == {
        "zero": 1,
        "null": 1,
        "nought": 1,
        "one": 3,
        "two": 3,
    }
    again = PictureExamples(rows, [(16, 16)], seed=0)
    assert shown[200:210] == [again.example(place).caption for place in range(200, 210)]


def test_several_lines_have_no_translation_or_masks_of_one(put: Put) -> None:
    files = {"0.png": png(), "m.png": png(), "0.txt": b"a cat\na pet"}
    for column in ({"translation": "eine Katze"}, {"masks": {"cat": "m.png"}}):
        source = read_source(put(files | {"0.json": jsonl(column)}))
        assert not source.rows and ("several captions", "0.png", "0.txt") in found(source)


# Names


def test_a_name_ends_at_its_last_dot_but_in_shards(put: Put) -> None:
    files = {"frame.0001.png": png(0), "frame.0001.txt": b"first", "frame.0002.png": png(9), "frame.txt": b"notes"}
    for pack in (Path, as_zip, as_tar):
        source = read_source(pack(put(files)))
        assert captions(source) == {"frame.0001.png": "first"}
        assert found(source) == [("no caption", "frame.0002.png", ""), ("not read", "frame.txt", "")]
    shard = put({"7.rgb.png": png(0), "7.txt": b"seven", "8.png": png(9), "8.txt": b"eight"}, "shard")
    assert captions(read_source(as_tar(shard))) == {"7.rgb.png": "seven", "8.png": "eight"}
    assert found(read_source(shard)) == [("no caption", "7.rgb.png", ""), ("not read", "7.txt", "")]


def test_names_with_composed_and_decomposed_accents_are_one(put: Put) -> None:
    beside = {f"{MAC}.png": png(), "café.txt": b"a coffee"}
    table = {f"{MAC}.png": png(), "metadata.jsonl": jsonl({"file_name": "café.png", "text": "a coffee"})}
    other = {"café.png": png(), "metadata.jsonl": jsonl({"file_name": f"{MAC}.png", "text": "a coffee"})}
    for name, files in {"beside": beside, "table": table, "other": other}.items():
        for pack in (Path, as_zip, as_tar):
            source = read_source(pack(put(files, name)))
            assert captions(source) == {"café.png": "a coffee"} and not source.findings
            assert source.rows[0].read() == png()


def test_two_files_of_one_name_in_two_spellings_are_an_error(put: Put) -> None:
    tea = {"tea.png": png(), "tea.txt": b"a tea"}
    folder = put({f"{MAC}.png": png(0), "café.png": png(9), "café.txt": b"a coffee"} | tea)
    if len(list(folder.iterdir())) < 5:
        pytest.skip("this file system does not tell them apart")
    for pack in (Path, as_zip, as_tar):
        source = read_source(pack(folder))
        assert captions(source) == {"tea.png": "a tea"} and [f[:2] for f in found(source)] == [("twice", "café.png")]


def test_names_of_a_zip_in_utf8_without_the_mark_for_it_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as archive:
        for folder in ("猫", "犬"):
            archive.writestr(f"{folder}/0.png", png())
    content = (tmp_path / "mac.zip").read_bytes()
    for head, place in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):
        for i in range(2):
            at = -1
            for _ in range(i + 1):
                at = content.index(head, at + 1)
            content = content[: at + place] + bytes([content[at + place] & ~0x08]) + content[at + place + 1 :]
    (tmp_path / "mac.zip").write_bytes(content)
    assert captions(read_source(tmp_path / "mac.zip")) == {"猫/0.png": "猫", "犬/0.png": "犬"}


def test_absolute_names_within_the_folder_are_read(put: Put, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    rows = [{"file_name": str(folder / "x" / "0.png"), "text": "a cat"}]
    rows += [{"file_name": str(path), "text": "a dog"} for path in (tmp_path / "out.png", folder / ".." / "out.png")]
    source = read_source(put({"x/0.png": png(), "../out.png": png(), "x/metadata.jsonl": jsonl(*rows)}))
    assert captions(source) == {"x/0.png": "a cat"}
    assert [kind for kind, _, _ in found(source)] == ["leaves the folder"] * 2


@pytest.mark.parametrize("name", ["0.PNG", "0.png ", "x/0.png"])
def test_a_name_that_is_nearly_that_of_a_file_is_told(put: Put, name: str) -> None:
    source = read_source(put({"0.png": png(), "metadata.jsonl": jsonl({"file_name": name, "text": "a"})}))
    (finding,) = [f for f in source.findings if f.severity == ERROR]
    assert finding.kind == "no file" and "but 0.png is" in finding.what


# The text in the files


@pytest.mark.parametrize("name", ["0.txt", "0.caption", "0.json", "metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("code", ["utf-16-le", "utf-16-be", "utf-16", "utf-32-le"])
def test_utf16_is_never_read_as_utf8(put: Put, name: str, code: str) -> None:
    row = {"file_name": "0.png", "text": "a cat"}
    text = "file_name,text\n0.png,a cat\n" if name.endswith("csv") else json.dumps(row) if "json" in name else "a cat\n"
    source = read_source(put({"0.png": png(), name: text.encode(code)}))
    assert not source.rows and len(found(source)) >= 1


def test_blanks_around_the_separators_of_a_csv_are_not_in_the_captions(put: Put) -> None:
    table = b'file_name, text\n0.png, "a dog, asleep"\n1.png,  a cat \n2.png,"a bird"\n'
    source = read_source(put({f"{i}.png": png(9 * i) for i in range(3)} | {"metadata.csv": table}))
    assert captions(source) == {"0.png": "a dog, asleep", "1.png": "a cat", "2.png": "a bird"} and not source.findings


def test_pairs_of_sentences_in_utf16_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.TSV").write_bytes("a cat\teine Katze\n".encode("utf-16-le"))
    with pytest.raises(DataError, match="NUL characters"):
        read_pairs(tmp_path / "pairs.TSV")
    (tmp_path / "pairs.TSV").write_bytes(b"a cat\teine Katze\n")
    assert read_pairs(tmp_path / "pairs.TSV") == [("a cat", "eine Katze")]


# Sets of datasets


def test_of_several_columns_of_pictures_the_one_called_image_is_read(tmp_path: Path) -> None:
    import datasets

    def pictures(level: int) -> list[Image.Image]:
        return [Image.fromarray(np.full((32, 32, 3), level, np.uint8))]

    def saved(columns: dict[str, list]) -> Path:
        features = {name: datasets.Value("string") if name == "text" else datasets.Image() for name in columns}
        folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "set"
        datasets.Dataset.from_dict(columns, features=datasets.Features(features)).save_to_disk(folder)
        return folder

    (row,) = read_source(saved({"mask": pictures(255), "image": pictures(7), "text": ["a cat"]})).rows
    assert Image.open(io.BytesIO(row.read())).getpixel((0, 0)) == (7, 7, 7)
    with pytest.raises(DataError, match="which column to read, 'before' or 'after'"):
        read_source(saved({"before": pictures(255), "after": pictures(7), "text": ["a cat"]}))


# Any folder


STEMS = ("a", "a.b", "a.1", "A", "é", unicodedata.normalize("NFD", "é"), "a b", "猫", ".a.", "a.png")
names = st.tuples(
    st.sampled_from(["", "", "x/", "images/", "captions/"]),
    st.sampled_from(STEMS),
    st.sampled_from([".png", ".png", ".PNG", ".jpg", ".txt", ".txt", ".TXT", ".caption", ".json", ".yaml", ".foo"]),
).map("".join)
lines = st.lists(st.sampled_from(["", " ", "one", "two", "drei"]), max_size=3)
breaks = st.sampled_from(["\n", "\r\n", "\r"])
PICTURE = png()


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(names, st.tuples(lines, breaks), min_size=1, max_size=7))
def test_every_picture_has_the_captions_of_its_own_file_or_a_finding(files: dict[str, tuple[list[str], str]]) -> None:
    """Each line of a text begins with the text's own name, so that a caption tells which file it is from."""
    given: dict[str, list[str]] = {}  # text -> its captions
    with tempfile.TemporaryDirectory() as place:
        for name, (texts, ending) in files.items():
            told = [f"{plain(name)}: {text}" if text.strip() else text for text in texts]
            if is_picture(name):
                write(Path(place), {name: PICTURE})
            elif name.lower().endswith(".json"):
                write(Path(place), {name: json.dumps({"text": ending.join(told)}).encode()})
                given[plain(name)] = [ending.join(told).strip()]
            else:
                write(Path(place), {name: ending.join(told).encode()})
                given[plain(name)] = [line for line in told if line.strip()]
        try:
            source = read_source(place)
        except DataError as error:
            assert "\n" not in str(error)
            return
    named = {finding.name for finding in source.findings}
    for name in (plain(name) for name in files if is_picture(name) and "/." not in f"/{name}"):
        rows = [row.caption for row in source.rows if row.name == name]
        texts = [text for text in given.keys() - named if stem(text) in (stem(name), name.rpartition("/")[2])]
        # A file of an unknown ending may be the picture's caption only if it is beside it.
        own = [given[text] for text in texts if not text.endswith(".foo") or text[:-4] == name[:-4]]
        if rows:
            assert rows in own or (rows == [name.split("/")[0]] and not own)
        else:
            assert name in named or "captions" in named


def is_picture(name: str) -> bool:
    return name.lower().endswith((".png", ".jpg"))


def plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0]
