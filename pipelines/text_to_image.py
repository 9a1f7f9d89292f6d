"""Prompt in, picture out: a diffusers pipeline whose cross-attention can be recorded at every step.

Shapes: B pictures (prompts × pictures per prompt), T tokens, D width of the memory, h×w pixels, C channels at the end
of the flow, f scale factor of the VAE. The flow ends in a picture, or in a VAE's latent with sides f times shorter.
"""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipelines.callbacks import Callback, CallState
from pipelines.checks import check_number, check_text, check_tokens, listed
from pipelines.components import (
    SOURCE,
    TextEncoder,
    Vae,
    check_tokenizer,
    decode_latents,
    encode_pictures,
    encode_text,
    load_components,
    memory_width,
    quiet,
    scale_factor,
)
from pipelines.draw_request import Change, draw_request
from pipelines.edited import active_edits, draw_changed
from pipelines.edits import Edit, paint_all, read_edits
from pipelines.request import check_results, read_request
from pipelines.samplers import OWN, SAMPLERS
from unet_xattn import AttentionTrace, CrossAttentionUNet
from unet_xattn.grounding import Region
from unet_xattn.trace_plan import Recording
from unet_xattn.words import read_text, unknown_words

BUNDLED = Path(__file__).parent / "bundled"

active_traces: ContextVar[tuple[tuple[DiffusionPipeline, AttentionTrace], ...]] = ContextVar(
    "active_traces", default=()
)
"""The open `capture.trace` blocks of this thread (or task), innermost last: each pipeline and the trace it fills."""


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(folder.parent.name for folder in BUNDLED.glob("*/model_index.json"))


def find_model(name: str | Path) -> str:
    """The folder of a bundled model, given its name; a folder with a model, or a hub id, is returned unchanged.

    Raises:
        ValueError: the name is none of these; the message lists the bundled models.
    """
    name = str(name)
    if name in bundled_models():
        return str(BUNDLED / name)
    if Path(name).is_dir() and not (Path(name) / "model_index.json").is_file():
        raise ValueError(f"{name} holds no model: it has no model_index.json (has its run saved a model yet?)")
    if not Path(name).is_dir() and name.count("/") != 1:
        raise ValueError(
            f"model {name!r} not found: give a bundled one ({', '.join(bundled_models())}), a folder or a hub id"
        )
    return name


def read_prompts(tokenizer: PreTrainedTokenizerFast, prompts: list[str], name: str = "prompt") -> tuple[Tensor, Tensor]:
    """Prompts -> token ids (B, T) and the mask of real tokens (B, T).

    Raises:
        ValueError: a prompt has more tokens than the model reads; none is truncated.
    """
    read = tokenizer(prompts, verbose=False)
    for ids in read["input_ids"]:
        check_tokens(ids, tokenizer, name)
    # Padded in a second call: `tokenizer(..., padding=True)` changes the tokenizer's state under other threads.
    padded = tokenizer.pad(read, return_tensors="pt", verbose=False)
    return padded["input_ids"], padded["attention_mask"].bool()


