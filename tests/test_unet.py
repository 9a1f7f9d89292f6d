"""Shapes: B batch, C channels, h×w the grid of one level, T tokens, M width of the memory."""

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines import TextToImagePipeline
from pipelines.data.batches import Collator
from pipelines.data.scenes import SceneExamples
from pipelines.training.objective import TextToImageModel
from pipelines.training.validate import validate
from unet_xattn import CrossAttentionUNet, Transformer
from unet_xattn.unet import AttentionBlock, ResidualBlock, coordinates

MakeUNet = Callable[..., CrossAttentionUNet]
T, M = 7, 32


def inputs(height: int = 32, width: int = 32, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(batch, 3, height, width, generator=generator),
        "timestep": torch.tensor([100.0, 900.0, 500.0, 50.0])[:batch],
        "encoder_hidden_states": torch.randn(batch, T, M, generator=generator),
        "encoder_attention_mask": torch.arange(T) < torch.tensor([7, 4, 1, 2])[:batch, None],
    }


def gradients(unet: nn.Module, **kwargs: Tensor) -> dict[str, Tensor]:
    unet.zero_grad()
    unet(**kwargs).sample.square().sum().backward()
    return {name: p.grad.clone() for name, p in unet.named_parameters() if p.grad is not None}


# How it starts.


def test_it_starts_by_drawing_nothing(make_unet: MakeUNet) -> None:
    """An empty (grey) picture: all there is at noise level t is noise, and the velocity leads straight away from it."""
    kwargs = inputs()
    expected = kwargs["sample"] / (kwargs["timestep"] / 1000)[:, None, None, None]
    torch.testing.assert_close(make_unet(awake=False)(**kwargs).sample, expected)


def test_every_residual_branch_starts_as_the_identity(make_unet: MakeUNet) -> None:
    unet = make_unet(awake=False)
    time, memory = torch.randn(2, 64), torch.randn(2, T, M)
    blocks = [m for m in unet.modules() if isinstance(m, ResidualBlock | AttentionBlock)]
    assert len(blocks) == 10  # residual and attention of two blocks down, one in the middle, two up
    for block in blocks:
        if isinstance(block, ResidualBlock):
            x = torch.randn(2, block.conv1.in_channels, 4, 4)
            assert torch.equal(block(x, time), block.shortcut(x))
        else:
            x = torch.randn(2, block.norm2.normalized_shape[0], 4, 4)
            assert torch.equal(block(x, memory, None, None), x)


def test_it_can_leave_where_it_starts(make_unet: MakeUNet) -> None:
    unet = make_unet(awake=False)
    (unet(**inputs()).sample - 1).square().sum().backward()
    assert unet.conv_out.weight.grad is not None and unet.conv_out.weight.grad.abs().max() > 0


def test_every_parameter_learns(make_unet: MakeUNet) -> None:
    unet = make_unet()
    found = gradients(unet, **inputs())
    for name, _ in unet.named_parameters():
        assert found[name].isfinite().all(), name
        # One number added to all scores of a query leaves their softmax as it is, so a key's bias has no say.
        if not name.endswith("to_k.bias"):
            assert found[name].abs().max() > 0, name


# What goes in and comes out.


def test_the_call_is_diffusers_own() -> None:
    names = list(inspect.signature(CrossAttentionUNet.forward).parameters)
    assert names[:4] == ["self", "sample", "timestep", "encoder_hidden_states"]
    assert "encoder_attention_mask" in names and "return_dict" in names
    assert issubclass(CrossAttentionUNet, ModelMixin)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 8), (16, 40), (56, 24)])
def test_any_size_its_levels_allow_comes_out_as_it_went_in(make_unet: MakeUNet, height: int, width: int) -> None:
    kwargs = inputs(height, width)
    out = make_unet()(**kwargs).sample
    assert out.shape == kwargs["sample"].shape
    assert out.isfinite().all() and out.std() > 0


