"""The properties of diffusers' own PipelineTesterMixin, and those that only this pipeline has."""

import copy
import inspect
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import are_progress_bars_disabled
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import logging as transformers_logging

from pipelines import TextToImagePipeline, trace
from pipelines.text_to_image import BUNDLED, bundled_models, with_sampler
from unet_xattn import AttentionTrace, CrossAttentionUNet, flow

PROMPT = "a red circle left of a blue square"
OTHER = "three small green stars on a black ground"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(pipe: TextToImagePipeline, prompt: str | list[str] = PROMPT, **kwargs: object) -> Tensor:
    """Pictures in [-1, 1], the end of the flow, (B, 3, h, w)."""
    settings = {"generator": seeded(), "num_inference_steps": 3, "output_type": "latent"} | kwargs
    return pipe(prompt, **settings).images


def with_parts(pipe: TextToImagePipeline, **parts: object) -> TextToImagePipeline:
    changed = TextToImagePipeline(**pipe.components | parts)
    changed.set_progress_bar_config(disable=True)
    return changed


def copied(pipe: TextToImagePipeline) -> TextToImagePipeline:
    return with_parts(pipe, unet=copy.deepcopy(pipe.unet), text_encoder=copy.deepcopy(pipe.text_encoder))


# The same picture.


def test_a_seed_gives_the_same_picture_again_and_another_seed_another(tiny_pipe: TextToImagePipeline) -> None:
    assert torch.equal(draw(tiny_pipe), draw(tiny_pipe))
    assert (draw(tiny_pipe, generator=seeded(1)) - draw(tiny_pipe)).abs().max() > 0.1


def test_the_prompt_matters(tiny_pipe: TextToImagePipeline) -> None:
    assert (draw(tiny_pipe, OTHER) - draw(tiny_pipe)).abs().max() > 0.01


def test_drawing_leaves_the_global_random_numbers_alone(tiny_pipe: TextToImagePipeline) -> None:
    before = torch.get_rng_state()
    draw(tiny_pipe)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_saved_pipeline_draws_the_same_picture(tiny_pipe: TextToImagePipeline, tmp_path: Path) -> None:
    tiny_pipe.save_pretrained(tmp_path)
    for loaded in (TextToImagePipeline.from_pretrained(tmp_path), TextToImagePipeline.from_pretrained(str(tmp_path))):
        loaded.set_progress_bar_config(disable=True)
        assert torch.equal(draw(loaded), draw(tiny_pipe))
        assert loaded.tokenizer(PROMPT)["input_ids"] == tiny_pipe.tokenizer(PROMPT)["input_ids"]
    index = json.loads((tmp_path / "model_index.json").read_text())
    # These paths are in every published model: code may not move without them.
    assert index["unet"] == ["unet_xattn.unet", "CrossAttentionUNet"]
    assert index["text_encoder"] == ["unet_xattn.transformer", "Transformer"]
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_a_pipeline_kept_in_fp16_draws_nearly_the_same_picture(tiny_pipe: TextToImagePipeline, tmp_path: Path) -> None:
    copied(tiny_pipe).to(torch.float16).save_pretrained(tmp_path)
    loaded = TextToImagePipeline.from_pretrained(tmp_path).to(torch.float32)
    loaded.set_progress_bar_config(disable=True)
    assert (draw(loaded) - draw(tiny_pipe)).abs().max() < 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_draws_nearly_the_same_picture(tiny_pipe: TextToImagePipeline, dtype: torch.dtype) -> None:
    latents = torch.randn(1, 3, 32, 32, generator=seeded())
    half = draw(copied(tiny_pipe).to(dtype), latents=latents)
    assert half.dtype == torch.float32 and half.isfinite().all()
    assert (half - draw(tiny_pipe, latents=latents)).abs().max() < 50 * torch.finfo(dtype).eps


def test_components_make_another_pipeline(tiny_pipe: TextToImagePipeline) -> None:
    parameters = inspect.signature(TextToImagePipeline.__init__).parameters.values()
    expected = [p.name for p in parameters if p.name != "self" and p.default is inspect.Parameter.empty]
    assert sorted(tiny_pipe.components) == sorted([*expected, "vae"])
    assert torch.equal(draw(with_parts(tiny_pipe)), draw(tiny_pipe))


