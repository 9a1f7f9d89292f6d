"""What diffusers promises of a pipeline's callbacks and parts, on ours: its own tests' properties, on a tiny model."""

from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from pipelines import TextToImagePipeline
from pipelines.samplers import integrate

PROMPTS = ["a red circle", "a blue square"]


def draw(pipe: TextToImagePipeline, prompt: Any = PROMPTS, guidance: float = 3.0, **given: Any) -> Tensor:
    noise = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))[: 1 if isinstance(prompt, str) else 2]
    plain = {"latents": noise, "num_inference_steps": 4, "output_type": "latent"}
    return pipe(prompt, guidance_scale=guidance, **plain | given).images


def switch_off(at: int) -> Any:
    """A callback that ends guidance after a step, as diffusers' documentation does, and cuts off what is not used."""

    def callback(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if step == at:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"][len(tensors["prompt_embeds"]) // 2 :]
        return tensors

    return callback


class CutOff(PipelineCallback):
    """A callback of diffusers' own kind: guidance ends after a share of the steps."""

    tensor_inputs = ["prompt_embeds"]  # noqa: RUF012

    def callback_fn(self, pipeline: Any, step_index: int, timestep: Tensor, callback_kwargs: dict) -> dict:
        if step_index == int(pipeline.num_timesteps * self.config.cutoff_step_ratio):
            callback_kwargs["prompt_embeds"] = callback_kwargs["prompt_embeds"][-1:]
            pipeline._guidance_scale = 0.0
        return callback_kwargs


@pytest.mark.parametrize("at", [0, 1, 2])
def test_guidance_that_a_callback_switches_off_is_off_from_the_next_step_on(
    tiny_pipe: TextToImagePipeline, at: int
) -> None:
    changed = draw(
        tiny_pipe,
        callback_on_step_end=switch_off(at),
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )
    # Guidance within an interval of noise levels that begins below the last guided step's level is the same.
    sigmas = noise_levels(tiny_pipe)
    expected = draw(tiny_pipe, guidance_interval=((sigmas[at] + sigmas[at + 1]) / 2, 1.0))
    assert torch.equal(changed, expected)
    assert not torch.equal(changed, draw(tiny_pipe))


def noise_levels(pipe: TextToImagePipeline) -> list[float]:
    """The noise level of each of four steps."""
    seen: list[float] = []

    def denoise(x: Tensor, timestep: Tensor, sigma: float, step: int) -> Tensor:
        seen.append(sigma)
        return x

    integrate(denoise, torch.zeros(1, 3, 32, 32), pipe.scheduler, 4)
    return seen


@pytest.mark.parametrize("several", [False, True])
def test_callbacks_of_diffusers_own_kind_work(tiny_pipe: TextToImagePipeline, several: bool) -> None:
    cut_off = CutOff(cutoff_step_ratio=0.5, cutoff_step_index=None)
    callback = MultiPipelineCallbacks([cut_off]) if several else cut_off
    inputs = ["latents", "prompt_embeds"]
    plain = draw(tiny_pipe, PROMPTS[0], callback_on_step_end=switch_off(2), callback_on_step_end_tensor_inputs=inputs)
    assert torch.equal(draw(tiny_pipe, PROMPTS[0], callback_on_step_end=callback), plain)


def test_a_callback_reads_and_changes_the_guidance_of_its_call(tiny_pipe: TextToImagePipeline) -> None:
    seen = []

    def callback(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> None:
        seen.append((pipe.guidance_scale, pipe.do_classifier_free_guidance, pipe.num_timesteps, pipe.interrupt))
        pipe._guidance_scale += 1

    draw(tiny_pipe, guidance=2.0, callback_on_step_end=callback)
    assert seen == [(2.0 + step, True, 4, False) for step in range(4)]
    assert tiny_pipe.guidance_scale == 6.0  # of the last call
    draw(tiny_pipe, guidance=1.0)
    assert (tiny_pipe.guidance_scale, tiny_pipe.do_classifier_free_guidance) == (1.0, False)


def test_the_number_of_timesteps_is_how_often_the_callback_is_called(tiny_pipe: TextToImagePipeline) -> None:
    heun = TextToImagePipeline(**tiny_pipe.components | {"scheduler": FlowMatchHeunDiscreteScheduler()})
    told: dict[int, list[int]] = {4: [], 7: []}  # Heun's method has two of each step but the last
    draw(tiny_pipe, callback_on_step_end=lambda pipe, *_: told[4].append(pipe.num_timesteps))
    draw(heun, callback_on_step_end=lambda pipe, *_: told[7].append(pipe.num_timesteps))
    assert told == {4: [4] * 4, 7: [7] * 7}


@pytest.mark.parametrize("last", [0, 2])
def test_an_interrupted_call_ends_with_the_latents_of_that_step(tiny_pipe: TextToImagePipeline, last: int) -> None:
    kept: list[Tensor] = []

    def callback(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> None:
        kept.append(tensors["latents"])
        pipe._interrupt = step == last

    found = draw(tiny_pipe, callback_on_step_end=callback)
    assert len(kept) == last + 1 and torch.equal(found, kept[-1].float())
    assert len(draw(tiny_pipe)) == 2 and not tiny_pipe.interrupt


def test_only_the_asked_tensors_are_given_and_those_returned_are_used(tiny_pipe: TextToImagePipeline) -> None:
    names: list[set[str]] = []

    def callback(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        names.append(set(tensors))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 3 else {}

    inputs = ["latents", "prompt_embeds", "clean"]
    found = draw(tiny_pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=inputs)
    assert names == [set(inputs)] * 4 and (found == 0).all()
    draw(tiny_pipe, callback_on_step_end=lambda *given: names.append(set(given[3])))
    assert names[4:] == [{"latents"}] * 4


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([], "must return a dict of tensors or None, not list"),
        ({"noise": torch.zeros(2, 3, 32, 32)}, "may return latents, prompt_embeds, not noise"),
        ({"latents": torch.zeros(1, 3, 32, 32)}, r"left latents of \(1, 3, 32, 32\), expected .*\(2, 3, 32, 32\)"),
        ({"latents": None}, "left latents of NoneType"),
        ({"prompt_embeds": torch.zeros(1, 5, 32)}, "left prompt_embeds of"),
    ],
)
def test_what_a_callback_cannot_return_is_refused_in_one_line(
    tiny_pipe: TextToImagePipeline, returned: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
        draw(tiny_pipe, callback_on_step_end=lambda *_: returned)


def test_guidance_that_a_call_did_not_prepare_cannot_be_switched_on(tiny_pipe: TextToImagePipeline) -> None:
    def callback(pipe: Any, *_: object) -> None:
        pipe._guidance_scale = 3.0

    with pytest.raises(ValueError, match="begins without guidance cannot be guided later"):
        draw(tiny_pipe, guidance=1.0, callback_on_step_end=callback)


def test_a_call_is_not_affected_by_another_thread_or_a_call_within(tiny_pipe: TextToImagePipeline) -> None:
    plain, seen = draw(tiny_pipe), []

    def callback(pipe: Any, step: int, *_: object) -> None:
        if step == 1:
            draw(pipe, guidance=5.0, num_inference_steps=2, callback_on_step_end=switch_off(9))
            other = Thread(target=draw, args=(pipe, PROMPTS, 7.0))
            other.start()
            other.join()
        seen.append((pipe.guidance_scale, pipe.num_timesteps))

    assert torch.equal(draw(tiny_pipe, callback_on_step_end=callback), plain)
    assert seen == [(3.0, 4)] * 4


def test_prompts_are_encoded_without_a_unet_and_nothing_is_drawn(
    tiny_pipe: TextToImagePipeline, tmp_path: Path
) -> None:
    tiny_pipe.save_pretrained(tmp_path)
    encoder = TextToImagePipeline.from_pretrained(tmp_path, unet=None, scheduler=None)
    for found, expected in zip(encoder.encode_prompt(PROMPTS), tiny_pipe.encode_prompt(PROMPTS), strict=True):
        assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="loaded without its UNet or scheduler"):
        encoder(PROMPTS)


def test_before_the_first_call_there_is_no_state_of_one(tiny_pipe: TextToImagePipeline) -> None:
    fresh = TextToImagePipeline(**tiny_pipe.components)
    assert not hasattr(fresh, "interrupt") and not hasattr(fresh, "num_timesteps")