@pytest.mark.parametrize(("height", "width"), [(32, 36), (30, 32), (4, 8), (0, 8)])
def test_a_size_the_levels_cannot_halve_is_refused_by_name(make_unet: MakeUNet, height: int, width: int) -> None:
    with pytest.raises(ValueError, match=rf"multiples of 8 pixels, got {width}×{height}"):
        make_unet()(**inputs(height, width))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cross_attention": (True,)}, "cross_attention has 1 entries for 2 levels"),
        ({"self_attention": (True, True, True)}, "self_attention has 3 entries for 2 levels"),
        ({"layers_per_block": (1,)}, "layers_per_block has 1 entries for 2 levels"),
        ({"cross_attention": (False, True), "self_attention": (True, True)}, "self_attention needs cross_attention"),
        ({"heads": 5}, "5 heads"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict, message: str, make_unet: MakeUNet) -> None:
    with pytest.raises(ValueError, match=message):
        make_unet(**settings)


def test_the_same_inputs_give_the_same_output(make_unet: MakeUNet) -> None:
    unet = make_unet()
    assert torch.equal(unet(**inputs()).sample, unet(**inputs()).sample)


def test_a_picture_alone_is_what_it_is_in_a_batch(make_unet: MakeUNet) -> None:
    unet, kwargs = make_unet(), inputs(batch=4)
    together = unet(**kwargs).sample
    for i in range(4):
        alone = unet(**{name: value[i : i + 1] for name, value in kwargs.items()}).sample
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("timestep", [500, 500.0, torch.tensor(500), torch.tensor([500.0])])
def test_a_timestep_is_a_number_or_a_tensor(make_unet: MakeUNet, timestep: float | Tensor) -> None:
    unet, kwargs = make_unet(), inputs()
    expected = unet(**kwargs | {"timestep": torch.tensor([500.0, 500.0])}).sample
    assert torch.equal(unet(**kwargs | {"timestep": timestep}).sample, expected)


def test_a_tuple_is_returned_on_request(make_unet: MakeUNet) -> None:
    unet = make_unet()
    out = unet(**inputs(), return_dict=False)
    assert isinstance(out, tuple) and torch.equal(out[0], unet(**inputs()).sample)


