"""The attention of a diffusers pipeline at chosen noise levels of an existing picture.

The pipeline's own call runs, with noisy latents and with a scheduler that visits the levels instead of drawing. So the
text, the sizes and whatever else its denoiser needs are prepared as always.

Shapes: D draws, C channels of the latents, h×w pixels of the picture.
"""

import copy
import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC, AutoencoderKL, DiffusionPipeline, SchedulerMixin
from torch import Tensor

from pipelines.components import to_tensor
from pipelines.tracing.watch import CannotRecordError, denoiser_of, watched
from unet_xattn import AttentionTrace

UNET_MULTIPLE, TRANSFORMER_MULTIPLE = 8, 2
"""Sides of latents are multiples of this: UNets halve them up to three times, transformers cut them into patches."""


def native_size(pipe: DiffusionPipeline) -> tuple[int, int]:
    """The side of the pictures that a pipeline draws by default, in pixels, and of what sides should be multiples.

    Raises:
        CannotRecordError: it has no VAE, takes no latents, or does not say its size.
    """
    takes = inspect.signature(type(pipe).__call__).parameters
    has_vae = isinstance(getattr(pipe, "vae", None), AutoencoderKL | AutoencoderDC)
    if not {"latents", "height", "width"} <= takes.keys() or not has_vae:
        raise CannotRecordError(f"{type(pipe).__name__} cannot attribute: it takes no latents made by its VAE")
    factor = getattr(pipe, "vae_scale_factor", None)
    side = getattr(pipe, "default_sample_size", None) or config_of(pipe).get("sample_size")
    if factor is None or side is None:
        raise CannotRecordError(f"{type(pipe).__name__} cannot attribute: the size of its pictures is not known")
    multiple = UNET_MULTIPLE if "unet" in pipe.components else TRANSFORMER_MULTIPLE
    return side * factor, multiple * factor


def attribute_any(
    pipe: DiffusionPipeline, fitted: np.ndarray, caption: str, settings: dict[str, Any], attention: AttentionTrace
) -> None:
    """Record into `attention` what a picture (1, h, w, 3) uint8 reads of a caption.

    settings: "levels", "draws" and "seeds", as `attribute` has them.
    """
    device, height, width = pipe._execution_device, *fitted.shape[1:3]
    clean = _encoded(pipe.vae, to_tensor(fitted).to(device))
    generator = torch.Generator().manual_seed(settings["seeds"][0])
    noise = torch.randn((settings["draws"], *clean.shape[1:]), generator=generator)
    visiting = copy.copy(pipe)
    visiting.scheduler, noisy = _visiting(pipe, clean, noise, settings["levels"])
    given: dict[str, Any] = {"height": height, "width": width, "num_inference_steps": len(settings["levels"])}
    given |= {"num_images_per_prompt": settings["draws"], "latents": noisy.to(device)}
    if not config_of(pipe).get("guidance_embeds"):
        given["guidance_scale"] = 1.0  # the prompt alone
    if "use_resolution_binning" in inspect.signature(type(pipe).__call__).parameters:
        given["use_resolution_binning"] = False
    with watched(visiting, attention):
        visiting(prompt=caption, **given)
    attention.average_images(replace(attention.recording, settings={**attention.recording.settings, **settings}))


def config_of(pipe: DiffusionPipeline) -> Any:
    """The config of the network that draws."""
    return denoiser_of(pipe).config


def _encoded(vae: AutoencoderKL | AutoencoderDC, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, h, w) in [-1, 1] -> latents (B, C, h/f, w/f) in fp32 on the CPU, as a denoiser knows them."""
    encoded = vae.encode(pictures.to(vae.dtype))
    latents = encoded.latent_dist.mode() if isinstance(vae, AutoencoderKL) else encoded.latent
    return ((latents - (vae.config.get("shift_factor") or 0)) * vae.config.scaling_factor).float().cpu()


def _visiting(
    pipe: DiffusionPipeline, clean: Tensor, noise: Tensor, levels: list[float]
) -> tuple[SchedulerMixin, Tensor]:
    """The pipeline's scheduler, except that its steps lead from level to level, whatever is predicted.

    clean (1, C, h, w), noise (D, C, h, w). Also returns the latents of the first level, as the pipeline takes them.
    """
    pack = getattr(pipe, "_pack_latents", None)
    times, noisy = [], []
    for level in levels:
        share, deviation, time = _signal_noise_time(pipe.scheduler, level)
        latents = share * clean + deviation * noise
        noisy.append(pack(latents, *latents.shape) if pack else latents)
        times.append(time)

    class Visiting(type(pipe.scheduler)):  # type: ignore[misc]
        order = 1
        init_noise_sigma = property(lambda self: 1.0)

        def set_timesteps(
            self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None, **_: Any
        ) -> None:
            self.timesteps = torch.tensor(times, device=device)
            self.num_inference_steps = len(times)

        def scale_model_input(self, sample: Tensor, *_: Any, **__: Any) -> Tensor:
            return sample

        def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
            following = min(times.index(float(timestep)) + 1, len(times) - 1)
            return (noisy[following].to(sample),)

    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.__class__ = Visiting
    return scheduler, noisy[0]


def _signal_noise_time(scheduler: SchedulerMixin, level: float) -> tuple[float, float, float]:
    """Factors of the picture and of the noise, and the timestep, at a noise level.

    A level s of a rectified flow is (1 - s) · picture + s · noise. Where diffusion keeps the variance, it is the
    timestep with the same ratio of noise to picture.
    """
    config = scheduler.config
    if "FlowMatch" in type(scheduler).__name__ or config.get("prediction_type") == "flow_prediction":
        return 1 - level, level, level * config.num_train_timesteps
    alphas = scheduler.alphas_cumprod.double()
    ratios = ((1 - alphas) / alphas).sqrt()
    time = int((ratios.log() - torch.tensor(level / (1 - level)).log()).abs().argmin())
    return float(alphas[time].sqrt()), float((1 - alphas[time]).sqrt()), float(time)
