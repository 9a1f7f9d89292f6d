"""Whatever is given, there is an answer, or an error of one line that this project raises on purpose.

Each property is tried on a few examples in every run, and on many with `-m long`. Files are damaged, texts are of any
script, and arguments are of any type.
"""

import dis
import io
import json
import os
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import cache, partial, wraps
from inspect import Parameter, signature, unwrap
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args, get_type_hints

import gradio as gr
import hypothesis.strategies as st
import numpy as np
import psutil
import pytest
import regex
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis.extra import numpy as npst
from PIL import Image, ImageCms, features
from PIL.PngImagePlugin import PngInfo
from test_preflight import KINDS, encoded, row_of, scenery, sums
from torch import Tensor

from pipelines import TextToImagePipeline, checks, trace
from pipelines.drawing import label
from pipelines.picture_files import open_picture, picture_errors
from pipelines.pictures import fit_picture
from pipelines.prompts import read_prompt_file
from pipelines.request import check_results, read_request
from pipelines.sources.check import examine
from pipelines.sources.findings import ERROR, DataError
from pipelines.sources.look import look_at
from pipelines.sources.read import read_source
from pipelines.tokenizer import train_tokenizer
from ui.app import build
from ui.endpoint import endpoint
from ui.export import DOWNLOADS
from ui.kept import Drawing, Kept
from unet_xattn import AttentionTrace
from unet_xattn.trace import Selection
from unet_xattn.words import find_phrase, phrase_spans, read_text, unknown_words

PACKAGES = tuple(f"{Path(__file__).parent.parent / name}{os.sep}" for name in ("pipelines", "ui", "unet_xattn"))
RAISE = dis.opmap["RAISE_VARARGS"]
DIGITS = b'{"prompt": "a star", "file_name": "0.png", "text": "one", "seed": 1' + bytes(4_300 * [0x30]) + b"}"
"""A row with a number of more digits than Python reads."""

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")


def check_examples(examples: int, strategy: st.SearchStrategy, holds: Callable[..., None]) -> None:
    """Run a check on many examples, and check that its memory does not grow with them."""
    before = psutil.Process().memory_info().rss

    @settings(max_examples=examples, deadline=10_000, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def run(example: object) -> None:
        holds(example)

    run()
    assert psutil.Process().memory_info().rss - before < 2**29


def many(few: int, long: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("examples", [few, pytest.param(long, marks=pytest.mark.long)])


def answer(question: Callable, *given: Any, **named: Any) -> Any:
    """The answer to a question, or None if it is refused; fails on any other error."""
    try:
        return question(*given, **named)
    except ValueError as error:
        assert_refusal(error)
        return None


def assert_refusal(error: Exception) -> None:
    """Check that an error is one line, and from a `raise` of ours: not what a library happened to say."""
    assert len(str(error).splitlines()) == 1, str(error)
    step = error.__traceback__
    while step.tb_next:
        step = step.tb_next
    code = step.tb_frame.f_code
    assert code.co_filename.startswith(PACKAGES) and code.co_code[step.tb_lasti] == RAISE, repr(error)


# Values of any type


texts = st.text(st.characters(codec=None), max_size=30)  # surrogates too
huge = st.sampled_from([15, 400, 5_000]).map(lambda digits: 10**digits)  # Python writes at most 4,300 digits
numbers = st.integers() | st.floats() | huge | st.fractions() | st.decimals() | st.complex_numbers()
scalars = (
    st.none() | st.booleans() | numbers | texts | texts.map(lambda text: f"{text}\n{text}") | st.binary(max_size=9)
)
dtypes = st.sampled_from(["?", "u1", "i8", "f2", "f4", "f8", "c8", "U3", "O", "M8[s]"]).map(np.dtype)
arrays = npst.arrays(dtypes, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
tensors = arrays.filter(lambda array: array.dtype.kind in "?uifc").map(lambda array: torch.from_numpy(np.array(array)))
flat = scalars | arrays | tensors | arrays.filter(lambda array: array.size).map(lambda array: array.flat[0])
anything = st.recursive(
    flat | st.builds(object) | st.just(int),
    lambda part: (
        st.lists(part, max_size=4)
        | st.lists(part, max_size=4).map(tuple)
        | st.dictionaries(texts, part, max_size=3)
        | st.sets(texts | st.integers(), max_size=3)
    ),
    max_leaves=6,
)
in_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | texts,
    lambda part: st.lists(part, max_size=4) | st.dictionaries(texts, part, max_size=3),
    max_leaves=6,
)


def mostly(*plausible: Any, other: st.SearchStrategy = anything) -> st.SearchStrategy:
    """One of these values in most cases, so that the other arguments are reached too."""
    return st.integers(0, 4).flatmap(lambda i: other if i == 0 else st.sampled_from(plausible))


client = partial(mostly, other=in_json)
"""Likewise of what a client of the page can send."""


# Damaged files


@st.composite
def damaged(draw: st.DrawFn, kinds: dict[str, bytes]) -> tuple[str, bytes]:
    """The name and content of one of these files, truncated, overwritten, extended, or replaced by random bytes."""
    name = draw(st.sampled_from(sorted(kinds)))
    if draw(st.integers(0, 4)) == 0:
        return name, draw(st.binary(max_size=300))
    data = bytearray(kinds[name])
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data) - 1) | st.integers(0, min(100, len(data) - 1)))  # headers matter most
        data[place] = draw(st.integers(0, 255))
    if data[:4] == b"\x89PNG" and draw(st.booleans()):
        data = resealed(data)
    end = draw(st.none() | st.integers(0, len(data)))
    return name, bytes(data[:end]) + draw(st.binary(max_size=8))