@pytest.mark.parametrize("channels_in", [16, 24])
def test_a_residual_block_is_that_of_diffusers(channels_in: int) -> None:
    ours = ResidualBlock(channels_in, 24, 64, dropout=0.0)
    theirs = ResnetBlock2D(
        in_channels=channels_in,
        out_channels=24,
        temb_channels=64,
        groups=ours.norm1.num_groups,
        groups_out=ours.norm2.num_groups,
        eps=ours.norm1.eps,
        time_embedding_norm="scale_shift",
        skip_time_act=True,  # the time embedding ends in one
    )
    names = {"time": "time_emb_proj", "shortcut": "conv_shortcut"}
    for name, part in ours.named_children():
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.2)
        if any(True for _ in part.parameters()):
            getattr(theirs, names.get(name, name)).load_state_dict(part.state_dict())
    x, time = torch.randn(2, channels_in, 8, 6), torch.randn(2, 64)
    torch.testing.assert_close(ours(x, time), theirs(x, time), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sample", "timestep", "encoder_hidden_states"])
def test_every_input_matters(make_unet: MakeUNet, name: str) -> None:
    unet, kwargs = make_unet(), inputs()
    out = unet(**kwargs).sample
    other = unet(**kwargs | {name: kwargs[name].flip(0)}).sample
    assert (other - out).abs().max() > 1e-3


def test_the_memory_reaches_the_picture_through_cross_attention_alone(make_unet: MakeUNet) -> None:
    unet, kwargs = make_unet(cross_attention=(False, False), self_attention=(False, False)), inputs()
    assert unet.attention_layers == []
    out = unet(**kwargs).sample
    assert torch.equal(unet(**kwargs | {"encoder_hidden_states": torch.randn(2, T, M)}).sample, out)


def test_masked_tokens_have_no_say(make_unet: MakeUNet) -> None:
    unet, kwargs = make_unet(), inputs()
    out = unet(**kwargs).sample
    mask, memory = kwargs["encoder_attention_mask"], kwargs["encoder_hidden_states"]
    cut = unet(
        **{name: value[1:] for name, value in kwargs.items()}
        | {"encoder_hidden_states": memory[1:, :4]}
        | {"encoder_attention_mask": mask[1:, :4]}
    ).sample
    torch.testing.assert_close(cut, out[1:], rtol=1e-4, atol=1e-4)
    changed = torch.where(mask[..., None], memory, 100.0)
    torch.testing.assert_close(unet(**kwargs | {"encoder_hidden_states": changed}).sample, out)
    everything = unet(**kwargs | {"encoder_attention_mask": None}).sample
    torch.testing.assert_close(everything[0], out[0])  # it had no padding
    assert (everything[1] - out[1]).abs().max() > 1e-3


def test_a_mask_of_ones_and_zeros_is_a_mask_not_a_bias(make_unet: MakeUNet) -> None:
    unet, kwargs = make_unet(), inputs()
    for dtype in (torch.int64, torch.float32):  # a tokenizer gives the first
        cast = kwargs | {"encoder_attention_mask": kwargs["encoder_attention_mask"].to(dtype)}
        assert torch.equal(unet(**cast).sample, unet(**kwargs).sample)


def test_left_and_right_are_told_apart() -> None:
    places = coordinates(torch.zeros(1, 1, 4, 6))  # (1, 2, 4, 6)
    torch.testing.assert_close(places[:, 0].flip(-1), -places[:, 0])
    torch.testing.assert_close(places[:, 1].flip(-2), -places[:, 1])
    assert (places[0, 0].diff(dim=-1) > 0).all() and (places[0, 1].diff(dim=-2) > 0).all()
    assert places.abs().max() < 1


# Recording.


@pytest.mark.parametrize(
    ("settings", "grids"),
    [
        ({}, [(8, 12), (4, 6), (4, 6), (4, 6), (8, 12)]),
        ({"cross_attention": (False, True)}, [(4, 6)] * 3),
        ({"layers_per_block": (1, 2), "patch_size": 2}, [(16, 24), *[(8, 12)] * 5, (16, 24)]),
    ],
)
def test_each_attention_layer_reports_once_in_order_with_its_grid(
    make_unet: MakeUNet, settings: dict, grids: list[tuple[int, int]]
) -> None:
    unet = make_unet(**settings)
    seen: list[tuple[str, torch.Size, tuple[int, int]]] = []
    unet(**inputs(32, 48), record=lambda name, weights, grid: seen.append((name, weights.shape, grid)))
    assert [name for name, _, _ in seen] == unet.attention_layers
    assert [grid for _, _, grid in seen] == grids
    assert [shape for _, shape, _ in seen] == [(2, 2, h * w, T) for h, w in grids]


def test_recording_changes_nothing_in_the_output(make_unet: MakeUNet) -> None:
    unet, kwargs = make_unet(), inputs()
    recorded = unet(**kwargs, record=lambda name, weights, grid: None).sample
    torch.testing.assert_close(recorded, unet(**kwargs).sample, rtol=1e-4, atol=1e-5)


def test_what_record_returns_is_used_instead_of_the_weights(make_unet: MakeUNet) -> None:
    unet, kwargs = make_unet(), inputs()
    kwargs["encoder_attention_mask"] = torch.ones(2, T, dtype=torch.bool)
    first = torch.zeros(2, T, dtype=torch.bool)
    first[:, 0] = True
    only_first = unet(**kwargs | {"encoder_attention_mask": first}).sample

    def to_first(name: str, weights: Tensor, grid: tuple[int, int]) -> Tensor:
        return F.one_hot(torch.zeros(weights.shape[:-1], dtype=torch.long), T).to(weights)

    torch.testing.assert_close(unet(**kwargs, record=to_first).sample, only_first, rtol=1e-4, atol=1e-5)
    assert (only_first - unet(**kwargs).sample).abs().max() > 1e-3


def test_self_attention_is_recorded_and_changed_on_request(make_unet: MakeUNet) -> None:
    unet, kwargs = make_unet(), inputs(32, 48)
    plain = unet(**kwargs).sample
    seen: dict[str, tuple[int, ...]] = {}

    def look(name: str, weights: Tensor, grid: tuple[int, int]) -> None:
        seen[name] = (weights.shape[-1], grid[0] * grid[1])
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))

    torch.testing.assert_close(unet(**kwargs, record_self=look).sample, plain, rtol=1e-4, atol=1e-5)
    own = [name for name, block in unet._attention_blocks() if block.attention.self_attention is not None]
    assert list(seen) == own and all(keys == positions for keys, positions in seen.values())
    changed = unet(**kwargs, record_self=lambda name, weights, grid: torch.ones_like(weights) / weights.shape[-1])
    assert (changed.sample - plain).abs().max() > 1e-4