class TextToImagePipeline(CallState, DiffusionPipeline):
    """Draws pictures from prompts by integrating a rectified flow from noise to picture.

    Components: a tokenizer with offsets; the text encoder that computes the memory (ours, or one of `TEXT_ENCODERS`);
    the UNet that reads the memory; any of diffusers' schedulers for flow models (FlowMatchEuler, FlowMatchHeun,
    DPM-Solver++ or UniPC with flow sigmas); and optionally a VAE (one of `VAES`), whose latents the UNet then draws.

    The config also holds the model's own defaults, `num_inference_steps` and `guidance_scale`; `guidable`, whether it
    was trained with caption dropout, so that it knows the empty caption that guidance needs; and `calibration`, how
    far each attention head can be trusted, where that has been measured.

    Without a UNet (None) the pipeline only encodes prompts. `guidance_scale`, `do_classifier_free_guidance`,
    `num_timesteps` and `interrupt` belong to a call and are for its callback, see `CallState`.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components: ClassVar[list[str]] = ["vae"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds", "clean"]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        text_encoder: TextEncoder,
        unet: CrossAttentionUNet | None,
        scheduler: SchedulerMixin | None,
        vae: Vae | None = None,
        calibration: dict[str, list[float]] | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 3.0,
        guidable: bool = True,
    ):
        super().__init__()
        self._calls = {}
        if unet is not None:
            _check_fit(text_encoder, unet, vae)
            unet.to(memory_format=torch.channels_last)  # 5 to 15 % faster on CPUs
        self.register_to_config(
            calibration=calibration,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidable=guidable,
        )
        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder, unet=unet, scheduler=scheduler, vae=vae)
        self.vae_scale_factor = scale_factor(vae)
        multiple = 1 if unet is None else unet.size_multiple
        self.image_processor = VaeImageProcessor(vae_scale_factor=multiple * self.vae_scale_factor)

    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: Any) -> "TextToImagePipeline":
        """Load a bundled model by name, a folder (a finished run is one), or a model of the hub by its id.

        Raises:
            ValueError: the model is not found or its weights are damaged; the message says which.
        """
        path = find_model(name)
        try:
            with quiet():
                kwargs |= load_components(path, kwargs, **{k: v for k, v in kwargs.items() if k in SOURCE})
                pipe = super().from_pretrained(path, use_safetensors=True, **kwargs)
        except OSError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{name} cannot be loaded: not a complete folder here, and not found on the hub: {reason}"
            ) from error
        check_tokenizer(path, pipe.tokenizer, pipe.text_encoder)
        return pipe

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments the pipeline was made with, without its components."""
        return {
            name: self.config[name] for name in ("calibration", "num_inference_steps", "guidance_scale", "guidable")
        }

    @property
    def picture_size(self) -> int:
        """Side of the pictures the model was trained on, in pixels."""
        return self.unet.config.sample_size * self.vae_scale_factor

    def encode_prompt(self, prompt: str | Sequence[str]) -> tuple[Tensor, Tensor]:
        """A prompt, or a list of them, -> memory (B, T, D) and the mask of its real tokens (B, T).

        Raises:
            ValueError: a prompt is not a text, or has more tokens than the model reads; none is truncated.
        """
        prompts = listed(prompt)
        if not prompts:
            raise ValueError("there must be at least one prompt, got an empty list")
        for text in prompts:
            check_text(text, "prompt")
        ids, token_mask = (t.to(self._execution_device) for t in read_prompts(self.tokenizer, prompts))
        memory = encode_text(self.text_encoder, ids, token_mask)
        return memory if self.unet is None else memory.to(self.unet.dtype), token_mask

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, h, w) in [-1, 1] -> latents (B, C, h/f, w/f); without a VAE the pictures themselves."""
        return encode_pictures(self.vae, pictures.to(self._execution_device)).to(self.unet.dtype)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h/f, w/f), the end of the flow -> pictures (B, 3, h, w), about in [-1, 1]."""
        return decode_latents(self.vae, latents.to(self._execution_device))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        attention: AttentionTrace | None = None,
        ignore: Sequence[Sequence[int]] = (),
        ignore_below: float = 1.0,
        change: Change | None = None,
        change_self: Change | None = None,
        edits: Sequence[Edit] | Sequence[Sequence[Edit]] = (),
        regions: Mapping[str, Region] | None = None,
        image: Image.Image | Sequence[Image.Image] | None = None,
    ) -> ImagePipelineOutput:
        """Draw pictures.

        Args:
            prompt: what to draw; a list draws a picture for each.
            height, width: in pixels; by default the size the model was trained on.
            num_inference_steps: steps from noise to picture; by default the model's own number.
            guidance_scale: w of classifier-free guidance (arXiv 2207.12598): the velocity is negative + w · (positive −
                negative), predicted for the two prompts. 1 is no guidance, and the only scale for an empty negative
                prompt where `config.guidable` is False. By default the model's own.
            guidance_interval: guide only at noise levels within (low, high] of [0, 1] (arXiv 2404.07724).
            negative_prompt: what to steer away from; the empty caption by default.
            num_images_per_prompt: pictures of each prompt.
            generator: source of the noise, also of the noise that a stochastic scheduler adds. With a list each
                picture has its own, so that a seed gives the same picture alone and in a batch.
            latents: the initial noise itself, (B, C, height / f, width / f).
            output_type: "pil", "np" (B, h, w, 3) in [0, 1], "pt" (B, 3, h, w) in [0, 1] or "latent": the end of the
                flow unchanged, a picture in [-1, 1] or a VAE's latent.
            callback_on_step_end: called as f(pipe, step, timestep, {"latents": ...}) after each step; tensors that it
                returns replace the current ones. It can assign `pipe._guidance_scale`, where 0 or 1 switches guidance
                off, and `pipe._interrupt = True`, which ends the call with the picture so far.
            callback_on_step_end_tensor_inputs: of "latents"; "prompt_embeds", the memory, where there is guidance that
                of the negative prompts first; and "clean", the predicted clean picture x0, (B, 3, height, width) in
                [-1, 1] (a VAE decodes it), which cannot be replaced.
            attention: the trace that records the cross-attention; `with trace(pipe) as attention` provides one.
            ignore: for each prompt the positions of tokens (`Word.tokens`) that no image position may attend to.
            ignore_below: the noise level in [0, 1] at and below which those tokens are ignored.
            change: changes the attention of each pass of the UNet, see `Change`. A trace records what was used.
            change_self: likewise for the attention of positions to one another.
            edits: of `pipelines.edits`, for all prompts, or a list for each: the picture is drawn twice from the same
                noise, without them and with them, and the output is an `EditedPictures`. A trace records the latter.
            image: a picture to edit, or one for each prompt, which describes it; in a size that the model draws. It
                takes the place of the picture without edits.
            regions: phrases of the prompt and where to draw them: a box (x0, y0, x1, y1) or a mask (height, width).

        Returns:
            An output with `.images`, or a tuple of them where `return_dict` is False.

        Raises:
            ValueError: an argument is out of its range; the message says which.
        """
        asked = read_request(
            self,
            prompt,
            negative_prompt,
            ignore,
            (height, width),
            num_inference_steps,
            guidance_scale,
            guidance_interval,
            num_images_per_prompt,
            generator,
            latents,
            image,
        )
        callback, inputs = callback_on_step_end, callback_on_step_end_tensor_inputs
        if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
            inputs = callback.tensor_inputs
        check_results(output_type, callback, inputs, self._callback_tensor_inputs, attention)
        check_number(ignore_below, "noise level to ignore below", 0, 1)
        draw = partial(
            draw_request,
            self,
            output_type=output_type,
            attention=self._open_trace() if attention is None else attention,
            callback=callback,
            inputs=inputs,
            ignore_below=ignore_below,
            change_self=change_self,
        )
        edits = edits or next((own for pipe, own in reversed(active_edits.get()) if pipe is self), ())
        layers = dict.fromkeys(self.unet.attention_layers, self.unet.config.heads)
        lists = [own for own in read_edits(edits, len(listed(prompt)), layers) for _ in range(num_images_per_prompt)]
        out = draw_changed(draw, asked, lists, paint_all(regions), change, self.tokenizer)
        self.maybe_free_model_hooks()
        return out if return_dict else out.to_tuple()

    def prepare_latents(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None,
    ) -> Tensor:
        """The initial noise (B, C, h/f, w/f): `latents`, or drawn from the generator."""
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.unet.dtype)
        return latents.to(self._execution_device, self.unet.dtype).to(memory_format=torch.channels_last)

    def recording(
        self,
        texts: dict[str, list[str]],
        size: tuple[int, int],
        steps: int,
        settings: dict[str, Any],
        concepts: Sequence[str] = (),
    ) -> Recording:
        """The description of a trace of these texts: for each branch, one text for each picture."""
        read = {text: read_text(text, self.tokenizer) for branch in texts.values() for text in branch}
        unknown = {word for text in [*texts["prompt"], *concepts] for word in unknown_words(text, self.tokenizer)}
        grids = self.unet.attention_grids(*(side // self.vae_scale_factor for side in size))
        return Recording(
            {branch: [read[text] for text in given] for branch, given in texts.items()},
            size,
            grids,
            dict.fromkeys(grids, self.unet.config.heads),
            steps,
            self.config.calibration,
            settings | {"unknown_words": sorted(unknown)},
        )

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """The shape (C, h/f, w/f) in which the UNet draws a picture of this size in pixels."""
        return self.unet.config.in_channels, height // self.vae_scale_factor, width // self.vae_scale_factor

    def _open_trace(self) -> AttentionTrace | None:
        """The trace of the innermost open `capture.trace` block that records this pipeline."""
        return next((attention for pipe, attention in reversed(active_traces.get()) if pipe is self), None)


def with_sampler(pipe: TextToImagePipeline, name: str) -> TextToImagePipeline:
    """A pipeline of the same networks (not copies) with another sampler.

    Raises:
        ValueError: the sampler does not exist.
    """
    if name not in (OWN, *SAMPLERS):
        raise ValueError(f"the sampler is one of {OWN}, {'; '.join(SAMPLERS)}, not {name[:40]!r}")
    parts = pipe.components | ({} if name == OWN else {"scheduler": SAMPLERS[name]()})
    other = TextToImagePipeline(**parts, **pipe.settings)
    other.set_progress_bar_config(disable=True)
    return other


def _check_fit(text_encoder: TextEncoder, unet: CrossAttentionUNet, vae: Vae | None) -> None:
    """Raise ValueError unless the UNet reads this encoder's memory, and draws this VAE's latents or pictures."""
    given, read = memory_width(text_encoder), unet.config.memory_width
    if given != read:
        raise ValueError(f"the text encoder's memory has width {given}, the UNet reads width {read}")
    channels = 3 if vae is None else vae.config.latent_channels
    if channels != unet.config.in_channels:
        source = "a picture" if vae is None else "the VAE's latent"
        raise ValueError(f"{source} has {channels} channels, the UNet draws {unet.config.in_channels}")
