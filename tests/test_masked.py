"""Sets of pictures with masks, read in the layouts in which they are published."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from masked_sets import Picture, put, run_lengths, write_coco, write_imagenet, write_own, write_voc
from PIL import Image

from pipelines.data.emoji_folder import write_scenes
from pipelines.scenes.shapes import scene
from pipelines.scenes.worlds import render
from pipelines.sources.coco import draw, from_run_lengths, unpacked
from pipelines.sources.findings import DataError
from pipelines.sources.masked import VOC_CLASSES, read_masked, spread
from pipelines.tracing.masks import run_lengths as written_run_lengths

VOC = {name: number for number, name in enumerate(VOC_CLASSES, 1)}
IMAGENET = {"n02": "dog", "n01": "cat", "n03": "sofa"}
CAPTIONS = {"a": "a photo of a dog", "b": "a photo of a cat and a dog", "c": "a photo of a cat, a dog and a sofa"}


def drawn(seed: int, names: list[str], height: int = 24, width: int = 32) -> Picture:
    """A picture with a box for each name, around which it is void."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (3, 4, 3)).astype(np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    masks, unknown = {}, np.zeros((height, width), bool)
    for i, name in enumerate(names):
        unknown[3:12, 1 + 10 * i : 10 + 10 * i] = True
        masks[name] = np.zeros((height, width), bool)
        masks[name][4:11, 2 + 10 * i : 9 + 10 * i] = True
    for mask in masks.values():
        unknown &= ~mask
    return pixels, masks, unknown


PICTURES = {"a": drawn(0, ["dog"]), "b": drawn(1, ["cat", "dog"]), "c": drawn(2, ["cat", "dog", "sofa"], 30, 32)}


def renamed(pictures: dict[str, Picture]) -> dict[str, Picture]:
    return {f"n02_{name}": picture for name, picture in pictures.items()}


WRITERS: dict[str, Callable[[Path, dict[str, Picture]], Path]] = {
    "voc": lambda folder, pictures: write_voc(folder, pictures, VOC),
    "voc without lists": lambda folder, pictures: write_voc(folder, pictures, VOC, None),
    "coco": write_coco,
    "imagenet": lambda folder, pictures: write_imagenet(folder, renamed(pictures), IMAGENET),
    "imagenet of 16 bits": lambda folder, pictures: write_imagenet(folder, renamed(pictures), IMAGENET, deep=True),
    "own": lambda folder, pictures: write_own(folder, pictures, CAPTIONS),
}


@pytest.mark.parametrize("layout", WRITERS)
def test_pictures_captions_masks_and_void_are_those_that_were_written(layout: str, tmp_path: Path) -> None:
    files = read_masked(WRITERS[layout](tmp_path, PICTURES))
    assert [Path(file.name).stem.removeprefix("n02_") for file in files] == list(PICTURES)
    for file, (name, (pixels, masks, unknown)) in zip(files, PICTURES.items(), strict=True):
        found = file.load()
        assert found.picture.mode == "RGB" and found.picture.size == pixels.shape[1::-1]
        assert np.abs(np.asarray(found.picture).astype(float) - pixels).mean() < 6  # JPEG
        assert found.caption == CAPTIONS[name] and found.labels == tuple(masks)
        assert [found.caption[start:end] for start, end in found.spans] == list(masks)
        assert found.masks.dtype == bool and (found.masks == np.stack(list(masks.values()))).all()
        assert (found.void == (unknown if layout != "own" else False)).all()


def test_labels_beyond_a_byte_are_red_and_green(tmp_path: Path) -> None:
    names = {f"n{i:04}": f"class{i}" for i in range(1, 400)}
    for deep in (False, True):
        folder = tmp_path / str(deep)
        write_imagenet(folder, {"n0300_x": drawn(0, ["class300", "class7"])}, names, deep=deep)
        (file,) = read_masked(folder)
        assert file.name == "n0300/n0300_x" and file.load().labels == ("class7", "class300")


def test_splits_for_training_and_for_validation_are_told_apart(tmp_path: Path) -> None:
    first, second = {"a": PICTURES["a"]}, {"b": PICTURES["b"]}
    for split, pictures in (("train", first), ("val", second)):
        write_voc(tmp_path / "voc", pictures, VOC, split)
        write_coco(tmp_path / "coco", pictures, f"{split}2017")
    for split, pictures in (("train-semi", first), ("validation", second)):
        write_imagenet(tmp_path / "imagenet", renamed(pictures), IMAGENET, split)
    for layout in ("voc", "coco", "imagenet"):
        found = [
            [Path(file.name).stem[-1] for file in read_masked(tmp_path / layout, train)] for train in (True, False)
        ]
        assert found == [["a"], ["b"]]


def test_words_for_ground_and_objects_have_the_masks_that_were_written(tmp_path: Path) -> None:
    write_scenes(tmp_path / "emoji", 6)
    for file in read_masked(tmp_path / "emoji"):
        found = file.load()
        assert len(found.masks) == len(found.labels) >= 1 and found.masks.any(axis=(1, 2)).all()
        assert all(label.lower() in found.caption.lower() for label in found.labels)