def test_a_prompt_in_a_batch_gives_what_it_gives_alone(tiny_pipe: TextToImagePipeline) -> None:
    prompts = [PROMPT, "a star", OTHER]  # of different lengths
    together = draw(tiny_pipe, prompts, generator=[seeded(i) for i in range(3)])
    for i, prompt in enumerate(prompts):
        assert (draw(tiny_pipe, prompt, generator=seeded(i)) - together[i : i + 1]).abs().max() < 2 / 255


def test_parts_are_called_so_that_accelerates_hooks_run(tiny_pipe: TextToImagePipeline) -> None:
    """diffusers' CPU offload and accelerate's dispatch are such hooks: they move a part to its device when needed."""
    pipe = copied(tiny_pipe)
    called: list[str] = []

    class Hook(ModelHook):
        def __init__(self, name: str):
            self.name = name

        def pre_forward(self, module: nn.Module, *args: object, **kwargs: object) -> tuple:
            called.append(self.name)
            return args, kwargs

    for name in ("text_encoder", "unet"):
        add_hook_to_module(getattr(pipe, name), Hook(name))
    draw(pipe, num_inference_steps=1)
    assert called == ["text_encoder", "unet"]


# Inputs and outputs.


def test_every_output_type_is_the_same_picture(tiny_pipe: TextToImagePipeline) -> None:
    out = {
        kind: tiny_pipe(PROMPT, 16, 24, 2, generator=seeded(), output_type=kind).images
        for kind in ("pil", "np", "pt", "latent")
    }
    (picture,) = out["pil"]
    assert isinstance(picture, Image.Image) and picture.size == (24, 16) and picture.mode == "RGB"
    assert out["np"].shape == (1, 16, 24, 3) and out["pt"].shape == out["latent"].shape == (1, 3, 16, 24)
    assert isinstance(out["np"], np.ndarray)
    np.testing.assert_allclose(np.asarray(picture) / 255, out["np"][0], atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(out["pt"][0].permute(1, 2, 0), out["np"][0])
    torch.testing.assert_close(out["pt"], (out["latent"] / 2 + 0.5).clamp(0, 1))


def test_pictures_are_pil_by_default_and_a_tuple_on_request(tiny_pipe: TextToImagePipeline) -> None:
    (images,) = tiny_pipe(PROMPT, num_inference_steps=1, generator=seeded(), return_dict=False)
    expected = tiny_pipe(PROMPT, num_inference_steps=1, generator=seeded()).images
    assert np.array_equal(np.asarray(images[0]), np.asarray(expected[0]))


@pytest.mark.parametrize(("prompts", "each"), [(1, 1), (1, 3), (2, 1), (2, 2)])
def test_each_prompt_gets_its_number_of_pictures(tiny_pipe: TextToImagePipeline, prompts: int, each: int) -> None:
    out = draw(tiny_pipe, [PROMPT, OTHER][:prompts], num_images_per_prompt=each)
    assert out.shape == (prompts * each, 3, 32, 32)
    assert len({tuple(picture.flatten().tolist()) for picture in out}) == prompts * each


def test_pictures_come_prompt_by_prompt(tiny_pipe: TextToImagePipeline) -> None:
    generators = [seeded(i) for i in range(4)]
    out = draw(tiny_pipe, [PROMPT, OTHER], num_images_per_prompt=2, generator=generators)
    assert (out[1] - draw(tiny_pipe, PROMPT, generator=seeded(1))[0]).abs().max() < 2 / 255
    assert (out[2] - draw(tiny_pipe, OTHER, generator=seeded(2))[0]).abs().max() < 2 / 255


def test_the_noise_can_be_given(tiny_pipe: TextToImagePipeline) -> None:
    latents = torch.randn(1, 3, 32, 32, generator=seeded())
    before = latents.clone()
    assert torch.equal(draw(tiny_pipe, latents=latents, generator=None), draw(tiny_pipe))
    assert torch.equal(latents, before)


@pytest.mark.parametrize(("height", "width"), [(16, 48), (40, 8)])
def test_pictures_need_not_be_square(tiny_pipe: TextToImagePipeline, height: int, width: int) -> None:
    out = draw(tiny_pipe, height=height, width=width)
    assert out.shape == (1, 3, height, width) and out.isfinite().all()


def test_the_size_is_the_one_it_was_trained_at_by_default(tiny_pipe: TextToImagePipeline) -> None:
    assert draw(tiny_pipe).shape[-2:] == (32, 32)
    assert draw(tiny_pipe, width=16).shape[-2:] == (32, 16)


# Guidance.


def velocity(pipe: TextToImagePipeline, prompt: str, x: Tensor) -> Tensor:
    """The UNet's prediction for noise, without the pipeline's loop."""
    memory, mask = pipe.encode_prompt([prompt])
    with torch.no_grad():
        return pipe.unet(x, float(flow.TRAIN_TIMESTEPS), memory, mask).sample


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, 7.5])
@pytest.mark.parametrize("negative", [None, OTHER])
def test_guidance_goes_from_the_negative_prediction_past_the_prompts(
    tiny_pipe: TextToImagePipeline, scale: float, negative: str | None
) -> None:
    noise = torch.randn(1, 3, 32, 32, generator=seeded())
    # One Euler step from noise to picture is the noise less the velocity.
    found = noise - draw(tiny_pipe, num_inference_steps=1, guidance_scale=scale, negative_prompt=negative)
    away, positive = velocity(tiny_pipe, negative or "", noise), velocity(tiny_pipe, PROMPT, noise)
    torch.testing.assert_close(found, away + scale * (positive - away), rtol=1e-3, atol=1e-3)


