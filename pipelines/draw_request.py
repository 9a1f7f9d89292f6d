"""Drawing what is asked for, once: the flow is integrated, attention changed and recorded, callbacks called.

Shapes: B pictures, C channels at the end of the flow, h×w positions of a picture or of a VAE's latent.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from pipelines.callbacks import Call, Callback
from pipelines.recording import encode_concepts, read_concepts, recorder
from pipelines.request import Request
from pipelines.samplers import integrate
from unet_xattn import AttentionTrace
from unet_xattn.attention import RecordLayer, in_turn

Change = Callable[[int, float, Mapping[str, slice]], RecordLayer | None]
"""Called before each pass with its step, its noise level, and the rows of its batch that are the "prompt" or the
"negative" of each picture; returns the `record` argument of the pass, which may change its attention."""

Read = Callable[[Tensor, RecordLayer], Any]
"""Called with latents (B, C, h, w): the UNet reads the prompts at them, with this as its `record` argument."""

BeforeStep = Callable[[float, Tensor, Read], Tensor]
"""Called before each step with its noise level, the latents (B, C, h, w) and a `Read`; returns the latents to take it
from."""

AfterStep = Callable[[int, float, Tensor], Tensor]
"""Called after each step with its number, and with the latents (B, C, h, w) and the noise level that they have now;
returns those to continue with."""


def draw_request(
    pipe: DiffusionPipeline,
    asked: Request,
    output_type: str,
    attention: AttentionTrace | None = None,
    callback: Callback | None = None,
    inputs: Sequence[str] = (),
    ignore_below: float = 1.0,
    change: Change | None = None,
    change_self: Change | None = None,
    before_step: BeforeStep | None = None,
    after_step: AfterStep | None = None,
) -> Any:
    """Draw pictures once with our pipeline, and return them; arguments as of its call."""
    count, guided = len(asked.prompts), asked.guidance_scale != 1
    low, high = asked.guidance_interval
    call = Call(asked.guidance_scale, guided, read_negative=guided)
    if attention is not None:
        if (change or change_self) and attention.concepts:
            raise ValueError("concepts are read beside a prompt as it is: trace edits and changes without concepts")
        branches = {"prompt": asked.prompts} | ({"negative": asked.negatives} if guided else {})
        settings = asked.settings | {"scheduler": type(pipe.scheduler).__name__}
        concepts = encode_concepts(attention.concepts, pipe.tokenizer, pipe.encode_prompt)
        described = pipe.recording(branches, asked.size, asked.steps, settings, attention.concepts)
        attention.start(described, concepts.spelled)

    # Both branches are encoded together, so that they have the same padding and run as one batch.
    memory, token_mask = pipe.encode_prompt(asked.negatives + asked.prompts if guided else asked.prompts)
    read_mask = token_mask.clone()
    for row, tokens in zip(read_mask[-count:], asked.ignored, strict=True):
        row[tokens] = False

    def mask_at(sigma: float) -> Tensor:
        return read_mask if sigma <= ignore_below else token_mask

    def hooks(step: int, sigma: float, rows: Mapping[str, slice], memory: Tensor) -> dict[str, RecordLayer | None]:
        """What changes the attention of a pass, and then what records it."""
        changing = change(step, sigma, rows) if change else None
        record = in_turn([changing, recorder(pipe.unet, attention, step, rows, memory)])
        return {"record": record, "record_self": change_self(step, sigma, rows) if change_self else None}

    def move(x: Tensor, timestep: Tensor, sigma: float, step: int) -> Tensor:
        """The latents to take a step from."""
        if before_step is None:
            return x
        rows, own, mask = {"prompt": slice(0, count)}, memory[-count:], mask_at(sigma)[-count:]

        def read(x: Tensor, record: RecordLayer) -> Any:
            changing = change(step, sigma, rows) if change else None
            return pipe.unet(x, timestep, own.clone(), mask, record=in_turn([changing, record])).sample

        return before_step(sigma, x, read)

    def denoise(x: Tensor, timestep: Tensor, sigma: float, step: int) -> Tensor:
        """The velocity at x, guided within the interval."""
        mask = mask_at(sigma)
        if attention is not None and attention.concepts:
            read_concepts(pipe.unet, x, timestep, memory[-count:], mask[-count:], attention, step, concepts)
        if call.guided and low < sigma <= high:
            rows = {"negative": slice(0, count), "prompt": slice(count, 2 * count)}
            both = pipe.unet(torch.cat([x, x]), timestep, memory, mask, **hooks(step, sigma, rows, memory)).sample
            negative, positive = both.chunk(2)
            return negative + call.guidance_scale * (positive - negative)
        rows, own = {"prompt": slice(0, count)}, memory[-count:]
        return pipe.unet(x, timestep, own, mask[-count:], **hooks(step, sigma, rows, own)).sample

    def on_step(step: int, timestep: Tensor, sigma: float, latents: Tensor, clean: Tensor) -> Tensor:
        nonlocal memory
        latents = after_step(step, sigma, latents) if after_step else latents
        if callback is None:
            return latents
        now = {"latents": latents, "prompt_embeds": memory}
        shown = now | ({"clean": pipe.decode_latents(clean)} if "clean" in inputs else {})
        left = pipe._call_back(callback, step, timestep, now, {name: shown[name] for name in inputs})
        memory = left["prompt_embeds"]
        return left["latents"]

    def progress(timesteps: Tensor) -> Iterable[Tensor]:
        call.num_timesteps = len(timesteps)
        return pipe.progress_bar(timesteps)

    with pipe._calling(call):
        noise = pipe.prepare_latents((count, *pipe.latent_shape(*asked.size)), asked.generator, asked.latents)
        latents = integrate(
            denoise,
            noise,
            pipe.scheduler,
            asked.steps,
            asked.generator,
            on_step,
            progress,
            stop=lambda: call.interrupt,
            move=move,
        )
    return _finish(pipe, latents, output_type, attention)


def _finish(pipe: DiffusionPipeline, latents: Tensor, output_type: str, attention: AttentionTrace | None) -> Any:
    """The end of the flow as `output_type` says; a trace gets its pictures."""
    if attention is None and output_type == "latent":  # nothing to decode, which takes a VAE time
        return latents.float()
    pictures = pipe.decode_latents(latents).float()  # (B, 3, h, w)
    if attention is not None:
        shown = pipe.image_processor.postprocess(pictures, output_type="pt")
        attention.finish((shown.permute(0, 2, 3, 1) * 255).round().to(torch.uint8))
    return pipe.image_processor.postprocess(latents.float() if output_type == "latent" else pictures, output_type)