def test_recorded_weights_are_shares_of_the_real_tokens(make_unet: MakeUNet) -> None:
    seen: list[Tensor] = []
    kwargs = inputs()
    make_unet()(**kwargs, record=lambda name, weights, grid: seen.append(weights))
    for weights in seen:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
        assert (weights[1, ..., 4:] == 0).all()


def test_attention_is_recorded_where_the_picture_is_not_transposed(make_unet: MakeUNet) -> None:
    """A change in one corner of the picture shows first in that corner of the finest layer's maps."""
    unet, kwargs = make_unet(), inputs(32, 64)

    def first_layer(sample: Tensor) -> Tensor:
        seen: dict[str, Tensor] = {}
        unet(**kwargs | {"sample": sample}, record=lambda n, w, grid: seen.update({n: w.mean(1).unflatten(1, grid)}))
        return seen[unet.attention_layers[0]]  # (B, h, w, T)

    sample = kwargs["sample"].clone()
    sample[:, :, :4, -4:] += 5  # top right
    change = (first_layer(sample) - first_layer(kwargs["sample"])).abs().sum(dim=-1)  # (B, 8, 16)
    # GroupNorm carries a little of it everywhere.
    assert change[:, :3, -3:].mean() > 10 * change[:, 4:, :8].mean()


# Memory and precision.


def test_gradient_checkpointing_gives_the_same_gradients(make_unet: MakeUNet) -> None:
    unet = make_unet().train()
    expected = gradients(unet, **inputs())
    unet.enable_gradient_checkpointing()
    assert unet.is_gradient_checkpointing
    calls: list[str] = []
    handle = unet.mid.register_forward_pre_hook(lambda *_: calls.append("mid"))
    torch.testing.assert_close(gradients(unet, **inputs()), expected)
    handle.remove()
    assert len(calls) == 2  # once forward, once again on the way back
    unet.disable_gradient_checkpointing()
    assert not unet.is_gradient_checkpointing


def test_a_recorded_pass_reports_once_under_gradient_checkpointing(make_unet: MakeUNet) -> None:
    unet = make_unet().train()
    unet.enable_gradient_checkpointing()
    seen: list[str] = []
    unet(**inputs(), record=lambda name, *_: seen.append(name)).sample.sum().backward()
    assert seen == unet.attention_layers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(make_unet: MakeUNet, dtype: torch.dtype) -> None:
    exact = make_unet()(**inputs()).sample
    kwargs = {name: v.to(dtype) if name in ("sample", "encoder_hidden_states") else v for name, v in inputs().items()}
    out = make_unet().to(dtype)(**kwargs).sample
    assert out.dtype == dtype
    assert (out.float() - exact).abs().max() < 20 * torch.finfo(dtype).eps * exact.abs().max()