def test_a_negative_prompt_changes_the_picture_only_if_there_is_guidance(tiny_pipe: TextToImagePipeline) -> None:
    assert (draw(tiny_pipe, negative_prompt=OTHER) - draw(tiny_pipe)).abs().max() > 0.01
    plain = draw(tiny_pipe, guidance_scale=1.0)
    assert torch.equal(draw(tiny_pipe, guidance_scale=1.0, negative_prompt=OTHER), plain)


def test_each_prompt_can_have_its_own_negative_prompt(tiny_pipe: TextToImagePipeline) -> None:
    noise = torch.randn(2, 3, 32, 32, generator=seeded())
    out = draw(tiny_pipe, [PROMPT, PROMPT], negative_prompt=["", OTHER], latents=noise)
    for i, negative in enumerate(["", OTHER]):
        alone = draw(tiny_pipe, negative_prompt=negative, latents=noise[i : i + 1])
        assert (out[i] - alone[0]).abs().max() < 2 / 255


def test_the_full_interval_guides_every_step_and_an_interval_between_steps_none(tiny_pipe: TextToImagePipeline) -> None:
    assert torch.equal(draw(tiny_pipe, guidance_interval=(0.0, 1.0)), draw(tiny_pipe))
    plain = draw(tiny_pipe, guidance_scale=1.0)
    first, second, third = 1, 2 / 3, 1 / 3  # equal steps down to the picture
    torch.testing.assert_close(draw(tiny_pipe, guidance_interval=(second + 0.01, first - 0.01)), plain)
    middle = draw(tiny_pipe, guidance_interval=(third + 0.01, first - 0.01))
    assert (middle - plain).abs().max() > 1e-3 and (middle - draw(tiny_pipe)).abs().max() > 1e-3


def test_steps_without_guidance_cost_one_pass_not_two(tiny_pipe: TextToImagePipeline) -> None:
    pipe = copied(tiny_pipe)
    rows: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    draw(pipe)
    draw(pipe, guidance_scale=1.0)
    draw(pipe, guidance_interval=(0.0, 0.9))  # only the first step is noisier than that
    assert rows == [2, 2, 2] + [1, 1, 1] + [1, 2, 2]


# Schedulers.

FLOW_SOLVER = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SCHEDULERS: dict[str, Callable[[], SchedulerMixin]] = {
    "euler": FlowMatchEulerDiscreteScheduler,
    "euler shifted": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "euler stochastic": lambda: FlowMatchEulerDiscreteScheduler(shift=2.0, stochastic_sampling=True),
    "heun": FlowMatchHeunDiscreteScheduler,
    "dpm-solver++": lambda: DPMSolverMultistepScheduler(**FLOW_SOLVER, algorithm_type="dpmsolver++"),
    "unipc": lambda: UniPCMultistepScheduler(**FLOW_SOLVER),
}


