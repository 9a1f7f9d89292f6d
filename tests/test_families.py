"""Where denoisers have text and picture: grids, the order of text and picture among the keys, and what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import FAMILIES, PICTURE, VARIANTS, pipeline
from torch import Tensor, nn

from pipelines.tracing.families import LAYOUTS, Given, _attended, _onward, level, read_arguments
from pipelines.tracing.kernels import Watch

README = Path(__file__).parents[1] / "pipelines/tracing/README.md"
TWO = ["a red circle left of a blue square", "a cat and a dog"]
KINDS = {"joint", "single", "joint and single"}
JOINT = [name for name, family in FAMILIES.items() if family.kind in KINDS and name != "hidream"]


def denoiser_of(name: str) -> nn.Module:
    """The denoiser of a family, if this version of diffusers has it."""
    if name not in FAMILIES:
        pytest.skip(f"this version of diffusers has no {name}")
    pipe = pipeline(name)
    return pipe.transformer if "transformer" in pipe.components else pipe.unet


def first_pass(name: str, prompt: str | list[str] | None = None, **changes: Any) -> tuple[Given, list[tuple[int, int]]]:
    """What the denoiser of a family is given in its first pass, and L and S of each kernel that runs in it."""
    given: list[Given] = []
    kernels: list[tuple[int, int]] = []
    ended: list[Any] = []

    def before(denoiser: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given.append(read_arguments(denoiser, args, kwargs))

    network = denoiser_of(name)
    hooks = [
        network.register_forward_pre_hook(before, with_kwargs=True),
        network.register_forward_hook(lambda *_: ended.append(name)),
    ]
    try:
        with Watch(lambda kernel: kernels.append(kernel.shape[1:]) if given and not ended else None, lambda out: None):
            FAMILIES[name].draw(pipeline(name), prompt or FAMILIES[name].prompts[0], num_inference_steps=1, **changes)
    finally:
        for hook in hooks:
            hook.remove()
    return given[0], kernels


# Grids


@pytest.mark.parametrize("size", [(64, 96), (9, 13), (1, 7), (33, 32), (60, 104)])
def test_level_finds_the_grid_of_any_layer_of_a_unet_or_of_patches(size: tuple[int, int]) -> None:
    height, width = size
    for halved in range(5):  # a convolution with stride 2 rounds up
        grid = -(-height // 2**halved), -(-width // 2**halved)
        assert level(size, grid[0] * grid[1]) == grid
    for patch in (1, 2, 4):  # patches that do not fit are left out
        grid = height // patch, width // patch
        assert 0 in grid or level(size, grid[0] * grid[1]) == grid


def test_level_is_none_for_a_count_that_no_layer_has() -> None:
    assert level((16, 24), 16 * 24 + 1) is None
    assert level((16, 24), 77) is None


@pytest.mark.parametrize(
    ("name", "changes", "positions"),
    [
        ("flux", {}, 8 * 12),
        ("flux_kontext", {}, 2 * 8 * 12),
        ("flux2_klein", {"image": PICTURE}, 2 * 8 * 12),
        ("flux2_klein", {"image": [PICTURE, PICTURE.resize((128, 96))]}, 2 * 8 * 12 + 12 * 16),
        ("longcat", {}, 8 * 12),
        ("krea2", {}, 8 * 12),
        ("qwenimage", {}, 8 * 12),
    ],
)
def test_the_grid_is_that_of_the_picture_that_is_drawn(name: str, changes: dict[str, Any], positions: int) -> None:
    given, kernels = first_pass(name, **changes)
    assert (given.size, given.positions) == ((8, 12), positions)
    text = max(given.lengths)
    length, keys = kernels[-1]
    place = given.locate(length, keys, handed=True)
    assert place is not None and place.grid == (8, 12)
    assert place.queries[0] == text and length == text + positions  # pictures to look at follow the one that is drawn
    assert given.locate(length, length + positions, handed=True) is None  # with a cache of other keys


def test_positions_of_the_text_are_no_part_of_the_grid() -> None:
    picture = torch.cartesian_prod(torch.zeros(1), torch.arange(8.0), torch.arange(12.0))
    ids = torch.cat([torch.tensor([[0.0, 50.0, 50.0]] * 20), picture])
    texts = {"encoder_hidden_states": torch.zeros(1, 20, 2, 32), "position_ids": ids, "timestep": 1.0}
    assert read_arguments(denoiser_of("krea2"), (torch.zeros(1, 96, 16),), texts).size == (8, 12)


def test_the_first_of_several_shapes_is_the_picture_that_is_drawn() -> None:
    text, pictures = torch.zeros(2, 20, 16), torch.zeros(2, 8 * 12 + 6 * 10, 16)
    shapes = [[(1, 8, 12), (1, 6, 10)]] * 2  # as for editing pictures
    for given_shapes in (shapes, [(1, 8, 12)] * 2):
        given = read_arguments(
            denoiser_of("qwenimage"),
            (),
            {"hidden_states": pictures, "encoder_hidden_states": text, "timestep": 1.0, "img_shapes": given_shapes},
        )
        assert given.size == (8, 12)
    place = given.locate(20 + 8 * 12 + 6 * 10, 20 + 8 * 12 + 6 * 10, handed=True)
    assert place is not None and (place.queries, place.keys) == ((20, 20), (0, 0))


# The order of text and picture


@pytest.mark.parametrize("name", JOINT)
def test_text_and_picture_fill_the_sequence(name: str) -> None:
    given, kernels = first_pass(name)
    assert given.is_joint
    places = {(length, given.locate(length, keys, handed=True)) for length, keys in kernels}
    ((length, place),) = [(length, place) for length, place in places if place is not None]
    text, picture = max(given.lengths), given.positions or place.grid[0] * place.grid[1]
    if given.layout.order == "text first":
        assert place.keys[0] + text == place.queries[0] and place.queries[0] + picture == length
        assert place.keys[0] == (8 if name == "auraflow" else 0)  # its registers
    else:
        assert place.queries[0] == 0 and place.keys[0] >= picture and place.keys[0] + text == length
    assert place.grid == (8, 12)


@pytest.mark.parametrize(
    ("name", "others"), [("sd3_dual", 96), ("z_image", 32), ("lumina2", 256), ("hunyuanimage", 1000)]
)
def test_layers_that_read_only_the_picture_or_only_the_text_have_no_place(name: str, others: int) -> None:
    given, kernels = first_pass(name)
    assert others in {length for length, _ in kernels}  # SD3's second attention and what refines text
    assert given.locate(others, others, handed=True) is None


def test_unlike_prompts_of_lumina_2_have_their_pictures_at_unlike_places() -> None:
    given, kernels = first_pass("lumina2", list(TWO))
    place = given.locate(*kernels[-1], handed=False)
    assert place is not None and place.queries == tuple(given.lengths) and place.keys == (0, 0)
    assert given.lengths[0] > given.lengths[1] and kernels[-1][0] == given.lengths[0] + 8 * 12


def test_the_padding_of_z_image_belongs_to_its_text() -> None:
    """Both are padded to a multiple of 32 with tokens that are read."""
    given, kernels = first_pass("z_image", list(TWO), height=80, width=72)
    assert given.lengths == [32] * 4 and {sum(map(len, parts)) for parts in given.texts} != {32}
    place = given.locate(*kernels[-1], handed=False)
    assert place is not None and place.grid == (10, 9) and set(place.keys) == {96} and kernels[-1][0] == 96 + 32


def test_the_text_of_hunyuanimage_is_in_the_order_in_which_its_blocks_get_it() -> None:
    transformer, found = denoiser_of("hunyuanimage"), []
    hook = transformer.transformer_blocks[0].register_forward_pre_hook(lambda module, args: found.append(args[1]))
    try:
        given, _ = first_pass("hunyuanimage", 'a red "circle" left of a blue square')
    finally:
        hook.remove()
    letters = given.texts[0][0]  # the real tokens of ByT5, before those of Qwen and before the padding of both
    assert [part.shape[-1] for part in given.texts[0]] == [32, 16, 32, 16]
    assert len(letters) == len('Text "circle". ') + 1 and sum(given.lengths) == 128 + 1000
    with torch.no_grad():
        torch.testing.assert_close(transformer.context_embedder_2(letters), found[0][0, : len(letters)])


def test_several_states_of_a_token_are_side_by_side() -> None:
    given, _ = first_pass("krea2")
    assert [part.shape for part in given.texts[0]] == [(512, 2 * 32)]


def test_one_text_may_serve_all_rows() -> None:
    text, pictures = torch.randn(1, 20, 32), torch.zeros(2, 96, 16)
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(8.0), torch.arange(12.0))
    arguments = {"hidden_states": pictures, "encoder_hidden_states": text, "timestep": 1.0, "img_ids": ids}
    given = read_arguments(denoiser_of("flux"), (), arguments)
    assert given.lengths == [20, 20] and all(torch.equal(parts[0], text[0]) for parts in given.texts)


def test_a_text_is_known_by_tensors_that_stay() -> None:
    def given() -> Given:
        """What HunyuanImage, whose parts of a text are copies, is given: with new tensors in each pass."""
        texts = {"encoder_hidden_states_2": torch.zeros(1, 5, 32), "encoder_hidden_states": torch.zeros(1, 9, 16)}
        masks = {"encoder_attention_mask_2": torch.ones(1, 5), "encoder_attention_mask": torch.ones(1, 9)}
        return read_arguments(denoiser_of("hunyuanimage"), (torch.zeros(1, 4, 8, 12), 1.0), texts | masks)

    passes = [given() for _ in range(4)]
    assert len({one.source for one in passes}) == len(passes)


# Cross-attention


@pytest.mark.parametrize(
    ("queries", "keys", "handed", "grid"),
    [
        (16 * 24, 77, True, (16, 24)),
        (4 * 6, 77, True, (4, 6)),
        (4 * 6, 77, False, None),  # its own keys happen to be as many
        (16 * 24, 16 * 24, True, None),  # self-attention
        (16 * 24, 4, True, None),  # a picture prompt of IP-Adapter
        (1, 77, True, None),  # a pooled text
    ],
)
def test_cross_attention_is_told_by_its_lengths(queries: int, keys: int, handed: bool, grid: tuple[int, int]) -> None:
    given = read_arguments(denoiser_of("sd"), (torch.zeros(2, 4, 16, 24), 1, torch.zeros(2, 77, 32)), {})
    place = given.locate(queries, keys, handed)
    assert (place and place.grid) == grid


# What is refused


def test_a_denoiser_without_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^UNet2DConditionModel was given no encoder_hidden_states, but sample: "):
        read_arguments(denoiser_of("kandinsky22"), (torch.zeros(1, 4, 8, 8), 1, None), {})


def test_an_unknown_denoiser_is_refused_with_the_names_of_what_it_got() -> None:
    assert "HiDreamImageTransformer2DModel" not in LAYOUTS
    with pytest.raises(ValueError, match=r"is not known, .* but hidden_states, timesteps, encoder_hidden_states_t5, "):
        first_pass("hidream")


def test_several_pictures_in_a_row_are_refused() -> None:
    latents, text = torch.zeros(4, 1, 16, 24), torch.zeros(9, 32)
    rows: tuple[list[list[Tensor]], Tensor, list[list[Tensor]]] = [[latents, latents]], torch.ones(1), [[text, text]]
    with pytest.raises(ValueError, match=r"^ZImageTransformer2DModel was given several pictures or texts a row"):
        read_arguments(denoiser_of("z_image"), rows, {})


def test_the_readme_lists_every_pipeline_that_is_tried() -> None:
    listed = re.findall(r"^\| (\w+): `", README.read_text(), re.M)
    assert {*FAMILIES, *VARIANTS} <= set(listed)


@pytest.mark.parametrize("leading", [(), (2,)])
def test_positions_of_a_longer_text_go_on_as_they_did(leading: tuple[int, ...]) -> None:
    """In Flux all positions of a text are 0, in others the last coordinate counts."""
    zeros, counted = torch.zeros(*leading, 4, 3), torch.zeros(*leading, 4, 3)
    counted[..., 2] = torch.arange(4)
    assert (_onward(zeros, 4, 2) == 0).all() and _onward(zeros, 4, 2).shape == (*leading, 6, 3)
    assert (_onward(counted, 4, 2)[..., 2] == torch.arange(6)).all() and (_onward(counted, 4, 2)[..., :2] == 0).all()


def test_a_mask_of_a_longer_text_is_real_after_the_text() -> None:
    mask = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 0, 1, 1]])  # three tokens of text, two of a picture
    assert _attended(mask, 3, 2).tolist() == [[1, 1, 0, 1, 1, 1, 1], [1, 0, 0, 1, 1, 1, 1]]
    assert _attended(mask.bool(), 5, 1).dtype == torch.bool
