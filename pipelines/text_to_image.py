"""Prompt in, picture out: a diffusers pipeline whose every guided step can be watched.

Shapes: B pictures (prompts × pictures per prompt), T tokens, D width of the memory, h×w pixels, C channels of what the
flow draws: a picture, or a VAE's latent, whose sides are f times shorter.
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from copy import deepcopy
from inspect import signature
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    ImagePipelineOutput,
    SchedulerMixin,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipelines.components import (
    SOURCE,
    TextEncoder,
    Vae,
    check_size,
    check_tokenizer,
    decode_latents,
    encode_pictures,
    encode_text,
    load_components,
    memory_width,
    scale_factor,
)
from unet_xattn import AttentionTrace, CrossAttentionUNet
from unet_xattn.recording import Recording
from unet_xattn.words import read_text

BUNDLED = Path(__file__).parent / "bundled"

active_traces: ContextVar[tuple[tuple[DiffusionPipeline, AttentionTrace], ...]] = ContextVar(
    "active_traces", default=()
)
"""What `capture.trace` opened in this thread (or task), innermost last: which pipeline is recorded, and where to."""


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(folder.parent.name for folder in BUNDLED.glob("*/model_index.json"))


def locate(name: str | Path) -> str:
    """The folder of a bundled model's name; a folder of a model, or a hub id, as it is.

    Raises:
        ValueError: it is none of them; the message lists the bundled models.
    """
    name = str(name)
    if name in bundled_models():
        return str(BUNDLED / name)
    if Path(name).is_dir() and not (Path(name) / "model_index.json").is_file():
        raise ValueError(f"{name} holds no model: it has no model_index.json (has its run saved one yet?)")
    if not Path(name).is_dir() and name.count("/") != 1:
        raise ValueError(
            f"there is no model {name!r}: give a bundled one ({', '.join(bundled_models())}), a folder or a hub id"
        )
    return name


def read_prompts(tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Prompts -> token ids (B, T) and which of them are real (B, T).

    Raises:
        ValueError: a prompt has more tokens than the model reads; nothing is cut off silently.
    """
    limit = tokenizer.model_max_length
    # Padded afterwards: asked to pad as it reads, a tokenizer changes its own state under other threads.
    read = tokenizer.pad(tokenizer(prompts, verbose=False), return_tensors="pt", verbose=False)
    if read["input_ids"].shape[1] > limit:
        raise ValueError(f"the prompt has {read['input_ids'].shape[1]} tokens, this model reads {limit}: shorten it")
    return read["input_ids"], read["attention_mask"].bool()


def check_guided(guidable: bool, scale: float, negatives: Sequence[str]) -> None:
    """Raise ValueError where guidance would lead away from an empty caption though training left none empty."""
    if scale != 1 and not guidable and not all(text.strip() for text in negatives):
        raise ValueError(
            f"guidance {scale:g} leads away from the empty caption, and this model was trained with none left empty: "
            "keep it at 1, or train with --caption-dropout 0.1"
        )


def _seeds(generator: torch.Generator | list[torch.Generator] | None) -> list[int] | None:
    """The seed of each picture's generator, or of the one they share; None where nobody gave any."""
    if generator is None:
        return None
    return [g.initial_seed() for g in (generator if isinstance(generator, list) else [generator])]