@pytest.mark.parametrize("steps", [3, 30])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_flow_scheduler_ends_at_the_picture_that_a_network_always_predicts(
    tiny_pipe: TextToImagePipeline, name: str, steps: int
) -> None:
    """Its velocities lead there from any noise if network and scheduler agree on times, sigmas and signs."""
    pipe = with_parts(copied(tiny_pipe), scheduler=SCHEDULERS[name]())
    with torch.no_grad():
        pipe.unet.conv_out.weight.zero_()
        sure = pipe.unet.conv_out.bias.copy_(torch.linspace(-1, 1, 48))
    out = draw(pipe, num_inference_steps=steps)
    patch = F.pixel_shuffle(sure[None, :, None, None], 4)  # (1, 3, 4, 4)
    torch.testing.assert_close(out, patch.tile(1, 1, 8, 8), rtol=0, atol=0.01)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_flow_scheduler_survives_the_disk(tiny_pipe: TextToImagePipeline, tmp_path: Path, name: str) -> None:
    pipe = with_parts(tiny_pipe, scheduler=SCHEDULERS[name]())
    pipe.save_pretrained(tmp_path)
    loaded = TextToImagePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is type(pipe.scheduler)
    assert torch.equal(draw(loaded), draw(pipe))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_seed_gives_the_same_picture_alone_and_in_a_batch_with_every_scheduler(
    tiny_pipe: TextToImagePipeline, name: str
) -> None:
    pipe = with_parts(tiny_pipe, scheduler=SCHEDULERS[name]())
    before = torch.get_rng_state()
    together = draw(pipe, [PROMPT, OTHER], generator=[seeded(0), seeded(1)])
    assert (draw(pipe, OTHER, generator=seeded(1)) - together[1:]).abs().max() < 2 / 255
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stochastic_scheduler_adds_fresh_noise_at_every_step_except_the_last(tiny_pipe: TextToImagePipeline) -> None:
    stochastic = with_parts(tiny_pipe, scheduler=SCHEDULERS["euler stochastic"]())
    noise = torch.randn(1, 3, 32, 32, generator=seeded())
    taken = [
        draw(stochastic, num_inference_steps=n, latents=noise, generator=seeded(i)) for n in (1, 2) for i in (1, 2)
    ]
    assert torch.equal(taken[0], taken[1]) and (taken[2] - taken[3]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_steps_are_equal_down_to_the_picture(tiny_pipe: TextToImagePipeline, name: str) -> None:
    """By default diffusers' steps end at a noise level of 0.001, where a velocity is mostly rounding error."""
    seen: list[float] = []
    draw(
        with_parts(tiny_pipe, scheduler=SCHEDULERS[name]()),
        num_inference_steps=4,
        callback_on_step_end=lambda pipe, step, timestep, values: seen.append(float(timestep)) or {},
    )
    assert sorted(set(seen), reverse=True) == pytest.approx([1000, 750, 500, 250])


def test_a_model_has_its_own_number_of_steps_and_guidance_scale(tiny_pipe: TextToImagePipeline, tmp_path: Path) -> None:
    """They are the defaults of a call, also after loading from disk and with another sampler."""
    pipe = TextToImagePipeline(**tiny_pipe.components, num_inference_steps=2, guidance_scale=1.5)
    pipe.save_pretrained(tmp_path)
    expected = draw(tiny_pipe, num_inference_steps=2, guidance_scale=1.5)
    for own in (pipe, TextToImagePipeline.from_pretrained(tmp_path), with_sampler(pipe, "Euler")):
        own.set_progress_bar_config(disable=True)
        assert torch.equal(own(PROMPT, generator=seeded(), output_type="latent").images, expected)
        assert torch.equal(draw(own, num_inference_steps=3, guidance_scale=3.0), draw(tiny_pipe))


def test_a_model_trained_without_caption_dropout_refuses_guidance_with_an_empty_negative_prompt(
    tiny_pipe: TextToImagePipeline, tmp_path: Path
) -> None:
    TextToImagePipeline(**tiny_pipe.components, guidance_scale=1.0, guidable=False).save_pretrained(tmp_path)
    pipe = TextToImagePipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    for other in (pipe, with_sampler(pipe, "Heun")):
        for scale, negative in ((3.0, None), (0.5, " "), (3.0, [OTHER, ""])):
            with pytest.raises(ValueError, match=f"guidance {scale:g} with an empty negative prompt"):
                draw(other, [PROMPT] * 2, guidance_scale=scale, negative_prompt=negative)
    assert torch.equal(draw(pipe, guidance_scale=None), draw(tiny_pipe, guidance_scale=1.0))
    guided = {"guidance_scale": 3.0, "negative_prompt": OTHER}
    assert torch.equal(draw(pipe, **guided), draw(tiny_pipe, **guided))


# The callback.


def test_the_callback_is_called_after_each_step_with_its_latents(tiny_pipe: TextToImagePipeline) -> None:
    seen: list[tuple[int, float, Tensor]] = []

    def callback(pipe: DiffusionPipeline, step: int, timestep: Tensor, values: dict) -> dict:
        assert pipe is tiny_pipe and list(values) == ["latents"]
        seen.append((step, float(timestep), values["latents"]))
        return values

    out = draw(tiny_pipe, callback_on_step_end=callback)
    assert [step for step, _, _ in seen] == [0, 1, 2]
    times = [timestep for _, timestep, _ in seen]
    assert times == sorted(times, reverse=True) and times[0] == 1000
    assert torch.equal(seen[-1][2], out)
    assert torch.equal(out, draw(tiny_pipe))


def test_the_callback_can_change_the_latents(tiny_pipe: TextToImagePipeline) -> None:
    def zeros_at_the_end(pipe: DiffusionPipeline, step: int, timestep: Tensor, values: dict) -> dict:
        return {"latents": torch.zeros_like(values["latents"])} if step == 2 else {}

    assert (draw(tiny_pipe, callback_on_step_end=zeros_at_the_end) == 0).all()


def test_the_callback_gets_only_the_tensors_it_names(tiny_pipe: TextToImagePipeline) -> None:
    seen: list[dict] = []
    draw(
        tiny_pipe,
        callback_on_step_end=lambda pipe, step, timestep, values: seen.append(dict(values)) or {},
        callback_on_step_end_tensor_inputs=[],
    )
    assert seen == [{}, {}, {}]
    with pytest.raises(ValueError, match="latents"):
        draw(
            tiny_pipe,
            callback_on_step_end=lambda *_: {},
            callback_on_step_end_tensor_inputs=["latents", "memory"],
        )


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": ["a star", ""]}, "the prompt is empty"),
        ({"prompt": []}, "at least one prompt"),
        ({"prompt": [3]}, "the prompt must be a string, not int"),
        ({"prompt": None}, "the prompt must be a string, not NoneType"),
        ({"prompt": "red " * 25_000}, "the prompt has 100,000 characters, the limit is 10,000: shorten it"),
        ({"prompt": "half \ud83d a smile"}, "character 6 of the prompt is half a character"),
        ({"prompt": "red " * 100}, "the prompt has .* tokens, this model reads 64: shorten it"),
        ({"negative_prompt": "red " * 100}, "the prompt has .* tokens, this model reads 64: shorten it"),
        ({"negative_prompt": [None]}, "the negative prompt must be a string, not NoneType"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"num_inference_steps": 0}, "the number of steps must be a whole number between 1 and 1000, got 0"),
        ({"num_inference_steps": 10**9}, "the number of steps must be a whole number between 1 and 1000"),
        ({"num_inference_steps": 2.5}, "the number of steps must be a whole number between 1 and 1000, got 2.5"),
        ({"guidance_scale": -1.0}, "the guidance scale must be a number between 0 and 100, got -1"),
        ({"guidance_scale": float("nan")}, "the guidance scale must be a number between 0 and 100, got nan"),
        ({"guidance_scale": float("inf")}, "the guidance scale must be a number between 0 and 100, got inf"),
        ({"guidance_interval": (0.5, 0.5)}, "guidance_interval must be"),
        ({"guidance_interval": (0.0, 1.5)}, "guidance_interval must be"),
        ({"height": 30}, "multiples of 8 pixels, got 32×30"),
        ({"width": 0}, "multiples of 8 pixels, got 0×32"),
        ({"width": -8}, "multiples of 8 pixels, got -8×32"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be 1 or more, got 0"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, r"latents have shape \(1, 3, 8, 8\), expected \(1, 3, 32, 32\)"),
        ({"output_type": "jpeg"}, "output_type"),
        ({"prompt": ["a", "b"], "generator": [seeded()]}, "generator"),
        ({"generator": [seeded(), seeded()]}, "generator"),
    ],
)
def test_bad_arguments_are_refused_in_one_clear_line(
    tiny_pipe: TextToImagePipeline, arguments: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        draw(tiny_pipe, **{"prompt": PROMPT} | arguments)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["no-such-model", "a/b/c", "../nowhere/else"])
