"""One query followed through one head of cross-attention: its q, every token's k, the weights, V and what comes out.

The memory has two readers, and a reading is of one pass of either: every place of a picture asks (the UNet), or every
token of a translation as it is written (the decoder). The same `MultiHeadAttention` answers both.

Shapes: H heads, N queries (positions of a layer's grid, or tokens that are written), T tokens of memory, D width of the
layer, E = D/H width of one head, M width of the memory, C channels, h×w pixels.
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
    """Every number between one query and its answer, in one head: eq. 1 of arXiv 1706.03762 for one row of Q.

    tokens: the T tokens of the memory. q (E,), k (T, E), products = q·k (T,), scaled = products / √E (T,),
    mask (T,), True = may be read, weights = softmax(scaled) (T,), v (T, E), out = Σ weights·v (E,).
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
    """What all queries of one layer asked of the memory in one pass, all heads, in fp32 on the CPU.

    layer: its name. tokens: of the memory. x (N, D) and memory (T, M): what the layer was given. q (H, N, E) is x
    projected by its `to_q`; k and v (H, T, E) are the memory projected by its `to_k` and `to_v`. mask (T,).
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
            ValueError: there is no such position or head.
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
class Drawing:
    """A picture and its way there: `states[s]` (1, C, h, w) is what the UNet saw at step s, noise at first.

    `noise` is the noise level of each step, from 1 to nearly 0; `picture` and `seen(step)` are (h, w, 3) uint8.
    `decode` makes pictures of states, which a VAE's latents are not yet.
    """

    prompt: str
    picture: Tensor
    states: tuple[Tensor, ...]
    timesteps: tuple[Tensor, ...]
    noise: tuple[float, ...]
    decode: Callable[[Tensor], Tensor]

    def seen(self, step: int) -> Tensor:
        """The noisy picture the UNet saw at a step."""
        return _pixels(self.decode(self.states[step]))


@dataclass(frozen=True)
class PictureReading(Reading):
    """A reading of the UNet: position n is row n // w, column n % w of the layer's `grid` (h, w)."""

    step: int
    noise: float
    grid: tuple[int, int]
    size: tuple[int, int]

    def place(self, x: int, y: int) -> int:
        """The position in which a pixel lies, x to the right and y down.

        Raises:
            ValueError: the pixel lies outside the picture.
        """
        height, width = self.size
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"there is no pixel ({x}, {y}) in a picture of {width}×{height}")
        rows, columns = self.grid
        return y * rows // height * columns + x * columns // width


@dataclass(frozen=True)
class TextReading(Reading):
    """A reading of the decoder: position n asks where to look when it writes `written[n]`, the last one the end."""

    text: str
    translation: str
    written: tuple[str, ...]


@torch.no_grad()
def draw_states(
    pipe: TextToImagePipeline, prompt: str, seed: int = 0, steps: int | None = None, guidance: float | None = None
) -> Drawing:
    """Draw a picture, the very one `pipe` draws of this seed, and keep what the UNet saw at each step.

    Steps and guidance are the model's own where they are not given.

    Raises:
        ValueError: what the pipeline refuses; the message says what, in one line.
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
    return Drawing(prompt, picture, tuple(states), tuple(timesteps), noise, decode)


@torch.no_grad()
def follow_picture(pipe: TextToImagePipeline, drawing: Drawing, step: int, layer: str) -> PictureReading:
    """What one of `unet.attention_layers` read at a step, 0 to steps-1, of a drawing.

    The step's pass is repeated with the prompt alone: guidance adds a pass with the negative prompt beside it, and
    the two meet only behind the UNet.

    Raises:
        ValueError: there is no such step or layer.
    """
    _check_index("step", step, len(drawing.states))
    if layer not in pipe.unet.attention_layers:
        raise ValueError(f"there is no layer {layer!r}: choose one of {', '.join(pipe.unet.attention_layers)}")
    memory, token_mask = pipe.encode_prompt([drawing.prompt])
    module = pipe.unet.get_submodule(f"{layer}.attention.cross_attention")
    state = drawing.states[step]
    read = _projections(module, lambda: pipe.unet(state, drawing.timesteps[step], memory, token_mask))
    tokens = pipe.tokenizer.convert_ids_to_tokens(pipe.tokenizer(drawing.prompt, verbose=False)["input_ids"])
    height, width = state.shape[-2:]
    return PictureReading(
        layer=layer,
        tokens=tuple(tokens),
        mask=token_mask[0].cpu(),
        **read,
        step=step,
        noise=drawing.noise[step],
        grid=pipe.unet.attention_grids(height, width)[layer],
        size=(height * pipe.vae_scale_factor, width * pipe.vae_scale_factor),
    )


@torch.no_grad()
def follow_text(pipe: TranslationPipeline, text: str, layer: str) -> TextReading:
    """What a decoder layer, "decoder.0" the first, read while it wrote the translation of a text.

    The finished sentence is read once more, all tokens at a time, each seeing only those before it.

    Raises:
        ValueError: there is no such layer, or the pipeline refuses the text; the message says what, in one line.
    """
    decoder = pipe.text_encoder.decoder
    if layer not in decoder_layers(pipe):
        raise ValueError(f"there is no layer {layer!r}: choose one of {', '.join(decoder_layers(pipe))}")
    (translation,) = pipe(text)
    spelled = pipe.tokenizer.convert_tokens_to_ids
    device = pipe._execution_device
    source = torch.tensor([spelled(translation.source_tokens)], device=device)  # (1, T)
    target = torch.tensor([[pipe.tokenizer.bos_token_id, *spelled(translation.tokens[:-1])]], device=device)  # (1, N)
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
    """Names of the decoder's layers, in the order they run."""
    return [f"decoder.{i}" for i in range(len(pipe.text_encoder.decoder))]


def _projections(module: MultiHeadAttention, run: Callable[[], object]) -> dict[str, Tensor]:
    """What a module's projections are given and give while `run` runs, for the only row of the batch.

    Hooks on the instance's own `to_q`, `to_k` and `to_v`, so that the numbers are those the model computes with; a
    pass in another thread is not heard.
    """
    heard: dict[str, tuple[Tensor, Tensor]] = {}
    thread = threading.get_ident()

    def listen(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            if threading.get_ident() == thread:
                heard[name] = inputs[0], out

        return hook

    with ExitStack() as hooks:
        for name in ("to_q", "to_k", "to_v"):
            hooks.callback(getattr(module, name).register_forward_hook(listen(name)).remove)
        run()
    (x, q), (memory, k), (_, v) = (heard[name] for name in ("to_q", "to_k", "to_v"))
    split = {"q": module.split_heads(q), "k": module.split_heads(k), "v": module.split_heads(v)}  # (1, H, N or T, E)
    return {name: tensor[0].float().cpu() for name, tensor in ({"x": x, "memory": memory} | split).items()}


def _pixels(latents: Tensor) -> Tensor:
    """(1, 3, h, w) in [-1, 1] -> (h, w, 3) uint8; what lies beyond is cut off."""
    return ((latents[0].float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)


def _check_index(what: str, index: int, count: int) -> None:
    if not 0 <= index < count:
        raise ValueError(f"there is no {what} {index}: they go from 0 to {count - 1}")
