"""One query followed through one head of cross-attention: its q, every token's k, the weights, V and the output.

The memory has two readers. In the UNet every position of the picture is a query; in the text decoder every token of the
translation is. Both use the same `MultiHeadAttention`. A `Reading` holds one pass of one layer.

Shapes: H heads, N queries (positions of a layer's grid, or target tokens), T tokens of memory, D width of the layer,
E = D/H width of one head, M width of the memory, C channels, h×w pixels.
"""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from pipelines.text_to_image import TextToImagePipeline
from pipelines.text_to_text import TranslationPipeline
from unet_xattn.attention import MultiHeadAttention


@dataclass(frozen=True)
class Query:
    """All values between one query and its output, in one head: eq. 1 of arXiv 1706.03762 for one row of Q.

    tokens: the T tokens of the memory. q (E,), k (T, E), products = q·k (T,), scaled = products / √E (T,),
    mask (T,), True = may be attended, weights = softmax(scaled) (T,), v (T, E), out = Σ weights·v (E,).
    """

    tokens: tuple[str, ...]
    q: Tensor
    k: Tensor
    products: Tensor
    scaled: Tensor
    mask: Tensor
    weights: Tensor
    v: Tensor
    out: Tensor


@dataclass(frozen=True)
class Reading:
    """One pass of one cross-attention layer: all queries and heads, in fp32 on the CPU.

    layer: name of the layer. tokens: the T tokens of the memory. x (N, D) and memory (T, M): the layer's inputs.
    q (H, N, E): x projected by `to_q`; k and v (H, T, E): the memory projected by `to_k` and `to_v`. mask (T,).
    """

    layer: str
    tokens: tuple[str, ...]
    mask: Tensor
    x: Tensor
    memory: Tensor
    q: Tensor
    k: Tensor
    v: Tensor

    def query(self, position: int, head: int) -> Query:
        """Follow the query of a position, 0 to N-1, through a head, 0 to H-1.

        Raises:
            ValueError: the position or the head does not exist.
        """
        heads, positions, width = self.q.shape
        _check_index("head", head, heads)
        _check_index("position", position, positions)
        q, k, v = self.q[head, position], self.k[head], self.v[head]
        products = k @ q  # (T,)
        scaled = products / width**0.5
        weights = scaled.masked_fill(~self.mask, -torch.inf).softmax(dim=0)
        return Query(self.tokens, q, k, products, scaled, self.mask, weights, v, weights @ v)


@dataclass(frozen=True)
class Trajectory:
    """A generated picture and the sampler's path to it: `states[s]` (1, C, h, w) is the UNet's input at step s.

    `noise` is the noise level of each step, from 1 to nearly 0; `picture` and `seen(step)` are (h, w, 3) uint8.
    `decode` turns a state into a picture: a latent model's states are not pictures yet.
    """

    prompt: str
    picture: Tensor
    states: tuple[Tensor, ...]
    timesteps: tuple[Tensor, ...]
    noise: tuple[float, ...]
    decode: Callable[[Tensor], Tensor]

    def seen(self, step: int) -> Tensor:
        """The UNet's input at a step, as a noisy picture."""
        return _pixels(self.decode(self.states[step]))


@dataclass(frozen=True)
class PictureReading(Reading):
    """A reading of the UNet: position n is row n // w, column n % w of the layer's `grid` (h, w)."""

    step: int
    noise: float
    grid: tuple[int, int]
    size: tuple[int, int]

    def place(self, x: int, y: int) -> int:
        """The position that contains a pixel, x to the right and y down.

        Raises:
            ValueError: the pixel lies outside the picture.
        """
        height, width = self.size
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"pixel ({x}, {y}) lies outside the picture of {width}×{height}")
        rows, columns = self.grid
        return y * rows // height * columns + x * columns // width


@dataclass(frozen=True)
class TextReading(Reading):
    """A reading of the decoder: position n is the query that writes `written[n]`; the last one writes the end token."""

    text: str
    translation: str
    written: tuple[str, ...]


