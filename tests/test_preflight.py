"""The findings of a data check, which never fails on bad data, never hangs, and never changes a file."""

import hashlib
import io
import json
import struct
import threading
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, features

from pipelines.picture_files import PictureError, open_picture
from pipelines.sources.check import check, examine
from pipelines.sources.contact_sheet import contact_sheet
from pipelines.sources.duplicates import MOST_BITS, alike
from pipelines.sources.findings import ERROR, NOTE, SHOWN, WARNING, DataError, Finding, lines
from pipelines.sources.look import look_at
from pipelines.sources.rows import Row
from pipelines.tokenizer import MAX_TOKENS

MakeFolder = Callable[..., Path]
KINDS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO")


def scenery(seed: int, width: int = 80, height: int = 80) -> Image.Image:
    """A picture with an outline of its own and some noise."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    fine = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), float)
    return Image.fromarray(np.clip(fine + random.normal(0, 3, fine.shape), 0, 255).astype(np.uint8))


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def row_of(data: bytes, **more: object) -> Row:
    return Row("1.png", "metadata.jsonl:1", "a thing", partial(bytes, data), **more)  # type: ignore[arg-type]


def kinds_of(data: bytes, size: int = 64, **more: object) -> dict[str, str]:
    """The kinds of findings about a picture, with their severities."""
    return {finding.kind: finding.severity for finding in look_at(row_of(data, **more), size).findings}


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a folder of pictures, given by name, each captioned with its name by default."""

    def put(files: dict[str, bytes], captions: dict[str, object] | None = None) -> Path:
        folder = tmp_path / "pictures"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        rows = [{"file_name": name, "text": (captions or {}).get(name, f"this is {name}")} for name in files]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return folder

    return put