def test_dropout_is_only_for_training(make_unet: MakeUNet) -> None:
    unet = make_unet(dropout=0.5)
    assert torch.equal(unet(**inputs()).sample, unet(**inputs()).sample)
    unet.train()
    assert not torch.equal(unet(**inputs()).sample, unet(**inputs()).sample)


# On disk.


def test_a_saved_model_comes_back_the_same(make_unet: MakeUNet, tmp_path: Path) -> None:
    unet = make_unet()
    unet.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["diffusion_pytorch_model.safetensors"]
    loaded = CrossAttentionUNet.from_pretrained(tmp_path)
    assert not loaded.training
    assert torch.equal(loaded(**inputs()).sample, unet(**inputs()).sample)
    assert {k: v for k, v in unet.config.items() if k[0] != "_"} == {
        k: tupled(v) for k, v in loaded.config.items() if k[0] != "_"
    }


def test_the_trained_weights_of_the_package_predict_pictures_and_read_the_text() -> None:
    """The code and the weights fit: a change of sign or order anywhere in the networks shows here."""
    pipe = TextToImagePipeline.from_pretrained("shapes")
    model, collator = TextToImageModel(pipe.text_encoder, pipe.unet), Collator(pipe.tokenizer, 0, 0.0, 4)
    report = validate(model, collator, SceneExamples(64, 0).validation(4), torch.device("cpu"))
    assert all(
        report[f"loss {level}"] < 0.02 < 0.1 < report[f"loss {level} shuffled"] for level in (0.1, 0.3, 0.5, 0.7)
    )
    assert report["loss 0.9"] < 0.07 and report["text loss"] < 1.15
    assert report["pointing"] == 1 and report["iou"] > 0.8


def test_a_new_network_is_of_the_size_of_the_trained_one() -> None:
    pipe = TextToImagePipeline.from_pretrained("shapes")
    for trained, new in (
        (pipe.unet, CrossAttentionUNet()),
        (pipe.text_encoder, Transformer(len(pipe.tokenizer), decoder_layers=2)),
    ):
        assert {name: weight.shape for name, weight in new.state_dict().items()} == {
            name: weight.shape for name, weight in trained.state_dict().items()
        }
        settings = {name for name in new.config if name[0] != "_"}
        assert all(tupled(new.config[name]) == tupled(trained.config[name]) for name in settings)


def tupled(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def test_a_model_is_made_anew_from_its_config(make_unet: MakeUNet) -> None:
    unet = make_unet(layers_per_block=(1, 2))
    again = CrossAttentionUNet.from_config(unet.config)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in unet.named_parameters()}


def test_fp16_on_disk_loads_as_fp16_or_fp32(make_unet: MakeUNet, tmp_path: Path) -> None:
    unet = make_unet()
    exact = unet(**inputs()).sample
    unet.half().save_pretrained(tmp_path, variant="fp16")
    loaded = CrossAttentionUNet.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16)
    assert loaded.dtype == torch.float16
    wide = CrossAttentionUNet.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float32)
    torch.testing.assert_close(wide(**inputs()).sample, exact, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("size", [(32, 32), (16, 48)])
def test_the_grids_it_foretells_are_those_it_reports(
    make_unet: Callable[..., CrossAttentionUNet], size: tuple[int, int]
) -> None:
    unet = make_unet(block_out_channels=(16, 32, 32), cross_attention=(False, True, True), self_attention=(False,) * 3)
    seen: dict[str, tuple[int, int]] = {}
    noise, memory = torch.randn(1, 3, *size), torch.randn(1, 4, 32)
    with torch.no_grad():
        unet(noise, 500, memory, record=lambda layer, _, grid: seen.update({layer: grid}))
    assert unet.attention_grids(*size) == seen and list(seen) == unet.attention_layers
