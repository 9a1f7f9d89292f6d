"""The ways to make a map that the evaluation compares."""

import pytest
import torch
from torch.nn import functional as F

from pipelines import TextToImagePipeline
from pipelines.evaluation.grounding import read
from pipelines.evaluation.maps import METHODS, Reading, maps_of, recording_self
from pipelines.scenes.shapes import scene
from unet_xattn.refine import refine


def test_each_method_makes_the_map_that_it_names(tiny_pipe: TextToImagePipeline) -> None:
    even = {layer: [0.5 / len(tiny_pipe.unet.attention_layers)] * 2 for layer in tiny_pipe.unet.attention_layers}
    pipe = TextToImagePipeline(**tiny_pipe.components, calibration=even)
    reading, ((_, word, _), *_) = read(pipe, scene(0, 1))
    attention, maps = reading.attention, maps_of(reading, word)
    assert list(maps) == list(METHODS) and all(heat.shape == attention.size for heat in maps.values())
    assert torch.equal(maps["calibrated"], attention.heatmap(word, reduce="calibrated"))
    assert torch.equal(maps["mean, refined"], attention.heatmap(word, refine="edges"))
    assert torch.equal(maps["contrast"], attention.heatmap(word, of="words"))
    assert torch.equal(maps["output, refined"], attention.heatmap(word, reduce="output", refine="edges"))
    assert set(reading.self_attention) == {"down.1.0", "mid", "up.0.0"}
    on_grid = F.interpolate(maps["calibrated"][None, None], (4, 4), mode="area").flatten()
    spread = (reading.self_attention["up.0.0"] @ on_grid).view(1, 1, 4, 4)
    torch.testing.assert_close(maps["self-attention"], F.interpolate(spread, (32, 32), mode="bilinear")[0, 0])
    refined = refine(maps["self-attention"][None], attention.pictures[0].float() / 255, 8.0)[0]
    torch.testing.assert_close(maps["self-attention, refined"], refined)


def test_methods_that_lack_what_they_need_are_left_out(tiny_pipe: TextToImagePipeline) -> None:
    reading, ((_, word, _), *_) = read(tiny_pipe, scene(0, 1))
    assert set(maps_of(Reading(reading.attention), word)) == {n for n, method in METHODS.items() if not method.needs}
    assert set(maps_of(reading, word, ["mean", "calibrated", "self-attention"])) == {"mean", "self-attention"}


def test_recording_self_attention_changes_no_picture_and_leaves_nothing_behind(tiny_pipe: TextToImagePipeline) -> None:
    def draw() -> torch.Tensor:
        return tiny_pipe(
            ["a red circle", "a blue square"],
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images

    before = draw()
    with recording_self(tiny_pipe.unet) as found:
        recorded = draw()
    kept = {layer: weights.clone() for layer, weights in found.items()}
    torch.testing.assert_close(recorded, before, atol=1e-5, rtol=0)
    assert torch.equal(draw(), before)
    for layer, weights in kept.items():
        assert torch.equal(found[layer], weights)
        assert weights.shape == (16, 16)
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(16))
        assert weights.std() > 0


def test_a_failed_pass_takes_the_hook_off(tiny_pipe: TextToImagePipeline) -> None:
    with pytest.raises(ValueError, match="prompt"), recording_self(tiny_pipe.unet):
        tiny_pipe([])
    assert not tiny_pipe.unet._forward_pre_hooks
