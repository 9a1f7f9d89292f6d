"""Masks of words as files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from pipelines import TextToImagePipeline, trace
from pipelines.tracing.masks import run_lengths, write_masks
from unet_xattn.grounding import measure


def decoded(lengths: dict[str, list[int]]) -> np.ndarray:
    """The mask of COCO's run lengths, as their format is defined."""
    flat, inside = [], False
    for count in lengths["counts"]:
        flat += [inside] * count
        inside = not inside
    return np.array(flat).reshape(lengths["size"], order="F")


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_run_lengths_are_those_of_coco(mask: np.ndarray) -> None:
    found = run_lengths(mask)
    assert (decoded(found) == mask).all()
    assert sum(found["counts"]) == mask.size and all(count > 0 for count in found["counts"][1:])


def test_masks_are_written_in_three_forms_that_agree(tiny_pipe: TextToImagePipeline, tmp_path: Path) -> None:
    with trace(tiny_pipe, keep="head") as attention:
        tiny_pipe("a red circle", num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    files = write_masks(attention, tmp_path)
    assert [file.name for file in files] == [
        *("mask-01-a.png", "mask-02-red.png", "mask-03-circle.png"),
        *("labels.png", "masks.json"),
    ]
    labels, told = np.asarray(Image.open(files[-2])), json.loads(files[-1].read_text(encoding="utf-8"))
    assert told["prompt"] == "a red circle" and "edges" in told["note"]
    for number, (word, file) in enumerate(zip(attention.words, files[:3], strict=True), 1):
        mask, entry = np.asarray(Image.open(file)) == 255, told["masks"][number - 1]
        assert (mask == attention.mask(word).numpy()).all()
        assert (decoded(entry["segmentation"]) == mask).all()
        assert (entry["word"], entry["area"]) == (word.text, mask.sum())
        assert not (labels == number)[~mask].any()


def test_a_trace_without_its_picture_has_no_masks(tiny_pipe: TextToImagePipeline, tmp_path: Path) -> None:
    with trace(tiny_pipe) as attention:
        tiny_pipe("a red circle", num_inference_steps=1)
    attention.pictures = None
    with pytest.raises(ValueError, match="holds no picture"):
        write_masks(attention, tmp_path)


def test_a_mask_is_half_of_the_peak_of_the_map_that_was_asked_for(tiny_pipe: TextToImagePipeline) -> None:
    with trace(tiny_pipe, keep="head") as attention:
        tiny_pipe(["a circle", "a red circle left of a square"], num_inference_steps=2, generator=None)
    asked = {"image": 1, "occurrence": 1, "layer": attention.layers[-1], "of": "words"}
    heat = attention.heatmap("a", refine="edges", reduce="mean", **asked)  # type: ignore[arg-type]
    mask = attention.mask("a", reduce="mean", **asked)  # type: ignore[arg-type]
    assert torch.equal(mask, heat >= heat.max() / 2)
    assert not torch.equal(mask, attention.mask("a", image=1, of="words")) and not mask.all()
    measured = attention.measure("a", **asked)  # type: ignore[arg-type]
    assert measured == measure(attention.heatmap("a", **asked))  # type: ignore[arg-type]


@pytest.mark.parametrize("least", [0.0, 0.02, 1.0])
def test_the_outline_of_a_concept_is_what_exceeds_its_own_lowest_tenth(
    tiny_pipe: TextToImagePipeline, least: float
) -> None:
    with trace(tiny_pipe, concepts=["blue square", "red"]) as attention:
        tiny_pipe("a circle", num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    above, outlines = [], []
    for name in attention.concepts:
        for refine in ("none", "edges"):
            heat = attention.heatmap(name, refine=refine)
            ordered = heat.flatten().sort().values
            exceeds = heat - ordered[len(ordered) // 10 - 1]
            outline = (exceeds >= exceeds.max() / 2) & (exceeds >= least)
            if refine == "edges":
                assert torch.equal(attention.mask(name, least=least), outline)
                assert outline.any() == (least < 1)
            else:
                above.append(exceeds)
                outlines.append(outline)
    largest = torch.stack(above).argmax(dim=0)
    expected = torch.where(torch.stack(outlines).gather(0, largest[None])[0], largest, -1)
    assert torch.equal(attention.segmentation(branch="concepts", least=least), expected)
    if least == 0:
        assert set(expected.unique().tolist()) == {-1, 0, 1}