def test_a_mask_of_lower_resolution_is_enlarged(tmp_path: Path) -> None:
    described = scene(0, 1, kind="one")
    picture, (mask,) = render(described, 64)
    put(tmp_path, "a.png", picture)
    put(tmp_path, "m.png", (render(described, 32)[1][0] >= 0.5).astype(np.uint8) * 255)
    shape = described.objects[0].shape
    row = {"file_name": "a.png", "text": described.caption, "masks": {shape: "m.png"}}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    (file,) = read_masked(tmp_path)
    found = file.load().masks[0]
    assert (found & (mask >= 0.5)).sum() / (found | (mask >= 0.5)).sum() > 0.75


def test_a_part_of_a_set_is_spread_over_it() -> None:
    files = list(range(10))
    assert spread(files, 3) == [0, 3, 6] and spread(files, 10) == spread(files, 99) == spread(files, None) == files  # type: ignore[arg-type, comparison-overlap]


# COCO's masks


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_run_lengths_are_read_as_they_are_written(mask: np.ndarray) -> None:
    for written in (run_lengths(mask), written_run_lengths(mask)):
        assert (from_run_lengths(written["counts"], *mask.shape) == mask).all()
        assert (draw(written, *mask.shape) == mask).all()


def packed(counts: list[int]) -> str:
    """As pycocotools packs them."""
    text = ""
    for i, number in enumerate(counts):
        rest = number - counts[i - 2] if i > 2 else number
        while True:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
            if not more:
                break
    return text


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=20))
def test_packed_run_lengths_are_unpacked(counts: list[int]) -> None:
    assert unpacked(packed(counts)) == counts


def test_packed_run_lengths_are_those_of_pycocotools() -> None:
    """Packed by pycocotools 2.0.11: a box of 3×4 pixels at (2, 1) in 7×6, and a diagonal."""
    box = np.zeros((6, 7), bool)
    box[1:5, 2:5] = True
    assert (draw({"size": [6, 7], "counts": BOX}, 6, 7) == box).all()
    assert (draw({"size": [9, 9], "counts": DIAGONAL}, 9, 9) == np.eye(9, dtype=bool)).all()


BOX, DIAGONAL = "=42000;", "019000000000000000"


def test_polygons_hold_the_pixels_that_they_cover_by_half() -> None:
    mask = draw([[2, 1, 6, 1, 6, 4, 2, 4], [8.6, 8.6, 9.9, 8.6, 9.9, 9.9, 8.6, 9.9]], 10, 12)
    expected = np.zeros((10, 12), bool)
    expected[1:4, 2:6] = True
    expected[9, 9] = True
    assert (mask == expected).all()
    assert draw([[-5, -5, 40, -5, 40, 40, -5, 40]], 10, 12).all()
    triangle = draw([[0, 0, 30, 0, 0, 30]], 30, 30)
    assert abs(int(triangle.sum()) - 450) <= 15 and triangle[2, 2] and not triangle[20, 20]


# What is wrong is one line


def broken(folder: Path, *, train: bool = False) -> str:
    with pytest.raises(DataError) as caught:
        for file in read_masked(folder, train):
            file.load()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


def test_folders_without_masks_are_refused(tmp_path: Path) -> None:
    assert "is not a folder: expected one with JPEGImages" in broken(tmp_path / "nothing")
    assert "has masks in no layout that is read" in broken(tmp_path)
    put(tmp_path, "a.png", PICTURES["a"][0])
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a dog"}')
    assert broken(tmp_path).endswith("has no picture with masks")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "a dog", "masks": {"dog": "m.png"}}')
    assert "has errors, which `unet-xattn data check` lists: error: b.png" in broken(tmp_path)


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    message = "the mask of {} has 31×24 pixels, its picture 32×24: they must be equal"
    write_voc(tmp_path / "voc", {"a": PICTURES["a"]}, VOC)
    put(tmp_path / "voc", "SegmentationClass/a.png", np.zeros((24, 31), np.uint8))
    assert broken(tmp_path / "voc") == message.format("a.png")
    write_imagenet(tmp_path / "imagenet", {"n01_a": drawn(0, ["cat"])}, IMAGENET)
    put(tmp_path / "imagenet", "validation-segmentation/n01/n01_a.png", np.zeros((24, 31, 3), np.uint8))
    assert broken(tmp_path / "imagenet") == message.format("n01_a.png")
    write_coco(tmp_path / "coco", {"a": drawn(0, ["dog"], 24, 31)})
    put(tmp_path / "coco", "val2017/a.jpg", PICTURES["a"][0])
    assert broken(tmp_path / "coco") == message.format("a.jpg")


