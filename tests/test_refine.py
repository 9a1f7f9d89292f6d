"""Maps spread along the edges of a picture, and the masks made of them."""

import pytest
import torch
from PIL import Image
from torch import Tensor

from pipelines import TextToImagePipeline, attribute
from pipelines.evaluation.grounding import fixed_scenes
from pipelines.scenes.shapes import coverage
from pipelines.scenes.worlds import WORLDS
from unet_xattn import AttentionTrace
from unet_xattn.refine import refine


def disc(side: int, centre: tuple[float, float], radius: float) -> Tensor:
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    return (y - centre[0] * side) ** 2 + (x - centre[1] * side) ** 2 <= (radius * side) ** 2


def coarse(mask: Tensor, cells: int) -> Tensor:
    """A mask as a map of few cells would have it, enlarged."""
    side = len(mask)
    small = torch.nn.functional.avg_pool2d(mask[None, None].float(), side // cells)
    return torch.nn.functional.interpolate(small, (side, side), mode="bilinear")[0, 0]


def overlap(heat: Tensor, mask: Tensor) -> float:
    inside = heat >= heat.max() / 2
    return float((inside & mask).sum() / (inside | mask).sum())


@pytest.mark.parametrize("side", [64, 96, 256])
def test_a_coarse_map_gets_the_outline_of_the_thing_under_it(side: int) -> None:
    mask = disc(side, (0.4, 0.55), 0.21)
    picture = torch.where(mask[..., None], torch.tensor([0.8, 0.2, 0.1]), torch.tensor([0.9, 0.9, 0.8]))
    picture = (picture + 0.03 * torch.randn(side, side, 3)).clamp(0, 1)
    heat = coarse(mask, 8)
    found = refine(heat[None], picture, side / 8)[0]
    assert overlap(heat, mask) < 0.95 < 0.98 < overlap(found, mask)


@pytest.mark.parametrize("contrast", [1.0, 0.15])
def test_the_mixed_pixels_of_an_outline_go_to_their_side(contrast: float) -> None:
    covered = torch.from_numpy(coverage("cross", 30.3, 34.6, 8.3, 64, 64))
    picture = 0.5 + contrast * (covered[..., None] - 0.5) * torch.tensor([1.0, -0.6, 0.2])
    found = refine(coarse(covered >= 0.5, 16)[None], picture, 4.0)[0]
    assert overlap(found, covered >= 0.5) > 0.98


def test_a_pixel_of_a_colour_of_its_own_takes_the_value_of_those_around_it() -> None:
    heat, picture = disc(64, (0.5, 0.5), 0.3).float(), torch.full((64, 64, 3), 0.5)
    heat[32, 32], picture[32, 32] = 0.0, torch.tensor([1.0, 0.0, 0.0])
    assert refine(heat[None], picture, 4.0)[0, 32, 32] > 0.7


def test_two_things_of_one_colour_do_not_share_a_map() -> None:
    left, right = disc(64, (0.5, 0.25), 0.15), disc(64, (0.5, 0.75), 0.15)
    picture = torch.where((left | right)[..., None], torch.tensor([0.1, 0.2, 0.9]), torch.ones(3))
    found = refine(coarse(left, 16)[None], picture, 4.0)[0]
    assert overlap(found, left) > 0.95 and found[right].max() < 0.05


def test_a_flat_picture_leaves_a_map_where_it_is_and_ranges_are_kept() -> None:
    heat = coarse(disc(64, (0.3, 0.6), 0.2), 16)
    found = refine(torch.stack([heat, torch.ones_like(heat)]), torch.full((64, 64, 3), 0.5), 4.0)
    assert overlap(found[0], heat >= 0.5) > 0.8
    assert found.min() >= 0 and found.max() <= 1 + 1e-6
    torch.testing.assert_close(found[1], torch.ones_like(heat))


def test_maps_are_refined_each_by_itself() -> None:
    picture, maps = torch.rand(40, 56, 3), torch.rand(3, 40, 56)
    together = refine(maps, picture, 5.0)
    torch.testing.assert_close(together, torch.cat([refine(one[None], picture, 5.0) for one in maps]))


@pytest.fixture(scope="module")
def seen() -> tuple[AttentionTrace, dict[str, Tensor]]:
    """The attention of the bundled model on a render, and the exact masks of its things by their shape words."""
    pipe = TextToImagePipeline.from_pretrained("shapes")
    scenes = fixed_scenes(20, held_out=False, data="shapes")
    scene = next(s for s in scenes if any(w.kind == "shape" and len(w.objects) == 1 for w in s.words))
    picture, masks = WORLDS["shapes"].render(scene, 64)
    attention = attribute(pipe, Image.fromarray(picture), scene.caption, keep="head", draws=2)
    exact = {
        scene.caption[w.start : w.end]: torch.from_numpy(masks[w.objects[0]] >= 0.5)
        for w in scene.words
        if w.kind == "shape" and len(w.objects) == 1
    }
    return attention, exact


def test_the_mask_of_a_word_is_the_outline_of_its_thing(seen: tuple[AttentionTrace, dict[str, Tensor]]) -> None:
    attention, exact = seen
    assert exact
    for word, mask in exact.items():
        found = attention.mask(word)
        assert found.dtype == torch.bool and found.shape == attention.size
        assert float((found & mask).sum() / (found | mask).sum()) > 0.9


def test_masks_of_all_words_do_not_overlap_and_lie_in_their_own(
    seen: tuple[AttentionTrace, dict[str, Tensor]],
) -> None:
    attention, _ = seen
    labels = attention.masks()
    assert labels.shape == attention.size and labels.min() >= -1 and labels.max() < len(attention.words)
    for i, word in enumerate(attention.words):
        assert (attention.mask(word) | (labels != i)).all()


def test_the_choice_of_refinement_is_checked(seen: tuple[AttentionTrace, dict[str, Tensor]]) -> None:
    attention, exact = seen
    with pytest.raises(ValueError, match="refine is 'none' or 'edges', not 'sharp'"):
        attention.heatmap(next(iter(exact)), refine="sharp")