class TextToImagePipeline(DiffusionPipeline):
    """Draws pictures from prompts by integrating a rectified flow from noise to picture.

    Components: a tokenizer with offsets, the text encoder that gives the memory (ours, or one of `TEXT_ENCODERS`), the
    UNet that reads it, and any of diffusers' schedulers for flow models (FlowMatchEuler, FlowMatchHeun, DPM-Solver++ or
    UniPC with flow sigmas); and perhaps a VAE (one of `VAES`), whose latents the UNet then draws. With them, in
    `config`, how the model draws best, `num_inference_steps` and `guidance_scale`, which hold where a call says
    nothing else; `guidable`, whether some captions were left out in training, so that it knows the empty one, which
    guidance leads away from; and in `calibration` how far each attention head can be trusted, where that has been
    measured.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components: ClassVar[list[str]] = ["vae"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "clean"]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        text_encoder: TextEncoder,
        unet: CrossAttentionUNet,
        scheduler: SchedulerMixin,
        vae: Vae | None = None,
        calibration: dict[str, list[float]] | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 3.0,
        guidable: bool = True,
    ):
        super().__init__()
        given, read = memory_width(text_encoder), unet.config.memory_width
        if given != read:
            raise ValueError(f"the text encoder's memory is {given} wide, the UNet reads one of {read}")
        channels = 3 if vae is None else vae.config.latent_channels
        if channels != unet.config.in_channels:
            what = "a picture" if vae is None else "the VAE's latent"
            raise ValueError(f"{what} has {channels} channels, the UNet draws {unet.config.in_channels}")
        self.register_to_config(
            calibration=calibration,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidable=guidable,
        )
        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder, unet=unet, scheduler=scheduler, vae=vae)
        unet.to(memory_format=torch.channels_last)  # 5 to 15 % faster on CPUs
        self.vae_scale_factor = scale_factor(vae)
        self.image_processor = VaeImageProcessor(vae_scale_factor=unet.size_multiple * self.vae_scale_factor)

    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: Any) -> "TextToImagePipeline":
        """Load a bundled model by name, a folder (a finished run is one), or a model of the hub by its id.

        Raises:
            ValueError: there is no such model; the message lists those that are there.
        """
        path = locate(name)
        try:
            return cls._load(path, **kwargs)
        except OSError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{name} cannot be loaded: no whole folder here, nor found on the hub: {reason}"
            ) from error

    @classmethod
    def _load(cls, path: str, **kwargs: Any) -> "TextToImagePipeline":
        """Load a pipeline whose networks are whole."""
        kwargs |= load_components(path, kwargs, **{k: v for k, v in kwargs.items() if k in SOURCE})
        pipe = super().from_pretrained(path, use_safetensors=True, **kwargs)
        check_tokenizer(path, pipe.tokenizer, pipe.text_encoder)
        return pipe

    @property
    def settings(self) -> dict[str, Any]:
        """What the pipeline was made with beside its components."""
        return {
            name: self.config[name] for name in ("calibration", "num_inference_steps", "guidance_scale", "guidable")
        }

    @property
    def picture_size(self) -> int:
        """Side of the pictures the model was trained at, in pixels."""
        return self.unet.config.sample_size * self.vae_scale_factor

    def encode_prompt(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Prompts -> memory (B, T, D) and which of its tokens are real (B, T).

        Raises:
            ValueError: a prompt has more tokens than the model reads; nothing is cut off silently.
        """
        ids, token_mask = (t.to(self._execution_device) for t in read_prompts(self.tokenizer, prompts))
        return encode_text(self.text_encoder, ids, token_mask).to(self.unet.dtype), token_mask

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, h, w) in [-1, 1] -> what the flow ends in, (B, C, h/f, w/f); without a VAE the same."""
        return encode_pictures(self.vae, pictures.to(self._execution_device)).to(self.unet.dtype)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """What the flow ends in, (B, C, h/f, w/f) -> pictures (B, 3, h, w), about in [-1, 1]."""
        return decode_latents(self.vae, latents.to(self._execution_device))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] = ("latents",),
        attention: AttentionTrace | None = None,
        ignore: Sequence[Sequence[int]] = (),
        ignore_below: float = 1.0,
    ) -> ImagePipelineOutput:
        """Draw pictures.

        Args:
            prompt: what to draw; a list draws a picture for each.
            height, width: in pixels, the size the model was trained at by default.
            num_inference_steps: steps from noise to picture; by default as many as the model draws best with.
            guidance_scale: how far to go from the negative prompt's prediction past the prompt's (classifier-free
                guidance, arXiv 2207.12598); 1 is none, the only one where `config.guidable` is False and a negative
                prompt is empty; by default what the model draws best with.
            guidance_interval: guide only at noise levels within (low, high] of [0, 1] (arXiv 2404.07724).
            negative_prompt: what to steer away from; the empty caption by default.
            num_images_per_prompt: pictures of each prompt.
            generator: where the noise comes from, that of the steps too where the scheduler adds some; a list gives
                each picture its own, so that a seed names a picture alone or in a batch.
            latents: the noise itself, (B, C, height / f, width / f).
            output_type: "pil", "np" (B, h, w, 3) in [0, 1], "pt" (B, 3, h, w) in [0, 1] or "latent": the end of the
                flow as it is, a picture in [-1, 1] or a VAE's latent.
            callback_on_step_end: called as f(pipe, step, timestep, {"latents": ...}) after each step; the latents it
                returns replace those that are there. `callback_on_step_end_tensor_inputs` may name "clean" as well:
                the picture, (B, 3, height, width) in [-1, 1], that this step was heading for (a VAE decodes it).
            attention: where to record the cross-attention; `with trace(pipe) as attention` gives one.
            ignore: for each prompt the positions of tokens (`Word.tokens`) that no image position may read.
            ignore_below: noise level in [0, 1] from which on they are not read.

        Returns:
            `.images`, or a tuple with them where `return_dict` is False.

        Raises:
            ValueError: an argument is out of its range; the message says which.
        """
        prompts = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
        height = self.picture_size if height is None else height
        width = self.picture_size if width is None else width
        if num_inference_steps is None:
            num_inference_steps = self.config.num_inference_steps
        guidance_scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        self._check_inputs(prompts, height, width, num_inference_steps, guidance_scale, guidance_interval)
        negatives = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt or ""] * len(prompts)
        if len(negatives) != len(prompts):
            raise ValueError(f"{len(negatives)} negative prompts for {len(prompts)} prompts: give one for each")
        check_guided(self.config.guidable, guidance_scale, negatives)
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt must be 1 or more, got {num_images_per_prompt}")
        if ignore and len(ignore) != len(prompts):
            raise ValueError(f"tokens to ignore for {len(ignore)} of {len(prompts)} prompts: give a list for each")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type must be pil, np, pt or latent, got {output_type!r}")
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            known = ", ".join(self._callback_tensor_inputs)
            raise ValueError(f"callback_on_step_end_tensor_inputs can name {known}, not {', '.join(sorted(unknown))}")
        prompts = [p for p in prompts for _ in range(num_images_per_prompt)]
        negatives = [p for p in negatives for _ in range(num_images_per_prompt)]
        ignore = [tokens for tokens in ignore for _ in range(num_images_per_prompt)]

        if isinstance(generator, list) and len(generator) != len(prompts):
            raise ValueError(f"{len(generator)} generators for {len(prompts)} pictures: give one for each")

        guided = guidance_scale != 1
        attention = self._traced() if attention is None else attention
        if attention is not None:
            settings = {
                "steps": num_inference_steps,
                "guidance_scale": guidance_scale,
                "guidance_interval": list(guidance_interval),
                "scheduler": type(self.scheduler).__name__,
                "seeds": _seeds(generator) if latents is None else None,
            }
            branches = {"prompt": prompts} | ({"negative": negatives} if guided else {})
            attention.start(self.recording(branches, (height, width), num_inference_steps, settings))

        # Both branches are encoded together, so that they are padded alike and run as one batch.
        memory, token_mask = self.encode_prompt(negatives + prompts if guided else prompts)
        sides = (height // self.vae_scale_factor, width // self.vae_scale_factor)
        shape = (len(prompts), self.unet.config.in_channels, *sides)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.unet.dtype)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents are {tuple(latents.shape)}, expected {shape}")
        latents = latents.to(self._execution_device, self.unet.dtype).to(memory_format=torch.channels_last)

        count = len(prompts)
        low, high = guidance_interval
        read_mask = token_mask.clone()  # of the prompts' rows, without what is to be ignored
        for row, tokens in zip(read_mask[-count:], ignore, strict=False):
            if not all(0 <= token < len(row) for token in tokens):
                raise ValueError(f"tokens to ignore are {list(tokens)}, the prompt has tokens 0 to {len(row) - 1}")
            row[list(tokens)] = False

        def denoise(x: Tensor, timestep: Tensor, sigma: float, step: int) -> Tensor:
            """Velocity at x, guided where the noise level says so; only the prompt's half is kept under its name."""
            mask = read_mask if sigma <= ignore_below else token_mask
            if guided and low < sigma <= high:
                branches = {"negative": slice(0, count), "prompt": slice(count, 2 * count)}
                record = attention.recorder(step, branches) if attention else None
                both = self.unet(torch.cat([x, x]), timestep, memory, mask, record=record).sample
                away, towards = both.chunk(2)
                return away + guidance_scale * (towards - away)
            record = attention.recorder(step, {"prompt": slice(0, count)}) if attention else None
            return self.unet(x, timestep, memory[-count:], mask[-count:], record=record).sample

        scheduler = deepcopy(self.scheduler)  # it counts steps: another thread may be drawing with this pipeline
        equal = {}
        # Left alone, these two spend a step on the last 0.001 of noise, where nothing can be told of a direction.
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            equal = {"sigmas": [1 - i / num_inference_steps for i in range(num_inference_steps)]}
        elif isinstance(scheduler, FlowMatchHeunDiscreteScheduler):
            scheduler.sigma_min = 1 / num_inference_steps
        scheduler.set_timesteps(num_inference_steps, device=self._execution_device, **equal)
        drawn_from = {"generator": generator} if "generator" in signature(scheduler.step).parameters else {}
        timesteps = scheduler.timesteps
        with self.progress_bar(total=len(timesteps)) as progress:
            for step, timestep in enumerate(timesteps):
                sigma = float(timestep) / scheduler.config.num_train_timesteps
                prediction = denoise(latents, timestep, sigma, step)
                clean = latents - sigma * prediction
                latents = scheduler.step(prediction, timestep, latents, return_dict=False, **drawn_from)[0]
                if callback_on_step_end is not None:
                    asked = {"latents": latents} if "latents" in callback_on_step_end_tensor_inputs else {}
                    if "clean" in callback_on_step_end_tensor_inputs:
                        asked["clean"] = self.decode_latents(clean)
                    latents = callback_on_step_end(self, step, timestep, asked).pop("latents", latents)
                progress.update()

        images = latents.float()
        if attention is not None or output_type != "latent":
            drawn = self.decode_latents(latents).float()  # (B, 3, h, w)
            if attention is not None:
                shown = self.image_processor.postprocess(drawn, output_type="pt")
                attention.finish((shown.permute(0, 2, 3, 1) * 255).round().to(torch.uint8))
            if output_type != "latent":
                images = self.image_processor.postprocess(drawn, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images) if return_dict else (images,)

    def recording(
        self, texts: dict[str, list[str]], size: tuple[int, int], steps: int, settings: dict[str, Any]
    ) -> Recording:
        """What a trace of these texts (of each branch, one for each picture) will hold."""
        read = {text: read_text(text, self.tokenizer) for branch in texts.values() for text in branch}
        return Recording(
            {branch: [read[text] for text in given] for branch, given in texts.items()},
            size,
            self.unet.attention_grids(*(side // self.vae_scale_factor for side in size)),
            self.unet.config.heads,
            steps,
            self.config.calibration,
            settings,
        )

    def _traced(self) -> AttentionTrace | None:
        return next((attention for pipe, attention in reversed(active_traces.get()) if pipe is self), None)

    def _check_inputs(
        self,
        prompts: list[str],
        height: int,
        width: int,
        steps: int,
        guidance_scale: float,
        guidance_interval: tuple[float, float],
    ) -> None:
        if not prompts or not all(isinstance(p, str) for p in prompts):
            raise ValueError("prompt must be a text or a list of texts, with at least one")
        if not all(p.strip() for p in prompts):
            raise ValueError("the prompt is empty: say what to draw, for example 'a red circle'")
        if not isinstance(steps, Integral) or not 1 <= steps <= 1000:
            raise ValueError(f"num_inference_steps must be a whole number between 1 and 1000, got {steps}")
        if not 0 <= guidance_scale <= 100:
            raise ValueError(f"guidance_scale must be between 0 and 100, got {guidance_scale}")
        if not 0 <= guidance_interval[0] < guidance_interval[1] <= 1:
            raise ValueError(f"guidance_interval must be (low, high) with 0 ≤ low < high ≤ 1, got {guidance_interval}")
        check_size(self.unet, self.vae, height, width)