def sums(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


# One picture


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims this size, without pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"")))
    packed = [struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def turned(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(scenery(0, 100, 80), kind, exif=exif)


ROWS_16 = np.linspace(0, 65535, 80).astype(np.uint16)


@pytest.mark.parametrize(
    ("data", "kinds"),
    [
        (lambda: encoded(scenery(0)), {}),
        (lambda: b"", {"empty": ERROR}),
        (lambda: b"no picture", {"unreadable": ERROR}),
        (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", {"unreadable": ERROR}),
        (lambda: encoded(scenery(0), "JPEG")[:-200], {"truncated": ERROR}),
        (lambda: encoded(scenery(0))[:-2000], {"truncated": ERROR}),
        (lambda: png_of_size(9_500, 9_500), {"too large": ERROR}),
        (lambda: png_of_size(30_000, 30_000), {"too large": ERROR}),
        (lambda: encoded(scenery(0, 7, 80)), {"too small": ERROR, "aspect": WARNING}),
        (lambda: encoded(scenery(0, 63, 80)), {"small": WARNING}),
        (lambda: encoded(scenery(0, 64, 257)), {"aspect": WARNING}),
        (lambda: encoded(Image.fromarray(np.tile(ROWS_16, (80, 1)))), {"16-bit": NOTE}),
        (lambda: encoded(Image.fromarray(np.ones((80, 80), np.float32)), "TIFF"), {"floating-point": ERROR}),
        (lambda: encoded(scenery(0).convert("CMYK"), "JPEG"), {"CMYK": NOTE}),
        (lambda: encoded(scenery(0).quantize(16)), {"palette": NOTE}),
        (lambda: encoded(scenery(0).convert("RGBA")), {"transparent": NOTE}),
        (
            lambda: encoded(scenery(0), "WEBP", save_all=True, append_images=[scenery(1)], lossless=True),
            {"animated": NOTE},
        ),
        (
            lambda: encoded(scenery(0), "GIF", save_all=True, append_images=[scenery(1)]),
            {"palette": NOTE} | {"animated": NOTE},
        ),
        (lambda: turned("JPEG"), {"turned": NOTE}),
        (lambda: turned("PNG"), {"turned": NOTE}),
    ],
    ids=range(20),
)
def test_traits_and_damage_of_a_picture_are_found_with_their_severity(
    data: Callable[[], bytes], kinds: dict[str, str]
) -> None:
    assert kinds_of(data()) == kinds


@pytest.mark.parametrize("kind", [*KINDS, "PPM", "JPEG2000", "AVIF"])
def test_every_format_is_read(kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    assert ERROR not in kinds_of(encoded(scenery(0), kind)).values()


def test_sides_are_those_of_the_picture_as_displayed() -> None:
    for kind in ("JPEG", "PNG"):
        look = look_at(row_of(turned(kind)), 64)
        assert (look.width, look.height) == (80, 100)
    large = look_at(row_of(encoded(scenery(0, 800, 600), "JPEG")), 64)
    assert (large.width, large.height) == (800, 600)


def test_a_picture_too_large_is_refused_before_a_pixel_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(scenery(0), "BMP")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(PictureError, match="80×80"):
        open_picture(data, most_pixels=80 * 80 - 1)


def test_masks_are_checked_too() -> None:
    picture, mask = encoded(scenery(0)), Image.new("L", (80, 80))
    mask.paste(255, (20, 20, 60, 60))
    assert kinds_of(picture, masks={"thing": partial(bytes, encoded(mask))}) == {}
    assert kinds_of(picture, masks={"thing": partial(bytes, encoded(mask.resize((40, 40))))}) == {}
    for wrong in (b"", encoded(mask)[:-30], encoded(mask.resize((80, 40)))):
        assert kinds_of(picture, masks={"thing": partial(bytes, wrong)}) == {"bad mask": ERROR}


@pytest.mark.parametrize(
    ("size", "kind", "what"),
    [
        (0, "empty mask", "the mask of 'thing' is empty: no part of it is white"),
        (1, "empty mask", "the mask of 'thing' is empty at 64×64 pixels: what is white in it is too small"),
        (2000, "full mask", "the mask of 'thing' covers the whole picture"),
    ],
)
def test_a_mask_without_an_object_or_without_a_ground_is_a_warning(size: int, kind: str, what: str) -> None:
    mask = Image.new("L", (2000, 2000))
    mask.paste(255, (0, 0, size, size))
    row = row_of(encoded(scenery(0)), masks={"thing": partial(bytes, encoded(mask))})
    ((severity, found, details),) = [(f.severity, f.kind, f.what) for f in look_at(row, 64).findings]
    assert (severity, found, details) == (WARNING, kind, what)


# Pictures that look alike


def test_similar_pictures_are_found_and_others_are_not() -> None:
    looks = []
    for seed in range(100):
        picture = scenery(seed, 128, 128)
        again = picture.resize((96, 96)).resize((128, 128))
        ImageDraw.Draw(again).rectangle((0, 0, 4, 4), "white")
        for data in (encoded(picture), encoded(picture, "JPEG", quality=60), encoded(again, "WEBP", quality=70)):
            looks.append(look_at(row_of(data), 64))
    outlines = np.array([look.outline for look in looks], np.uint64)
    tints = np.stack([np.frombuffer(look.tints, np.uint8) for look in looks])
    found = alike(outlines, tints)
    assert all(later // 3 == earlier // 3 for later, earlier in found.items())
    assert len(found) >= 0.9 * 200
    blue = tints.copy()
    blue[1::3] = 255 - blue[1::3]
    assert not {later for later, earlier in alike(outlines, blue).items() if later % 3 == 1}


def test_the_search_for_duplicates_finds_what_comparing_all_pairs_finds() -> None:
    random = np.random.default_rng(0)
    outlines = random.integers(0, 2**64, 3000, np.uint64)
    for i in range(0, 3000, 3):  # every third gets a neighbour that differs in 0 to 5 bits
        for bit in random.choice(64, i // 3 % 6, replace=False):
            outlines[i + 1] = outlines[i] ^ np.uint64(1 << int(bit)) if bit == 0 else outlines[i + 1]
        flips = sum(1 << int(bit) for bit in random.choice(64, i // 3 % 6, replace=False))
        outlines[i + 1] = outlines[i] ^ np.uint64(flips)
    tints = np.zeros((3000, 48), np.uint8)
    bits = np.unpackbits(outlines[:, None].view(np.uint8), axis=1).astype(np.float32)
    apart = bits @ (1 - bits).T + (1 - bits) @ bits.T
    pairs = np.argwhere(np.triu(apart <= MOST_BITS, 1))
    expected: dict[int, int] = {}
    for i, j in pairs.tolist():
        expected[j] = min(i, expected.get(j, i))
    assert len(expected) > 500 and alike(outlines, tints) == dict(sorted(expected.items()))
    assert alike(np.array([], np.uint64), np.empty((0, 48), np.uint8)) == {}
    assert len(alike(np.zeros(100_000, np.uint64), np.zeros((100_000, 48), np.uint8))) == 99_999


# A source


def test_everything_is_found_at_once_and_no_file_is_changed(put, tmp_path: Path) -> None:
    good, other = encoded(scenery(0)), encoded(scenery(1))
    files = {"a.png": good, "b.png": other, "same.png": good, "like.jpg": encoded(scenery(1), "JPEG"), "empty.png": b""}
    folder = put(files | {"cut.png": good[:-3000], "mute.png": encoded(scenery(3))}, {"mute.png": None})
    (folder / "extra.png").write_bytes(good)
    before = sums(tmp_path)
    report = examine(folder, progress=False)
    assert {(f.severity, f.kind, f.name, f.where) for f in report.findings} == {
        (ERROR, "empty", "empty.png", "metadata.jsonl:5"),
        (ERROR, "truncated", "cut.png", "metadata.jsonl:6"),
        (ERROR, "no caption", "mute.png", "metadata.jsonl:7"),
        (WARNING, "duplicate", "same.png", "metadata.jsonl:3"),
        (WARNING, "near-duplicate", "like.jpg", "metadata.jsonl:4"),
        (WARNING, "no row", "extra.png", ""),
    }
    assert [row.name for row in report.rows] == ["a.png", "b.png", "same.png", "like.jpg"]
    assert all(row.digest == hashlib.sha256(row.read()).hexdigest() for row in report.rows)
    assert {(row.width, row.height) for row in report.rows} == {(80, 80)}
    assert report.summary()[0] == "4 pictures, 4 different captions. 3 cannot be used."
    assert len(report.table().splitlines()) == 6
    json.dumps(report.as_json())
    assert sums(tmp_path) == before


def test_training_does_not_start_with_errors_unless_they_are_skipped(put, capsys) -> None:
    folder = put({"a.png": encoded(scenery(0)), "b.png": b"", "c.png": encoded(scenery(1), "JPEG")[:-100]})
    with pytest.raises(DataError, match=r"2 errors.*b\.png.*c\.png") as error:
        check(folder)
    assert "\n" not in str(error.value) and "--on-bad skip" in str(error.value)
    printed = capsys.readouterr().out
    assert "error: b.png (metadata.jsonl:2): empty" in printed and "c.png" in printed
    assert [row.name for row in check(folder, on_bad="skip", progress=False).rows] == ["a.png"]
    assert capsys.readouterr().out == ""
    with pytest.raises(DataError, match="on-bad must be fail or skip"):
        check(folder, on_bad="delete")


def test_skipping_errors_needs_a_picture_that_can_be_used(put) -> None:
    folder = put({"b.png": b""})
    with pytest.raises(DataError, match="no picture that can be used"):
        check(folder, on_bad="skip", progress=False)


def broken_chunk(data: bytes) -> bytes:
    """A PNG whose second data chunk has lost its name."""
    place = data.index(b"IDAT", data.index(b"IDAT") + 4)
    return data[:place] + b"\x00\x01\x02\x03" + data[place + 4 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"this is not a picture",
        lambda data: data[: len(data) // 2],
        lambda data: data[:20_000] + bytes(100) + data[20_100:],
        broken_chunk,
    ],
    ids=["empty", "text", "cut short", "overwritten", "broken chunk"],
)
def test_a_broken_picture_is_named(make_folder: MakeFolder, damage: Callable[[bytes], bytes]) -> None:
    folder = make_folder("pictures", ["a", "b", "c"])
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    (folder / "1.png").write_bytes(damage(encoded(Image.fromarray(noise))))
    report = examine(folder, progress=False)
    assert [finding.name for finding in report.errors] == ["1.png"] and len(report.rows) == 2


def test_edited_captions_are_read_again(make_folder: MakeFolder) -> None:
    folder = make_folder("pictures", ["a cat"])
    assert check(folder, progress=False).rows[0].caption == "a cat"
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a very black cat"}')
    assert check(folder, progress=False).rows[0].caption == "a very black cat"


def test_a_caption_of_more_tokens_than_a_model_reads_is_a_finding(make_folder: MakeFolder) -> None:
    words = " ".join(["red"] * (MAX_TOKENS - 2))
    folder = make_folder("pictures", [words, words + " blue", "ab" * 200])
    found = [f for f in examine(folder, progress=False).findings if f.kind == "long caption"]
    assert [f.name for f in found if "65 tokens" in f.what] == ["1.png"]
    assert "0.png" not in [f.name for f in found]


def test_two_captions_of_one_picture_are_not_duplicates(make_folder: MakeFolder) -> None:
    rows = [{"file_name": "0.png", "text": text} for text in ("a", "b")]
    report = examine(make_folder("pictures", ["x"], rows), progress=False)
    assert [f.kind for f in report.findings if f.severity != WARNING] == ["several captions"]
    assert len(report.rows) == 2 and "duplicate" not in [f.kind for f in report.findings]


def test_the_vocabulary_counts_words(make_folder: MakeFolder) -> None:
    folder = make_folder("pictures", ["A red cat", "a RED dog, asleep", "红色的猫"])
    words = examine(folder, progress=False).vocabulary
    assert words.words["red"] == 2 and words.words["a"] == 2 and words.words["猫"] == 1
    assert words.lengths == {3: 1, 4: 2} and words.different == 3
    assert any("a 2, red 2" in line for line in words.lines())


def test_several_processes_find_the_same_as_one(put, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{i}.png": encoded(scenery(i)) if i % 7 else b"bad" for i in range(80)}
    folder = put(files)
    one, two = (examine(folder, workers=workers, progress=False) for workers in (1, 2))
    assert one.findings == two.findings and one.rows == two.rows and len(one.rows) == 68


def test_another_thread_may_check(put) -> None:
    folder, found = put({"a.png": encoded(scenery(0))}), []
    other = threading.Thread(target=lambda: found.append(examine(folder, progress=False)))
    other.start()
    other.join(60)
    assert len(found[0].rows) == 1


def test_every_error_is_printed_and_the_first_of_other_kinds() -> None:
    findings = [Finding(s, "kind", f"{i}.png", "table:1", "what") for i in range(50) for s in (NOTE, ERROR)]
    printed = lines(findings)
    assert [line.split(":")[0] for line in printed] == ["error"] * 50 + ["note"] * (SHOWN + 1)
    assert printed[-1] == "note: kind: 30 more findings of this kind"


def test_findings_cannot_control_a_terminal() -> None:
    finding = Finding(ERROR, "kind", "\x1b[2J\u202e\udc80.png", "a\nb", "\x07")
    assert str(finding).isprintable() and "\\x1b" in str(finding)


def test_the_contact_sheet_shows_each_picture_with_its_caption(put) -> None:
    folder = put({f"{i}.png": encoded(Image.new("RGB", (64, 64), (i, 90, 90))) for i in range(10)})
    sheet = contact_sheet(check(folder, progress=False).rows)
    assert sheet.width > 8 * 64
    colours = {colour for _, colour in sheet.getcolors(2**20)}
    assert {(i, 90, 90) for i in range(10)} <= colours
