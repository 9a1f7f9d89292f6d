"""Output-space maps: how similar the attention output of a position is to that of each token.

Shapes: B rows of the batch, I images, H heads, L queries, N positions, T tokens, S keys, G columns, D width.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from families_of_pipelines import all_of, explicit_softmax, for_each_head, outputs_of
from tiny_pipelines import FAMILIES, pipeline
from torch import Tensor

from pipelines import TextToImagePipeline, attribute, trace
from pipelines.tracing.kernels import Kernel
from pipelines.tracing.watch import watched
from unet_xattn import AttentionTrace
from unet_xattn.trace_recorder import similarity
from unet_xattn.words import OTHER

PROMPT = "a red circle, left of a blue square"
CLOSE = {"rtol": 1e-3, "atol": 2e-5}


def own_of(attention: AttentionTrace) -> list[int]:
    """The tokens of the prompt that are text."""
    return attention.recording.texts["prompt"][0].own


# The formula


def test_a_position_is_similar_to_the_tokens_whose_outputs_point_its_way() -> None:
    out = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])  # two positions
    tokens = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    found = similarity(out, tokens, [[1, 2]])  # the first and the last are no text
    e = torch.e
    expected = [[0, 0], [e**2 / (e**2 + 1), 1 / (1 + e**3)], [1 / (e**2 + 1), e**3 / (1 + e**3)], [0, 0]]
    torch.testing.assert_close(found, torch.tensor([expected]))
    assert (similarity(out, tokens, [[]]) == 0).all()


# Our pipeline


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_our_layers_are_compared_as_the_formula_says(tiny_pipe: TextToImagePipeline, guidance: float) -> None:
    def draw() -> Any:
        return tiny_pipe(
            [PROMPT, "a star"],
            num_inference_steps=2,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images

    with trace(tiny_pipe, output=True) as attention:
        pictures, pairs = outputs_of(tiny_pipe, draw)
    with trace(tiny_pipe):
        assert torch.equal(pictures, draw())
    for image, prompt in enumerate((PROMPT, "a star")):
        own = attention.recording.texts["prompt"][image].own
        assert len(own) == len(tiny_pipe.tokenizer(prompt)["input_ids"]) - 2
        for layer, grid in attention.recording.grids.items():
            each = []
            for out, values in pairs[layer]:
                row = len(out) - 2 + image  # after the negative prompts, if there are any
                each.append((values[row, own] @ out[row].T).softmax(dim=0))
            expected = torch.stack(each).mean(dim=0).unflatten(1, grid)
            found = attention.maps(layer, image=image, reduce="output")
            torch.testing.assert_close(found[own], expected, **CLOSE)
            assert found.sum(dim=0).sub(1).abs().max() < 1e-5
    if guidance != 1:
        assert (attention.maps(layer, branch="negative", reduce="output") == 0).all()  # it has no text
    layers = torch.stack([attention.heatmap("red circle", layer=layer, reduce="output") for layer in attention.layers])
    heat = attention.heatmap("red circle", reduce="output")
    torch.testing.assert_close(heat, layers.mean(dim=0))
    torch.testing.assert_close(attention.heatmap("red circle", reduce="output", of="text"), heat)
    assert 0 < attention.heatmap("red circle", reduce="output", of="words").max() < heat.max()


def test_a_picture_is_read_in_output_space_too(tiny_pipe: TextToImagePipeline) -> None:
    with trace(tiny_pipe) as attention:
        picture = tiny_pipe(PROMPT, num_inference_steps=1).images[0]
    assert not attention.output
    read = {output: attribute(tiny_pipe, picture, PROMPT, draws=2, output=output) for output in (False, True)}
    assert torch.equal(read[True].heatmap("red"), read[False].heatmap("red"))
    heat = read[True].heatmap("red", reduce="output")
    assert heat.std() > 0 and read[True].mask("red", reduce="output").any()
    assert not torch.allclose(heat, read[True].heatmap("red"))


# Any pipeline


class Explicit:
    """The maps of each layer's passes, from an explicit softmax of its first row, in float64."""

    def __init__(self, is_joint: bool):
        self.is_joint = is_joint
        self.maps: dict[str, list[Tensor]] = defaultdict(list)

    def __call__(
        self, layer: str, kernel: Kernel, groups: Tensor, shares: Tensor, queries: Mapping[int, slice]
    ) -> None:
        weights = explicit_softmax(kernel.q, kernel.k, **kernel.how)[0]  # (H, L, S)
        values = for_each_head(kernel.v.double(), len(weights))[0]  # (H, S, E)
        out, values = (x.transpose(0, 1).flatten(1) for x in (weights @ values, values))  # (L, D), (S, D)
        keys = groups[0, 0].argmax(dim=0)[:-2]  # of each token; padding and picture follow
        tokens = (out if self.is_joint else values)[keys]
        self.maps[layer].append(tokens @ out[queries[0]].T)  # (T, N)


OFF = {"sd": {"guidance_scale": 1.0}, "prx": {"guidance_scale": 1.0}, "sd3": {"guidance_scale": 1.0}}
OFF |= {"lumina": {"guidance_scale": 1.0}, "z_image": {"guidance_scale": 0.0}, "flux": {}}
OFF |= {"ernie": {"guidance_scale": 1.0}, "lumina2": {"guidance_scale": 1.0}}