def test_missing_files_are_named(tmp_path: Path) -> None:
    for layout, (file, message) in {
        "voc": ("JPEGImages/a.jpg", "JPEGImages/a.jpg is missing: there is a mask for it"),
        "coco": ("val2017/a.jpg", "a.jpg is missing: instances_val2017.json has its instances"),
        "imagenet": ("validation/n02/n02_a.JPEG", "n02/n02_a.jpg is missing: there is a mask for it"),
    }.items():
        folder = WRITERS[layout](tmp_path / layout, {"a": PICTURES["a"]})
        (folder / file).unlink()
        assert broken(folder) == message
    folder = WRITERS["voc"](tmp_path / "masks", {"a": PICTURES["a"]})
    (folder / "SegmentationClass/a.png").unlink()
    assert broken(folder) == "SegmentationClass/a.png cannot be read: No such file or directory"


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = WRITERS["voc"](tmp_path, {"a": PICTURES["a"]})
    whole = (folder / "JPEGImages/a.jpg").read_bytes()
    (folder / "JPEGImages/a.jpg").write_bytes(whole[: len(whole) // 2])
    assert broken(folder).startswith("JPEGImages/a.jpg cannot be read: ")
    (folder / "JPEGImages/a.jpg").write_bytes(whole)
    (folder / "SegmentationClass/a.png").write_bytes(b"not a picture")
    assert broken(folder).startswith("SegmentationClass/a.png cannot be read: not a picture")


def test_label_maps_with_colours_or_unknown_numbers_are_refused(tmp_path: Path) -> None:
    folder = WRITERS["voc"](tmp_path, {"a": PICTURES["a"]})
    put(folder, "SegmentationClass/a.png", np.zeros((24, 32, 3), np.uint8))
    assert "SegmentationClass/a.png has colours instead of one number of each pixel" in broken(folder)
    put(folder, "SegmentationClass/a.png", np.full((24, 32), 21, np.uint8))
    assert broken(folder) == "SegmentationClass/a.png has the number 21, which is no class: there are 20"


def test_the_classes_of_imagenet_need_their_numbers_and_names(tmp_path: Path) -> None:
    folder = WRITERS["imagenet"](tmp_path, {"a": PICTURES["a"]})
    (folder / "LOC_synset_mapping.txt").write_text("n01 cat\nn02 dog\n")
    assert broken(folder) == "the names of the classes are not known, such as n03: put LOC_synset_mapping.txt beside"
    (folder / "ImageNetS_categories_im50.txt").unlink()
    assert "has 1 classes, not 50, 300 or 919, so their numbers are not known" in broken(folder)


def test_what_is_no_list_of_instances_is_refused(tmp_path: Path) -> None:
    folder = WRITERS["coco"](tmp_path / "coco", {"a": PICTURES["a"]})
    file = folder / "annotations/instances_val2017.json"
    whole = json.loads(file.read_text())
    segmentations = {
        "[[1, 2]]": "a polygon has pairs of x and y, three or more, not 2 numbers",
        "[[1, 2, 3, 4, NaN, 6]]": "a polygon has a corner that is no number",
        '{"size": [24, 31], "counts": [744]}': "its run lengths are of 31×24 pixels, not of 32×24",
        '{"size": [24, 32], "counts": [5, 6]}': "its run lengths do not add up to 32×24 pixels",
        '{"size": [24, 32], "counts": [-8, 776]}': "its run lengths do not add up to 32×24 pixels",
        '{"size": [24, 32], "counts": "a b"}': "its run lengths have the character ' ', which means nothing",
        '{"size": [24, 32], "counts": "P"}': "its run lengths end within a number",
        "7": "'int' object is not iterable",
    }
    for text, message in segmentations.items():
        whole["annotations"][0]["segmentation"] = json.loads(text)
        file.write_text(json.dumps(whole))
        assert broken(folder) == f"a mask of a.jpg is wrong: {message}"
    name = whole["images"][0]["file_name"]
    whole["images"][0]["file_name"] = "../" + name
    shutil.copy(folder / "val2017" / name, folder / name)
    file.write_text(json.dumps(whole))
    assert broken(folder) == "../a.jpg is missing: instances_val2017.json has its instances"
    for content in ("{", "[]", "{}", '{"categories": [{}]}', '{"categories": [], "images": 3, "annotations": []}'):
        file.write_text(content)
        assert broken(folder).startswith("instances_val2017.json is not a file of COCO's instances: ")
    file.write_text('{"categories": [], "images": [], "annotations": []}')
    assert broken(folder).endswith("has no picture with masks")


def test_a_phrase_that_is_no_word_of_the_caption_is_refused(tmp_path: Path) -> None:
    write_own(tmp_path, {"a": drawn(0, ["og"])}, {"a": "a dog"})
    assert broken(tmp_path) == "a.png has a mask of 'og', which is no word of its caption"


def test_nothing_in_a_set_is_changed(tmp_path: Path) -> None:
    for layout, write in WRITERS.items():
        folder = write(tmp_path / layout, PICTURES)
        before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for file in read_masked(folder):
            file.load()
        assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_pictures_are_turned_as_their_exif_says_only_if_their_masks_are(tmp_path: Path) -> None:
    write_voc(tmp_path, {"a": PICTURES["a"]}, VOC)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURES["a"][0]).save(tmp_path / "JPEGImages/a.jpg", exif=exif)
    assert broken(tmp_path) == "the mask of a.png has 32×24 pixels, its picture 24×32: they must be equal"