def resealed(data: bytearray) -> bytearray:
    """A PNG with the right checksums, so that more than these is tried."""
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        if place + 12 + length > len(data):
            break
        end = place + 8 + length
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return data


# Pictures


@cache
def pictures() -> dict[str, bytes]:
    """A small picture in each format, and with what else a file may say of its colours."""
    plain = scenery(5, 24, 24)
    found = {kind: encoded(plain, kind) for kind in (*KINDS, "PPM", "JPEG2000")}
    if features.check("avif"):
        found["AVIF"] = encoded(plain, "AVIF")
    exif, profile = Image.Exif(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif[0x0112] = 6
    exif[0xA001] = 2
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        found[f"{kind} with a profile"] = encoded(plain, kind, icc_profile=profile, exif=exif)
    said = PngInfo()
    said.add(b"gAMA", struct.pack(">I", 45_455))
    said.add(b"cHRM", struct.pack(">8I", 31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000))
    found["PNG with primaries"] = encoded(plain, "PNG", pnginfo=said)
    said = PngInfo()
    said.add(b"cICP", bytes([9, 13, 0, 1]))
    found["PNG of H.273"] = encoded(plain.convert("L"), "PNG", pnginfo=said)
    deep = Image.fromarray(np.linspace(0, 65_535, 576).astype(np.uint16).reshape(24, 24))
    for kind in ("PNG", "TIFF", "PPM", "JPEG2000"):
        found[f"{kind} of 16 bits"] = encoded(deep, kind)
    found["PNG with one transparent grey"] = encoded(plain.convert("L"), "PNG", transparency=7)
    found["PNG with a palette"] = encoded(plain.quantize(8), "PNG", transparency=b"\x00\x80")
    found["PNG with alpha"] = encoded(plain.convert("RGBA"), "PNG")
    found["JPEG of CMYK"] = encoded(plain.convert("CMYK"), "JPEG")
    found["TIFF of LAB"] = encoded(plain.convert("LAB"), "TIFF", compression="tiff_lzw")
    found["TIFF with numbers"] = encoded(Image.fromarray(np.ones((24, 24), np.float32)), "TIFF")
    found["ICO with a PNG"] = encoded(plain.convert("RGBA"), "ICO", sizes=[(24, 24)], bitmap_format="png")
    found["GIF in motion"] = encoded(plain, "GIF", save_all=True, append_images=[scenery(6, 24, 24)])
    found["WEBP in motion"] = encoded(plain, "WEBP", save_all=True, append_images=[scenery(6, 24, 24)])
    return found


def picture_holds(data: bytes) -> None:
    """Check that findings about a picture are single lines, and that a picture without errors can be trained on."""
    look = look_at(row_of(data, masks={"thing": partial(bytes, data)}), 16)
    assert all(str(finding).isprintable() and len(str(finding)) < 400 for finding in look.findings)
    if not any(finding.severity == ERROR and finding.kind != "bad mask" for finding in look.findings):
        with picture_errors():  # silences Pillow's warnings
            assert fit_picture(open_picture(data), 16).shape == (16, 16, 3)
        assert len(look.digest) == 64 and look.width > 0 and look.height > 0


@many(600, 20_000)
def test_no_bytes_of_a_picture_break_the_check(examples: int) -> None:
    check_examples(examples, damaged(pictures()), lambda example: picture_holds(example[1]))


# Captions and archives


values = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.lists(texts, max_size=2)
table_rows = st.fixed_dictionaries(
    {},
    optional={
        "file_name": st.sampled_from(["0.png", "1.png", "../0.png", "metadata.jsonl"]) | values,
        "text": values,
        "caption": values,
        "translation": values,
        "weight": values,
        "masks": values | st.dictionaries(texts, st.sampled_from(["0.png", "/"]) | values, max_size=2),
    },
)
table_lines = (
    table_rows.map(lambda row: json.dumps(row).encode())
    | table_rows.map(lambda row: ",".join(map(str, row.values())).encode("utf-8", "surrogatepass"))
    | texts.map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.binary(max_size=60)
    | st.just(DIGITS)
)
captions = st.tuples(
    st.sampled_from(["metadata.jsonl", "metadata.csv", "metadata.parquet", "0.txt", "0.json"]),
    st.sampled_from([b"", b"file_name,text\n", b"file_name;text;masks\n", b"\xef\xbb\xbf", b"\xff\xfe"]),
    st.lists(table_lines, max_size=4),
)


def source_holds(source: Path) -> dict[str, str]:
    """Check that a source is examined, or refused in one line, and not changed; returns its captions."""
    before, captions = sums(source.parent), {}
    try:
        report = examine(source, size=16, progress=False)
        assert all(str(finding).isprintable() for finding in report.findings)
        assert all(row.caption.strip() and row.caption.encode() and row.digest for row in report.rows)
        json.dumps(report.as_json(), ensure_ascii=False).encode()
        assert report.rows or report.errors
        captions = {f"{row.name} {row.where}": row.caption for row in report.rows}
        report.raise_if_unfit("fail")
    except DataError as error:
        assert_refusal(error)
    assert sums(source.parent) == before
    return captions


def packed(files: dict[str, bytes], kind: str) -> bytes:
    """These files in a zip, a tar or a tar.gz."""
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, content in files.items():
                archive.writestr(path, content)
    else:
        with tarfile.open(fileobj=file, mode="w:gz" if kind == "tar.gz" else "w") as tar:
            for path, content in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


@many(200, 5_000)
def test_no_captions_break_the_check(examples: int, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()

    def holds(example: tuple[str, bytes, list[bytes]]) -> None:
        name, head, table = example
        for old in folder.iterdir():
            old.unlink()
        for i in range(2):
            (folder / f"{i}.png").write_bytes(pictures()["PNG"])
        (folder / name).write_bytes(head + b"\n".join(table))
        source_holds(folder)

    check_examples(examples, captions, holds)


@many(120, 3_000)
def test_no_archive_breaks_the_check(examples: int, tmp_path: Path) -> None:
    files = {"0.png": pictures()["PNG"], "a/1.jpg": pictures()["JPEG"]}
    files["metadata.csv"] = b"file_name,text\n0.png,one\na/1.jpg,two\n"
    archives = {f"x.{kind}": packed(files, kind) for kind in ("zip", "tar", "tar.gz")}

    def holds(example: tuple[str, bytes]) -> None:
        name, content = example
        (tmp_path / name).write_bytes(content)
        source_holds(tmp_path / name)
        (tmp_path / name).unlink()

    check_examples(examples, damaged(archives), holds)


FOLDERS = ("", "", "images/", "captions/", "a/", "a/b/", "red-apple/", "é/", "e\u0301/", "train/")
CLUTTER = (".hidden/", "__MACOSX/", "a/__MACOSX/", "Thumbs.db/", "a/desktop.ini/")
STEMS = ("0", "1", "a.b", "a.1", "A", "é", "e\u0301", "猫", "a b", ".a", "README", "metadata", "state")
ENDINGS = (".png", ".png", ".PNG", ".jpg", ".gif", ".txt", ".txt", ".Caption", ".json", ".jsonl", ".csv", ".yaml", "")
paths = st.tuples(*map(st.sampled_from, ((*FOLDERS, *CLUTTER), STEMS, ENDINGS))).map("".join)
odd_names = st.text(st.characters(exclude_characters="/\\:\0", exclude_categories=["Cs"]), min_size=1, max_size=9)
odd_paths = st.lists(odd_names.filter(lambda name: name not in (".", "..")), min_size=1, max_size=3).map("/".join)
contents = st.sampled_from([b"one", b"two\n\ndrei\r\n", b"", b'{"text": "one"}', b"file_name,text\n0.png,one\n"])
layouts = st.dictionaries(
    paths | paths | odd_paths | odd_paths.map(lambda path: f"{path}.png"), contents, min_size=1, max_size=7
)


@many(120, 4_000)
def test_texts_beside_pictures_in_any_layout_are_read_alike_in_a_folder_and_in_archives(
    examples: int, tmp_path: Path
) -> None:
    def holds(layout: dict[str, bytes]) -> None:
        with TemporaryDirectory(dir=tmp_path) as temporary:
            place, files = Path(temporary), {}
            for i, (name, content) in enumerate(layout.items()):
                path, picture = place / "set" / name, name.lower().endswith((".png", ".jpg", ".gif"))
                with suppress(OSError):  # a name that this file system does not have, or that of a folder
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(encoded(scenery(i, 24, 24)) if picture else content)
                    files[name] = path.read_bytes()
            if not files:
                return
            for kind in ("zip", "tar"):
                (place / f"x.{kind}").write_bytes(packed(files, kind))
            source_holds(place / "x.tar")  # whose names follow another rule, that of WebDataset
            assert source_holds(place / "set") == source_holds(place / "x.zip")

    check_examples(examples, layouts, holds)


@many(200, 3_000)
def test_no_name_of_a_source_breaks_the_reader(examples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.tar").write_bytes(packed({"0.png": pictures()["PNG"], "0.txt": b"one"}, "tar"))
    patterns = st.text(st.sampled_from("{{}},,..[]*?x019 -a"), max_size=16).map(lambda text: f"{text}.tar")
    names = patterns | texts | st.sampled_from(["x.tar", "a" * 5_000])
    here = names.filter(lambda name: "/" not in name and ".." not in name)
    check_examples(examples, here, lambda name: answer(read_source, name))


# Prompts


SNIPPETS = (
    *("a red circle", "left of", "RED", "x2y", "don't", "medium-sized", "İstanbul", "ﬁsh", "ＲＥＤ"),
    *("½", "Ⅷ", "™", "№", "₨", "café", "cafe\u0301", "नमस्ते", "ก็", "สวัสดี", "كَلْب", "שָׁלוֹם"),
    *("한국어", "\u1112\u1161\u11ab", "红色的圆", "ひらがな", "が", "か\u3099"),
    *("🦆", "👨\u200d👩\u200d👧", "🇩🇪", "👍🏽", "1\ufe0f\u20e3", "❤\ufe0f", "☃", "→", "▁", "+", "€", "€5"),
    *("-", "’", "·", "_", ",", "…", "«", "[END]", " ", "  ", "\n", "\t", "\0", "\x1b", "\u00a0", "\u2028"),
    *("\u0301", "\ufe0f", "\u20e3", "\u00ad", "\ufeff", "\u200b", "\u200c", "\u200d", "\u202e"),
)
"""Words, letters and marks of many scripts, and characters that are easily taken for something else."""

prompts = st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=4) | texts, max_size=8).map("".join)


def words_hold(prompt: str, tokenizer: Any) -> None:
    """Check that every letter belongs to exactly one word, and that each word is found with its tokens."""
    answer(checks.check_prompt, prompt)
    if answer(read_text, prompt, tokenizer) is None:
        assert regex.search(r"\p{Cs}", prompt)
        return
    read = read_text(prompt, tokenizer)
    owners = [sum(word.start <= i < word.end for word in read.words) for i in range(len(prompt))]
    letters = [regex.match(r"[\p{L}\p{N}]", character) is not None for character in prompt]
    assert all(count == 1 if letter else count <= 1 for count, letter in zip(owners, letters, strict=True))
    tokens = [token for word in read.words for token in word.tokens]
    assert tokens == sorted(set(tokens)) and all(0 < token < len(read.tokens) - 1 for token in tokens)
    for word in read.words:
        assert prompt[word.start : word.end] == word.text and word.tokens
        for form in ("NFC", "NFD"):
            places = phrase_spans(unicodedata.normalize(form, word.text), prompt)
            occurrence = places.index((word.start, word.end))
            assert find_phrase(unicodedata.normalize(form, word.text), prompt, read.words, occurrence) == word.tokens
    unknown = iter(word.text for word in read.words)
    assert all(word in unknown for word in unknown_words(prompt, tokenizer))  # some of the words, in order


@many(800, 20_000)
def test_every_letter_of_a_prompt_belongs_to_one_word(examples: int, tokenizer: Any) -> None:
    """With the vocabulary of the scenes, and one that has all these letters next to each other."""
    random = np.random.default_rng(0)
    mixed = train_tokenizer(["".join(random.choice(SNIPPETS, 6)) for _ in range(3000)])
    asked = st.tuples(prompts, st.sampled_from([tokenizer, mixed]))
    check_examples(examples, asked, lambda pair: words_hold(*pair))


@many(400, 10_000)
def test_no_phrase_breaks_the_search_in_a_prompt(examples: int, tokenizer: Any) -> None:
    whole = st.tuples(prompts, prompts).filter(lambda pair: pair[1].isprintable())

    def holds(pair: tuple[str, str]) -> None:
        words = read_text(pair[1], tokenizer).words
        answer(find_phrase, pair[0], pair[1], words)
        for first, last in pairwise(words):
            phrase = pair[1][first.start : last.end]
            assert (first.start, last.end) in phrase_spans(phrase, pair[1])

    check_examples(examples, whole, holds)


@many(120, 5_000)
def test_every_prompt_is_drawn_as_a_label_or_refused(examples: int) -> None:
    def holds(text: str) -> None:
        drawn = answer(label, text, 15)
        assert drawn is None or (drawn.mode == "RGBA" and drawn.height == 24)

    check_examples(examples, prompts, holds)


CHECKS: tuple[Callable[[Any], Any], ...] = (
    *(checks.check_text, checks.check_prompt, checks.check_seed, checks.check_steps, checks.parse_seed),
    lambda value: checks.check_whole(value, "number", 1, 5),
    lambda value: checks.check_number(value, "number", 0, 1),
    lambda value: checks.check_guidance(value, ["a", ""], guidable=False),
)


@many(400, 10_000)
def test_no_value_breaks_a_check(examples: int) -> None:
    check_examples(examples, st.tuples(st.sampled_from(CHECKS), anything), lambda asked: answer(asked[0], asked[1]))


def prompt_lines(tokenizer: Any) -> st.SearchStrategy:
    rows = st.fixed_dictionaries(
        {"prompt": mostly("a red circle", "a star", other=in_json | prompts)},
        optional={
            "seed": mostly(0, 7, other=in_json),
            "steps": mostly(1, 20, other=in_json),
            "guidance": mostly(1, 2.5, other=in_json),
            "negative_prompt": mostly("", "a star", other=in_json),
            "id": mostly("one", "Two", other=in_json),
            "other": in_json,
        },
    )
    return (
        rows.map(lambda row: json.dumps(row).encode())
        | prompts.map(lambda text: text.encode("utf-8", "surrogatepass"))
        | st.binary(max_size=20)
        | st.just(DIGITS)
    )


@many(300, 8_000)
def test_no_file_of_prompts_breaks_its_reader(examples: int, tokenizer: Any, tmp_path: Path) -> None:
    def holds(example: tuple[str, list[bytes], bool]) -> None:
        name, lines, guidable = example
        (tmp_path / name).write_bytes(b"\n".join(lines))
        found = answer(read_prompt_file, tmp_path / name, tokenizer, guidable=guidable)
        for prompt in found or ():
            answer_of_checks = (checks.check_prompt(prompt.prompt), checks.check_seed(prompt.seed))
            assert answer_of_checks == (None, None)
        assert found is None or len({prompt.file for prompt in found}) == len(found)

    given = st.tuples(
        st.sampled_from(["p.txt", "p.jsonl"]), st.lists(prompt_lines(tokenizer), max_size=4), st.booleans()
    )
    check_examples(examples, given, holds)


# Calls of the pipeline


ARGUMENTS: dict[str, st.SearchStrategy] = {
    "prompt": mostly("a red circle", ["a star", "a red circle"], other=anything | prompts),
    "negative_prompt": mostly(None, "a star", ["a star", ""]),
    "ignore": mostly((), [[2]], [[2], [1]]),
    "size": st.tuples(mostly(None, 32, 64), mostly(None, 16, 32)),
    "steps": mostly(None, 2),
    "scale": mostly(None, 1, 3.0),
    "interval": mostly((0.0, 1.0), (0.25, 0.5)),
    "each": mostly(1, 2),
    "generator": mostly(None, torch.Generator(), [torch.Generator(), torch.Generator()]),
    "latents": mostly(None, torch.zeros(1, 3, 32, 32), np.zeros((2, 3, 32, 32))),
}


@many(400, 15_000)
def test_no_arguments_of_a_call_break_the_pipeline(examples: int, tiny_pipe: TextToImagePipeline) -> None:
    def holds(arguments: dict[str, Any]) -> None:
        asked = answer(read_request, tiny_pipe, **arguments)
        if asked is None:
            return
        assert len(asked.prompts) == len(asked.negatives) == len(asked.ignored) >= 1
        assert all(type(side) is int and side % 8 == 0 for side in asked.size) and type(asked.steps) is int
        json.dumps(asked.settings, allow_nan=False)

    check_examples(examples, st.fixed_dictionaries(ARGUMENTS), holds)


@many(200, 5_000)
def test_no_form_of_the_results_breaks_the_pipeline(examples: int) -> None:
    known = ["latents", "prompt_embeds"]
    asked = st.tuples(
        mostly("pil", "pt"), mostly(None, print), mostly(["latents"], ("latents",)), mostly(None, AttentionTrace())
    )
    check_examples(examples, asked, lambda given: answer(check_results, *given[:3], known, given[3]))


# Questions about a trace


@pytest.fixture(scope="module")
def traces(tiny_pipe: TextToImagePipeline) -> list[AttentionTrace]:
    """One with all kept apart, outputs, concepts, a negative prompt and a calibration; and one of the means alone."""
    trusted = {layer: [0.1, 0.2] for layer in tiny_pipe.unet.attention_layers}
    pipe, found = TextToImagePipeline(**tiny_pipe.components, calibration=trusted), []
    pipe.set_progress_bar_config(disable=True)
    for keep, guidance in (("full", 3.0), ("mean", 1.0)):
        is_full = keep == "full"
        with trace(pipe, keep, output=is_full, concepts=["green heart", "star"] if is_full else ()) as attention:
            generator = torch.Generator().manual_seed(0)
            pipe(["a red circle", "two blue stars"], 16, 16, 2, guidance, generator=generator)
        found.append(attention)
    return found


REGIONS = ((0, 0, 16, 16), (2, 3), (3, 3, 9, 16), torch.eye(16), np.eye(16, dtype=bool), (0, 0, 99, 99))
ASKED: dict[str, st.SearchStrategy] = {
    "word": mostly("red", "RED circle", "stars", "Green heart", 1, np.int64(2), other=anything | prompts),
    "tokens": mostly([1], (1, 2), [], np.array([1, 2]), other=anything | st.lists(st.integers())),
    "region": mostly(*REGIONS, other=anything | st.lists(st.integers(-3, 20) | numbers, min_size=2, max_size=4)),
    "layer": mostly(None, "down.0.0", "mid"),
    "occurrence": mostly(0, 1),
    "step": mostly(None, 0, 1),
    "head": mostly(None, 0, 1),
    "image": mostly(0, 1),
    "branch": mostly("prompt", "negative", "concepts"),
    "reduce": mostly("mean", "calibrated", "output"),
    "scale": mostly("absolute", "peak"),
    "of": mostly("all", "text", "words"),
    "refine": mostly("none", "edges"),
    "least": mostly(0.1, 0, other=anything),
}
QUESTIONS = (
    *("heatmap", "heatmaps", "words_at", "segmentation", "measure", "leakage", "spread", "maps", "words_of"),
    *("cut_off", "columns_of", "dropped", "mask", "masks"),
)


@st.composite
def questions(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """The name of a question and some of its arguments, with all that have no default."""
    name = draw(st.sampled_from(QUESTIONS))
    parameters = signature(getattr(AttentionTrace, name)).parameters
    asked = {key for key, parameter in parameters.items() if parameter.kind is not Parameter.VAR_KEYWORD} - {"self"}
    more = set(Selection.__annotations__) if "which" in parameters else set()
    chosen = {key for key in sorted(asked | more) if draw(st.booleans())}
    chosen |= {key for key in asked if parameters[key].default is Parameter.empty}
    return name, {key: draw(ASKED[key]) for key in sorted(chosen)}


def question_holds(attention: AttentionTrace, name: str, arguments: dict[str, Any]) -> Any:
    """Check that a question has an answer that its documentation allows, or is refused."""
    found = answer(getattr(attention, name), **arguments)
    if isinstance(found, Tensor):
        assert found.isfinite().all() and (found >= -1).all()
    if name == "heatmap" and found is not None:
        assert found.dtype == torch.float32 and found.shape == attention.size and 0 <= found.min() <= found.max() <= 1
    if name == "words_at" and found is not None:
        shares = [share for _, share in found]
        assert shares == sorted(shares, reverse=True) and 0 <= sum(shares) <= 1.01
    return found


@many(600, 20_000)
def test_no_question_breaks_a_trace(examples: int, traces: list[AttentionTrace]) -> None:
    asked = st.tuples(st.sampled_from(traces), questions())
    check_examples(examples, asked, lambda question: question_holds(question[0], *question[1]))


@many(100, 2_000)
def test_no_axes_to_keep_break_a_trace(examples: int) -> None:
    asked = anything | st.lists(st.sampled_from(["step", "head", "mean", "full"]) | anything)
    check_examples(examples, asked, lambda keep: answer(AttentionTrace, keep))


# Saved traces


NUMBERS = (True, -1, 0, 1, 2, 10**9, 10**30, 0.5, float("nan"))
ODD = (None, *NUMBERS, "", "prompt", "negative", "mid", "F32", "a|b|c", [], [1, 2], {}, [[]])


def nodes(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all parts of a JSON value, but of the whole."""
    if path:
        yield path
    for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from nodes(part, (*path, key))


@st.composite
def spoiled(draw: st.DrawFn, data: bytes) -> bytes:
    """A saved trace with other values in its header, or without some, and other bytes in its maps."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    inside = json.loads(header["__metadata__"]["trace"])
    for _ in range(draw(st.integers(0, 3))):
        tree = draw(st.sampled_from([header, inside, inside]))
        *parents, key = draw(st.sampled_from(list(nodes(tree)) or [(None,)]))
        for parent in parents:
            tree = tree[parent]
        if draw(st.booleans()):
            tree[key] = deepcopy(draw(st.sampled_from(ODD) | in_json))
        elif key is not None:
            del tree[key]
    if isinstance(header.get("__metadata__"), dict):
        header["__metadata__"]["trace"] = json.dumps(inside)
    body = bytearray(data[8 + length :])
    for _ in range(draw(st.integers(0, 3))):
        body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + body


def trace_holds(file: Path, data: bytes) -> None:
    """Check that a file is no trace, or one that answers every question."""
    file.write_bytes(data)
    attention = answer(AttentionTrace.load, file)
    if attention is None:
        return
    for image in range(len(attention.prompts)):
        for word in attention.words_of(image):
            question_holds(attention, "heatmap", {"word": word, "image": image})
        for name, named in (("words_at", {"region": (0, 0)}), ("segmentation", {}), ("leakage", {}), ("tokens_of", {})):
            for branch in ("prompt", "concepts") if name != "tokens_of" and attention.concepts else ("prompt",):
                question_holds(attention, name, named | {"image": image, "branch": branch})
    attention.save(file)
    assert AttentionTrace.load(file).recording == attention.recording


@many(400, 15_000)
def test_a_damaged_trace_is_refused_or_answers(examples: int, traces: list[AttentionTrace], tmp_path: Path) -> None:
    for name, attention in zip(("full", "mean"), traces, strict=True):
        attention.save(tmp_path / name)
    saved = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    broken = damaged(saved).map(lambda example: example[1])
    broken |= st.sampled_from(sorted(saved)).flatmap(lambda name: spoiled(saved[name]))
    check_examples(examples, broken, lambda data: trace_holds(tmp_path / "broken", data))


# The page's API


def echo(function: Callable) -> Callable:
    """A function of the same signature that answers its arguments."""
    return wraps(function)(lambda *values: values)


@pytest.fixture(scope="module")
def functions(tiny_bilingual_pipe: TextToImagePipeline) -> dict[str, Callable]:
    """The page's functions for clients, by the names of their endpoints."""
    page = build(TextToImagePipeline(**deepcopy(tiny_bilingual_pipe.components)))
    named = {function.api_name: function.fn for function in page.fns.values() if function.api_visibility == "public"}
    return {name: function for name, function in named.items() if function is not unwrap(function)}


def endpoint_holds(function: Callable, values: Sequence[Any]) -> None:
    hints, parameters = get_type_hints(function, include_extras=True), signature(function).parameters
    given = answer_of_page(endpoint(echo(function)), values)
    for parameter, value in zip(parameters.values(), given or (), strict=False):
        hint = hints[parameter.name]
        assert type(value) in (get_args(hint) or (hint,)) or value is parameter.default


def answer_of_page(function: Callable, values: Sequence[Any]) -> Any:
    """The answer to a client; None if it is refused."""
    try:
        return function(*values)
    except gr.Error as error:
        assert len(error.message.splitlines()) == 1 and not error.print_exception
        return None


SENT: dict[str, st.SearchStrategy] = {
    "steps": mostly(1, 2, 3, other=in_json.filter(lambda value: type(value) is not int or not 3 < value < 101)),
    "count": client(1, 2),
    "guidance": client(1.0, 2.5, None, "3"),
    "high": client(1.0, 0.5),
    "sampler": client("Euler", "Heun"),
    "seed": client("0", 2**64 - 1),
    "layer": client("", "mid", "down.0.0", "decoder.0"),
    "prompt": mostly("a red circle", "a star", other=in_json | prompts),
    "text": mostly("a red circle", "红色的圆", other=in_json | prompts),
    "model": client("", "this pipeline"),
}


@st.composite
def calls(draw: st.DrawFn, functions: dict[str, Callable]) -> tuple[str, list[Any]]:
    """The name of an endpoint and a value for each of its parameters."""
    name = draw(st.sampled_from(sorted(functions)))
    return name, [
        draw(SENT.get(parameter, client(0, 1, "", None))) for parameter in signature(functions[name]).parameters
    ]


@many(400, 10_000)
def test_whatever_a_client_sends_arrives_as_the_types_of_a_function_or_is_refused(
    examples: int, functions: dict[str, Callable]
) -> None:
    asked = {"generate", "translate", "follow", "follow_translation", "train", "stop", "resume"}
    assert set(functions) == asked | {"models", "runs"}
    check_examples(examples, calls(functions), lambda call: endpoint_holds(unwrap(functions[call[0]]), call[1]))


@many(80, 4_000)
def test_every_endpoint_answers_in_json_or_refuses(
    examples: int, functions: dict[str, Callable], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # which has no runs
    answering = {name: function for name, function in functions.items() if name != "train"}  # which starts a process

    def holds(call: tuple[str, list[Any]]) -> None:
        json.dumps(answer_of_page(answering[call[0]], call[1]), allow_nan=False)

    check_examples(examples, calls(answering), holds)


@many(120, 5_000)
def test_the_viewer_gets_json_or_an_error_of_one_line(examples: int, traces: list[AttentionTrace]) -> None:
    kept = Kept()
    key = kept.add(Drawing(traces[0], [["data:,"]] * 2, [{"prompt": "a red circle", "seed": "7"}] * 2))
    views = ("mean||", "mean|down.0.0|1", "mean||0", "calibrated||", "mean|mid", "|||")
    whole = {
        "key": client(key),
        "image": client(0, 1),
        "name": client(*views),
        "kind": client(*DOWNLOADS),
        "word": client(0, 1, -1),
    }
    asked = st.tuples(st.sampled_from(kept.functions()), st.fixed_dictionaries({}, optional=whole) | in_json)

    def holds(question: tuple[Callable, Any]) -> None:
        found = question[0](question[1])
        json.dumps(found, allow_nan=False)
        assert "error" not in found or len(found["error"].splitlines()) == 1

    check_examples(examples, asked, holds)