def test_the_error_for_an_unknown_model_lists_the_bundled_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"^model .* not found: give a bundled one") as caught:
        TextToImagePipeline.from_pretrained(name)
    assert all(bundled in str(caught.value) for bundled in bundled_models())


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no model_index\.json"):
        TextToImagePipeline.from_pretrained(tmp_path)


def test_bundled_models_are_found_by_name() -> None:
    assert bundled_models() == sorted(p.parent.name for p in BUNDLED.glob("*/model_index.json"))
    for name in bundled_models():
        pipe = TextToImagePipeline.from_pretrained(name)
        pipe.set_progress_bar_config(disable=True)
        assert draw(pipe, "a red circle", num_inference_steps=2).isfinite().all()


@pytest.mark.parametrize("shown", [True, False])
def test_loading_is_quiet_and_leaves_the_progress_bars_as_they_were(
    tiny_pipe: TextToImagePipeline, tmp_path: Path, capfd: pytest.CaptureFixture[str], shown: bool
) -> None:
    libraries = diffusers_logging, transformers_logging
    before = [library.is_progress_bar_enabled() for library in libraries]
    tiny_pipe.save_pretrained(tmp_path)
    try:
        for library in libraries:
            (library.enable_progress_bar if shown else library.disable_progress_bar)()
        capfd.readouterr()
        TextToImagePipeline.from_pretrained(tmp_path)
        assert capfd.readouterr() == ("", "")
        assert [library.is_progress_bar_enabled() for library in libraries] == [shown, shown]
        assert are_progress_bars_disabled() == (not shown)  # of downloads
    finally:
        for library, enabled in zip(libraries, before, strict=True):
            (library.enable_progress_bar if enabled else library.disable_progress_bar)()