@pytest.mark.parametrize("name", OFF)
def test_layers_of_any_pipeline_are_compared_as_the_formula_says(name: str) -> None:
    """Of text as the only keys, as added keys, in two streams and in one; with fewer heads of keys in Lumina."""
    pipe, attention = pipeline(name), AttentionTrace(output=True)
    explicit = Explicit(FAMILIES[name].kind not in ("cross", "added"))
    plain = all_of(name).draw(pipe, PROMPT, **OFF[name])
    with watched(pipe, attention, explicit):
        pictures = all_of(name).draw(pipe, PROMPT, **OFF[name])
    assert (pictures == plain).all()
    own = own_of(attention)
    for layer, grid in attention.recording.grids.items():
        expected = torch.stack([products[own].softmax(dim=0) for products in explicit.maps[layer]]).mean(dim=0)
        found = attention.maps(layer, reduce="output")
        torch.testing.assert_close(found[own], expected.float().unflatten(1, grid), **CLOSE)
        assert found.sum(dim=0).sub(1).abs().max() < 1e-5
    assert attention.heatmap("circle", reduce="output").std() > 0


def test_a_family_whose_outputs_are_not_seen_is_refused() -> None:
    with (
        pytest.raises(ValueError, match=r"^layer down_blocks.0\S+ gives its output in a way that cannot be seen: use"),
        trace(pipeline("sd_explicit"), output=True),
    ):
        all_of("sd_explicit").draw(pipeline("sd_explicit"), PROMPT)


def test_chosen_words_steps_and_files_have_output_maps_as_well(tmp_path: Path) -> None:
    pipe = pipeline("sd3")
    with trace(pipe, "step", output=True) as whole:
        all_of("sd3").draw(pipe, PROMPT)
    with trace(pipe, "full", words=["circle"], output=True) as chosen:
        all_of("sd3").draw(pipe, PROMPT)
    for step in (None, 0, 1):
        heat = whole.heatmap("circle", step=step, reduce="output")
        torch.testing.assert_close(chosen.heatmap("circle", step=step, reduce="output"), heat)
    assert (heat - whole.heatmap("circle", step=0, reduce="output")).abs().max() > 1e-3
    torch.testing.assert_close(chosen.heatmap(OTHER, step=1, reduce="output"), (1 - heat).clamp_min(0))
    whole.save(tmp_path / "trace.safetensors")
    loaded = AttentionTrace.load(tmp_path / "trace.safetensors")
    assert loaded.output and loaded.recording == whole.recording
    torch.testing.assert_close(loaded.heatmap("circle", step=1, reduce="output"), heat, rtol=0, atol=2**-10)
    torch.testing.assert_close(loaded.heatmap("circle"), whole.heatmap("circle"), rtol=0, atol=2**-10)


def test_what_has_no_output_maps_says_so(tiny_pipe: TextToImagePipeline) -> None:
    with trace(tiny_pipe, "head") as attention:
        tiny_pipe(PROMPT, num_inference_steps=1)
    with pytest.raises(ValueError, match="no output-space maps were recorded: trace with output=True"):
        attention.heatmap("red", reduce="output")
    with trace(tiny_pipe, "head", output=True) as attention:
        tiny_pipe(PROMPT, num_inference_steps=1)
    with pytest.raises(ValueError, match="output-space maps are of all heads together: leave out the head"):
        attention.heatmap("red", reduce="output", head=0)
    with pytest.raises(ValueError, match="reduce is 'mean', 'calibrated' or 'output', not 'values'"):
        attention.heatmap("red", reduce="values")


@pytest.mark.parametrize(("keep", "times"), [("step", 2), ("full", 1.5)])
def test_output_maps_count_in_the_budget(tiny_pipe: TextToImagePipeline, keep: str, times: float) -> None:
    """Shares are as large for each of two heads, if these are kept apart."""

    def size(output: bool) -> int:
        with trace(tiny_pipe, keep, output=output) as attention:
            tiny_pipe(PROMPT, num_inference_steps=2, guidance_scale=1.0)
        return 4 * sum(total.numel() for sums in (attention._sums, attention._similar) for total in sums.values())

    both = size(True)
    assert both == times * size(False)
    with trace(tiny_pipe, keep, budget=both, output=True) as attention:
        tiny_pipe(PROMPT, num_inference_steps=2, guidance_scale=1.0)
    assert attention.heatmap("red", reduce="output").max() > 0
    with trace(tiny_pipe, keep, budget=both - 1, output=True), pytest.raises(ValueError, match="would take"):
        tiny_pipe(PROMPT, num_inference_steps=2, guidance_scale=1.0)


def test_a_larger_recording_of_any_pipeline_is_refused_with_its_output_maps() -> None:
    pipe = pipeline("sd")
    with trace(pipe, "step", output=True) as attention:
        all_of("sd").draw(pipe, PROMPT)
    size = 4 * sum(total.numel() for sums in (attention._sums, attention._similar) for total in sums.values())
    with trace(pipe, "step", budget=size, output=True):
        all_of("sd").draw(pipe, PROMPT)
    with trace(pipe, "step", budget=size - 1, output=True), pytest.raises(ValueError, match="would take"):
        all_of("sd").draw(pipe, PROMPT)