@torch.no_grad()
def draw_states(
    pipe: TextToImagePipeline, prompt: str, seed: int = 0, steps: int | None = None, guidance: float | None = None
) -> Trajectory:
    """Draw the picture that `pipe` draws with this seed, and keep the UNet's input at each step.

    Steps and guidance default to the model's own.

    Raises:
        ValueError: the pipeline refuses an argument; the message is one line.
    """
    size, device = pipe.unet.config.sample_size, pipe._execution_device
    generator = torch.Generator().manual_seed(seed)
    shape = (1, pipe.unet.config.in_channels, size, size)
    states = [randn_tensor(shape, generator=generator, device=device, dtype=pipe.unet.dtype)]
    timesteps: list[Tensor] = []

    def keep(_: Any, step: int, timestep: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        timesteps.append(timestep)
        states.append(values["latents"])
        return {}

    pipe(
        prompt,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=states[0],
        generator=generator,
        output_type="latent",
        callback_on_step_end=keep,
    )
    noise = tuple(float(timestep) / pipe.scheduler.config.num_train_timesteps for timestep in timesteps)
    picture = _pixels(pipe.decode_latents(states.pop()))
    decode = torch.no_grad()(pipe.decode_latents)
    return Trajectory(prompt, picture, tuple(states), tuple(timesteps), noise, decode)


@torch.no_grad()
def follow_picture(pipe: TextToImagePipeline, trajectory: Trajectory, step: int, layer: str) -> PictureReading:
    """The reading of one of `unet.attention_layers` at a step, 0 to steps-1, of a trajectory.

    The pass of that step is repeated for the prompt alone. Guidance adds a pass for the negative prompt, but the two
    are only combined after the UNet.

    Raises:
        ValueError: the step or the layer does not exist.
    """
    _check_index("step", step, len(trajectory.states))
    if layer not in pipe.unet.attention_layers:
        raise ValueError(f"layer {layer!r} does not exist: choose one of {', '.join(pipe.unet.attention_layers)}")
    memory, token_mask = pipe.encode_prompt([trajectory.prompt])
    module = pipe.unet.get_submodule(f"{layer}.attention.cross_attention")
    state = trajectory.states[step]
    read = _projections(module, lambda: pipe.unet(state, trajectory.timesteps[step], memory, token_mask))
    tokens = pipe.tokenizer.convert_ids_to_tokens(pipe.tokenizer(trajectory.prompt, verbose=False)["input_ids"])
    height, width = state.shape[-2:]
    return PictureReading(
        layer=layer,
        tokens=tuple(tokens),
        mask=token_mask[0].cpu(),
        **read,
        step=step,
        noise=trajectory.noise[step],
        grid=pipe.unet.attention_grids(height, width)[layer],
        size=(height * pipe.vae_scale_factor, width * pipe.vae_scale_factor),
    )


@torch.no_grad()
def follow_text(pipe: TranslationPipeline, text: str, layer: str) -> TextReading:
    """The reading of a decoder layer, "decoder.0" the first, for the translation of a text.

    The finished translation passes through the decoder once more, all tokens at once, under the causal mask.

    Raises:
        ValueError: the layer does not exist, or the pipeline refuses the text; the message is one line.
    """
    decoder = pipe.text_encoder.decoder
    if layer not in decoder_layers(pipe):
        raise ValueError(f"layer {layer!r} does not exist: choose one of {', '.join(decoder_layers(pipe))}")
    (translation,) = pipe(text)
    ids = pipe.tokenizer.convert_tokens_to_ids
    device = pipe._execution_device
    source = torch.tensor([ids(translation.source_tokens)], device=device)  # (1, T)
    target = torch.tensor([[pipe.tokenizer.bos_token_id, *ids(translation.tokens[:-1])]], device=device)  # (1, N)
    memory = pipe.text_encoder.encode(source)
    module = decoder[int(layer.rpartition(".")[2])].cross_attention
    read = _projections(module, lambda: pipe.text_encoder.decode(target, memory))
    return TextReading(
        layer=layer,
        tokens=tuple(translation.source_tokens),
        mask=torch.ones(source.shape[1], dtype=torch.bool),
        **read,
        text=text,
        translation=translation.text,
        written=tuple(translation.tokens),
    )


def decoder_layers(pipe: TranslationPipeline) -> list[str]:
    """The names of the decoder's layers, in the order they run."""
    return [f"decoder.{i}" for i in range(len(pipe.text_encoder.decoder))]


def _projections(module: MultiHeadAttention, run: Callable[[], object]) -> dict[str, Tensor]:
    """The inputs and outputs of a module's projections during `run`, for the only row of the batch.

    Hooks on this instance's `to_q`, `to_k` and `to_v` give the very numbers that the model computes with. Passes in
    other threads are ignored.
    """
    captured: dict[str, tuple[Tensor, Tensor]] = {}
    thread = threading.get_ident()

    def capture(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            if threading.get_ident() == thread:
                captured[name] = inputs[0], out

        return hook

    with ExitStack() as hooks:
        for name in ("to_q", "to_k", "to_v"):
            hooks.callback(getattr(module, name).register_forward_hook(capture(name)).remove)
        run()
    (x, q), (memory, k), (_, v) = (captured[name] for name in ("to_q", "to_k", "to_v"))
    heads = {"q": module.split_heads(q), "k": module.split_heads(k), "v": module.split_heads(v)}  # (1, H, N or T, E)
    return {name: tensor[0].float().cpu() for name, tensor in ({"x": x, "memory": memory} | heads).items()}


def _pixels(latents: Tensor) -> Tensor:
    """(1, 3, h, w) in [-1, 1] -> (h, w, 3) uint8; values outside the range are clipped."""
    return ((latents[0].float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)


def _check_index(axis: str, index: int, count: int) -> None:
    if not 0 <= index < count:
        raise ValueError(f"{axis} {index} does not exist: choose 0 to {count - 1}")
