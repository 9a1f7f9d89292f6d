"""Edits of tiny random pipelines of diffusers: layers read what the edits say, and nothing stays behind."""

from typing import Any

import numpy as np
import pytest
import torch
from families_of_pipelines import state_of
from tiny_pipelines import FAMILIES, pipeline

from pipelines import TextToImagePipeline, edit, excite, paint, pin, refine, replace, reweight, trace, withhold
from pipelines.edits import Edit

PROMPT = "a red circle left of a blue square"
KINDS = ["sd", "sdxl", "pixart_alpha", "prx", "sd3", "flux", "qwenimage", "lumina2", "z_image"]
"""Cross-attention; with the picture beside the text; joint; single, text first and picture first; masks."""


def recorded(name: str, *edits: Edit, keep: str = "full") -> tuple[Any, np.ndarray]:
    pipe = pipeline(name)
    FAMILIES[name].draw(pipe, PROMPT)  # type: ignore[arg-type]  # transformers puts hooks of its own on at first
    before = state_of(pipe)
    with edit(pipe, *edits, keep=keep) if edits else trace(pipe, keep) as attention:
        picture = FAMILIES[name].draw(pipe, PROMPT)  # type: ignore[arg-type]
    assert state_of(pipe) == before
    return attention, picture


def first_layer(attention: Any) -> torch.Tensor:
    """What the first layer reads in the first step, before edits have changed what it is given: (H, T, h, w)."""
    layer = attention.layers[0]
    heads = range(attention.recording.heads[layer])
    return torch.stack([attention.maps(layer, step=0, head=head) for head in heads])


def tokens(attention: Any, word: str) -> list[int]:
    return list(next(w for w in attention.words if w.text == word).tokens)


@pytest.mark.parametrize("name", KINDS)
def test_weights_are_those_without_edits_times_the_weight_scaled_to_one(name: str) -> None:
    plain, picture = recorded(name)
    edited, changed = recorded(name, reweight("red", 3.0))
    expected = first_layer(plain)
    expected[:, tokens(plain, "red")] *= 3
    torch.testing.assert_close(first_layer(edited), expected / expected.sum(dim=1, keepdim=True), rtol=1e-3, atol=1e-5)
    assert not np.array_equal(picture, changed)


@pytest.mark.parametrize("name", KINDS)
def test_a_withheld_word_is_read_in_no_layer_and_no_step(name: str) -> None:
    edited, _ = recorded(name, withhold("red"), keep="mean")
    assert float(edited.heatmap("red").max()) == 0
    assert float(edited.heatmap("blue").max()) > 0


@pytest.mark.parametrize("name", ["sd", "flux", "z_image"])
def test_a_painted_word_is_read_in_its_region(name: str) -> None:
    pipe = pipeline(name)
    with trace(pipe) as attention:
        FAMILIES[name].draw(pipe, PROMPT)  # type: ignore[arg-type]
    height, width = attention.size
    edited, _ = recorded(name, paint("circle", (0, 0, width // 2, height)), keep="full")
    layer = edited.layers[0]
    shares = edited.maps(layer, step=0)[tokens(edited, "circle")].sum(dim=0)  # (h, w)
    half = shares.shape[1] // 2
    assert shares[:, :half].mean() > 5 * shares[:, half:].mean()
    mask = torch.zeros(height, width)
    mask[:, : width // 2] = 1
    pinned, _ = recorded(name, pin("circle", mask), keep="full")
    torch.testing.assert_close(pinned.maps(layer, step=0), edited.maps(layer, step=0))


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "qwenimage"])
def test_an_excited_word_is_read_more_after_the_first_step(name: str) -> None:
    plain, _ = recorded(name, reweight("circle", 1.0))
    excited, _ = recorded(name, excite("circle"))
    peaks = []
    for attention in (plain, excited):
        layers = [attention.maps(layer, step=1)[tokens(attention, "circle")].sum(dim=0) for layer in attention.layers]
        peaks.append(max(float(own.max()) for own in layers))
    torch.testing.assert_close(first_layer(excited), first_layer(plain))  # the first step is as it was
    assert peaks[1] > peaks[0]


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("z_image", {}, "ZImageTransformer2DModel cannot excite words: it is not given its latents as one tensor"),
        ("pixart_alpha", {}, "PixArtAlphaPipeline cannot excite words: it has no callback_on_step_end"),
        ("flux", {"callback_on_step_end": print}, "excite moves latents by callback_on_step_end: give no other"),
    ],
)
def test_what_cannot_be_excited_is_refused_and_nothing_stays(name: str, more: dict, message: str) -> None:
    pipe = pipeline(name)
    FAMILIES[name].draw(pipe, PROMPT)
    before = state_of(pipe)
    with pytest.raises(ValueError, match=f"^{message}") as raised, edit(pipe, excite("circle")):
        pipe(PROMPT, **{**FAMILIES[name].call, **more})  # type: ignore[operator]
    assert "\n" not in str(raised.value) and state_of(pipe) == before


def test_layers_that_read_no_text_cannot_excite() -> None:
    with pytest.raises(ValueError, match=r"^none of the layers and heads that excite names reads the text"):
        recorded("sd", excite("circle", layers=["*attn1"]))


def test_excite_needs_gradients() -> None:
    with torch.inference_mode(), pytest.raises(ValueError, match=r"^excite needs gradients: draw outside of torch"):
        recorded("sd", excite("circle"))


def test_noise_and_layers_limit_an_edit() -> None:
    plain, _ = recorded("sd")
    late, _ = recorded("sd", withhold("red", noise=(0.0, 0.6)))
    torch.testing.assert_close(first_layer(late), first_layer(plain))
    red, last = tokens(plain, "red"), plain.recording.steps - 1
    assert late.maps(late.layers[0], step=last)[red].max() == 0
    one, _ = recorded("sd", withhold("red", layers=[plain.layers[0]]))
    assert one.maps(plain.layers[0])[red].max() == 0 and one.maps(plain.layers[-1])[red].max() > 0


def test_the_negative_prompt_is_not_edited() -> None:
    plain, _ = recorded("sd")
    edited, _ = recorded("sd", withhold("red"))
    layer = plain.layers[0]
    torch.testing.assert_close(
        edited.maps(layer, step=0, branch="negative"), plain.maps(layer, step=0, branch="negative")
    )


@pytest.mark.parametrize("edits", [[replace("circle", "star")], [refine("a star")], [pin("circle")]])
def test_what_needs_a_first_picture_is_refused(edits: list[Edit]) -> None:
    with (
        pytest.raises(ValueError, match=r"^StableDiffusionPipeline draws a picture once, without .*: give it"),
        edit(pipeline("sd"), *edits),
    ):
        pass


def test_a_word_that_is_not_in_the_prompt_is_refused_and_nothing_stays() -> None:
    pipe = pipeline("sd")
    before = state_of(pipe)
    with (
        pytest.raises(ValueError, match=r"^'cat' is not in the prompt; its words are: a, red"),
        edit(pipe, withhold("cat")),
    ):
        FAMILIES["sd"].draw(pipe, PROMPT)  # type: ignore[arg-type]
    assert state_of(pipe) == before


def test_our_own_pipeline_is_edited_in_such_a_block_too(tiny_pipe: TextToImagePipeline) -> None:
    with edit(tiny_pipe, withhold("red")) as attention:
        edited = tiny_pipe(PROMPT, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    assert attention.heatmap("red").max() == 0 and len(edited.before) == len(edited.images) == 1
    assert not hasattr(tiny_pipe(PROMPT, num_inference_steps=1), "before")