@pytest.mark.parametrize("damage", ["missing", "nan"])
def test_damaged_weights_are_refused(
    tiny_pipe: TextToImagePipeline, make_unet: Callable[..., CrossAttentionUNet], tmp_path: Path, damage: str
) -> None:
    from safetensors.torch import load_file, save_file

    tiny_pipe.save_pretrained(tmp_path)
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    if damage == "missing":
        del weights["mid.residual.conv1.weight"]
    else:
        weights["mid.residual.conv1.weight"].fill_(float("nan"))
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"mid\.residual\.conv1\.weight"):
        TextToImagePipeline.from_pretrained(tmp_path)


# Ignored words.


def test_an_ignored_word_gets_no_attention_and_changes_the_picture(tiny_pipe: TextToImagePipeline) -> None:
    def draw(**settings: object) -> tuple[Tensor, AttentionTrace]:
        with trace(tiny_pipe) as attention:
            images = tiny_pipe(
                PROMPT, num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="pt", **settings
            ).images
        return images, attention

    whole, attention = draw()
    circle = next(word for word in attention.words if word.text == "circle")
    without, blind = draw(ignore=[circle.tokens])
    assert blind.heatmap("circle").max() == 0 < attention.heatmap("circle").min()
    assert blind.heatmap("circle", branch="prompt").max() == 0
    assert (without - whole).abs().max() > 1 / 255
    late, half_blind = draw(ignore=[circle.tokens], ignore_below=0.5)
    assert 0 < half_blind.heatmap("circle").mean() < attention.heatmap("circle").mean()
    assert (late - whole).abs().mean() < (without - whole).abs().mean()
    never, _ = draw(ignore=[circle.tokens], ignore_below=0.0)
    assert torch.equal(never, whole) and torch.equal(draw(ignore=[[]])[0], whole)


def test_ignored_tokens_are_given_for_every_prompt_and_exist_there(tiny_pipe: TextToImagePipeline) -> None:
    with pytest.raises(ValueError, match="tokens to ignore for 1 of 2 prompts"):
        tiny_pipe(["a star", "a circle"], ignore=[[1]])
    with pytest.raises(ValueError, match="the prompt has tokens 0 to 3"):
        tiny_pipe("a star", ignore=[[4]])
    with pytest.raises(ValueError, match="the prompt has tokens 0 to 3"):
        tiny_pipe(["a star", OTHER], ignore=[[5], []])  # padding, though the batch has a token 5
