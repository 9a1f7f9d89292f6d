"""Where the denoisers of diffusers have text and picture: a row for each class, everything else is observed.

Shapes: L queries and S keys of one attention call, T text keys, N = h·w positions of the picture.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

Grid = tuple[int, int]
Arguments = Mapping[str, Any]


def _grid_of_ids(arguments: Arguments) -> Grid:
    """The grid of packed latents by the coordinates of positions, (N, 3 or 4): number of the picture, y and x.

    The text's positions may precede them.
    """
    ids = arguments["img_ids"] if "img_ids" in arguments else arguments["position_ids"]
    ids = (ids[0] if ids.ndim == 3 else ids)[-arguments["hidden_states"].shape[1] :]
    drawn = ids[ids[:, 0] == ids[0, 0], 1:3]
    height, width = (drawn.amax(dim=0) - drawn.amin(dim=0) + 1).tolist()
    return int(height), int(width)


def _grid_of_shapes(arguments: Arguments) -> Grid:
    """The grid of packed latents by the shapes (frames, h, w) of each picture; the first is what is drawn."""
    shape = arguments["img_shapes"][0]
    shape = shape[0] if isinstance(shape[0], list | tuple) else shape
    return int(shape[-2]), int(shape[-1])


def _grid_of_frames(arguments: Arguments) -> Grid:
    """Height and width of latents (B, frames, height, width, C)."""
    _, _, height, width, _ = arguments["hidden_states"].shape
    return height, width


def _attended(mask: Tensor, text: int, more: int) -> Tensor:
    """A mask (B, T) or (B, T + N) with more real tokens after those of the text."""
    return torch.cat([mask[:, :text], mask.new_ones(len(mask), more), mask[:, text:]], dim=1)


def _onward(ids: Tensor, text: int, more: int) -> Tensor:
    """Coordinates of the text's positions, (T, any) or (B, T, any), continued as their last two go on."""
    step = torch.arange(1, more + 1, device=ids.device, dtype=ids.dtype)[:, None]
    return torch.cat([ids, ids[..., -1:, :] + step * (ids[..., -1:, :] - ids[..., -2:-1, :])], dim=-2)


def _counted(lengths: Tensor, text: int, more: int) -> Tensor:
    """The number of tokens of each row, where all rows have as many."""
    if (lengths != text).any():
        raise ValueError("concepts cannot stand beside texts of several lengths")
    return lengths + more


def _real_tokens(arguments: Arguments) -> list[int]:
    return arguments["encoder_attention_mask"].sum(dim=1).tolist()


@dataclass(frozen=True)
class Layout:
    """How a denoiser is given its text and its picture, and how these follow each other in its attention.

    order: "cross" where the keys are the text alone; "added" where the picture's own positions follow as keys; "text
        first" or "picture first" where both are one sequence of queries and keys.
    text: names of the arguments with the text, in the order of its keys; the picture is the first argument.
    masks: of each of several texts, where the real tokens of all of them come before the padding of all.
    grid: from the arguments, where the picture is packed into a sequence.
    lengths: the number of text keys of each row, where rows differ.
    multiple: the positions of the picture, and those of the text, are padded to a multiple of this.
    patch: latent pixels on a side of a position; None for the config's `patch_size`.
    longer: where concepts can stand after the text (`concepts`), the other arguments that depend on its length, and
        how: f(value, tokens of the text, tokens of the concepts).
    """

    order: str
    text: tuple[str, ...] = ("encoder_hidden_states",)
    masks: tuple[str, ...] = ()
    grid: Callable[[Arguments], Grid] | None = None
    lengths: Callable[[Arguments], list[int]] | None = None
    multiple: int = 1
    patch: int | None = None
    longer: Mapping[str, Callable[[Tensor, int, int], Tensor]] | None = None


MASKED = {"encoder_attention_mask": _attended}
PACKED = Layout("text first", grid=_grid_of_ids, patch=1, longer={"txt_ids": _onward})

LAYOUTS = {
    "UNet2DConditionModel": Layout("cross", longer=MASKED),
    "Kandinsky3UNet": Layout("cross"),
    "PixArtTransformer2DModel": Layout("cross", longer=MASKED),
    "SanaTransformer2DModel": Layout("cross", longer=MASKED),
    "HunyuanDiT2DModel": Layout("cross", text=("encoder_hidden_states", "encoder_hidden_states_t5")),
    "LuminaNextDiT2DModel": Layout("cross"),
    "Kandinsky5Transformer3DModel": Layout("cross", grid=_grid_of_frames),
    "PRXTransformer2DModel": Layout("added", longer={"attention_mask": _attended}),
    "SD3Transformer2DModel": Layout("picture first", longer={}),
    "ErnieImageTransformer2DModel": Layout("picture first", text=("text_bth",), longer={"text_lens": _counted}),
    "HunyuanImageTransformer2DModel": Layout(
        "picture first",
        text=("encoder_hidden_states_2", "encoder_hidden_states"),
        masks=("encoder_attention_mask_2", "encoder_attention_mask"),
    ),
    "FluxTransformer2DModel": PACKED,
    "Flux2Transformer2DModel": PACKED,
    "ChromaTransformer2DModel": replace(PACKED, longer={"txt_ids": _onward, "attention_mask": _attended}),
    "BriaTransformer2DModel": PACKED,
    "OvisImageTransformer2DModel": PACKED,
    "LongCatImageTransformer2DModel": PACKED,
    "Krea2Transformer2DModel": replace(PACKED, longer=None),
    "AuraFlowTransformer2DModel": Layout("text first", longer={}),
    "CogView3PlusTransformer2DModel": Layout("text first", longer={}),
    "CogView4Transformer2DModel": Layout("text first", longer={"attention_mask": _attended}),
    "GlmImageTransformer2DModel": Layout("text first"),
    "QwenImageTransformer2DModel": Layout(
        "text first", grid=_grid_of_shapes, patch=1, longer={"encoder_hidden_states_mask": _attended}
    ),
    "Lumina2Transformer2DModel": Layout("text first", lengths=_real_tokens),
    "ZImageTransformer2DModel": Layout("picture first", text=("cap_feats",), multiple=32, patch=2),
}
"""Class of a denoiser -> its layout. Of other classes only pure cross-attention can be told."""


@dataclass(frozen=True)
class Place:
    """The grid of an attention call's picture, and for each row of the batch the first query of the picture and the
    first key of the text.
    """

    grid: Grid
    queries: tuple[int, ...]
    keys: tuple[int, ...]


@dataclass(frozen=True)
class Given:
    """What a denoiser is given in one pass.

    texts: for each row of the batch, its text in parts (T, width), in the order of its keys.
    tensors: those that hold the text of all rows.
    lengths: the number of text keys of each row.
    size: h and w of the latents, or of the grid where they are packed.
    positions: of all pictures in the sequence, 0 where it is not known.
    time: the timestep.
    has_picture: whether the picture's own positions are among the keys of layers that read text.
    """

    layout: Layout
    texts: list[list[Tensor]]
    tensors: tuple[Tensor, ...]
    lengths: list[int]
    size: Grid
    positions: int
    patch: int
    time: float
    has_picture: bool

    @property
    def source(self) -> tuple[int, ...]:
        """The identities of the tensors that hold the text; they stay as long as this does."""
        return tuple(map(id, self.tensors))

    @property
    def is_joint(self) -> bool:
        """Whether text and picture are one sequence."""
        return self.layout.order in ("text first", "picture first")

    def locate(self, queries: int, keys: int, handed: bool) -> Place | None:
        """Where an attention call of L queries and S keys has text and picture; None where no picture reads text in it.

        Args:
            handed: whether the layer was handed the text as its `encoder_hidden_states`.
        """
        if self.is_joint:
            return self._in_sequence(queries) if queries == keys else None
        grid, text = level(self.size, queries), max(self.lengths)
        if not handed or grid is None or (grid == (1, 1) != self.size):  # one query: the text is pooled
            return None
        if not self.has_picture:
            return self._everywhere(grid, 0, 0) if keys == text else None
        before = keys - queries - text  # keys of a picture prompt, then the text, then the positions themselves
        return self._everywhere(grid, 0, before) if 0 <= before < text else None

    def _in_sequence(self, length: int) -> Place | None:
        grid = self.size[0] // self.patch, self.size[1] // self.patch
        count, text = math.prod(grid), max(self.lengths)
        if self.layout.order == "picture first":
            padded = -(-count // self.layout.multiple) * self.layout.multiple
            return self._everywhere(grid, 0, padded) if length >= padded + text else None
        if self.layout.lengths is not None:  # each row has its picture right after its own text
            return Place(grid, tuple(self.lengths), (0,) * len(self.lengths)) if length == count + text else None
        picture = length - (self.positions or count)
        return self._everywhere(grid, picture, picture - text) if picture >= text else None

    def _everywhere(self, grid: Grid, query: int, key: int) -> Place:
        return Place(grid, (query,) * len(self.lengths), (key,) * len(self.lengths))


def read_arguments(denoiser: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Given:
    """What a denoiser is given by a call with these arguments.

    Raises:
        ValueError: it is given no text, or more than one text or picture a row.
    """
    kind = type(denoiser)
    layout = LAYOUTS.get(kind.__name__, Layout("cross"))
    arguments = inspect.signature(kind.forward).bind_partial(denoiser, *args, **kwargs).arguments
    _, sample, *_ = arguments.values()
    texts = [arguments[name] for name in layout.text if arguments.get(name) is not None]
    if not texts:
        given = ", ".join(name for name, value in arguments.items() if isinstance(value, Tensor | list))
        what = "" if kind.__name__ in LAYOUTS else "is not known, and "
        names = " or ".join(layout.text)
        raise ValueError(f"{kind.__name__} {what}was given no {names}, but {given}: what it reads is not known")
    if any(len(text) not in (1, len(sample)) for text in texts):
        raise ValueError(f"{kind.__name__} was given {len(texts[0])} texts for {len(sample)} rows of pictures")
    if not all(isinstance(of_row, Tensor) for of_rows in (sample, *texts) for of_row in of_rows):
        raise ValueError(f"{kind.__name__} was given several pictures or texts a row, which cannot be told apart")
    rows = [_in_order_of_keys(layout, arguments, texts, row) for row in range(len(sample))]
    lengths = [-(-sum(map(len, parts)) // layout.multiple) * layout.multiple for parts in rows]
    patch = layout.patch or getattr(denoiser.config, "patch_size", None) or 1
    return Given(
        layout,
        rows,
        tuple(part for text in texts for part in (text if isinstance(text, list) else [text])),
        layout.lengths(arguments) if layout.lengths else lengths,
        layout.grid(arguments) if layout.grid else tuple(sample[0].shape[-2:]),
        sample.shape[1] if layout.grid else 0,
        patch if isinstance(patch, int) else patch[-1],
        _time(arguments),
        layout.order != "cross" or any(getattr(layer, "added_kv_proj_dim", None) for layer in denoiser.modules()),
    )


def _in_order_of_keys(layout: Layout, arguments: Arguments, texts: list[Any], row: int) -> list[Tensor]:
    """The text of a row in parts (T, width), in the order of its keys. One text may serve all rows.

    Where a token has the states of several layers, (T, layers, width), these are side by side in the width.
    """
    parts = [text[row if len(text) > 1 else 0].flatten(1) for text in texts]
    if len(parts) < 2 or not layout.masks:
        return parts
    masked = [(part, arguments[name][row].bool()) for part, name in zip(parts, layout.masks, strict=True)]
    return [part[real] for part, real in masked] + [part[~real] for part, real in masked]


def _time(arguments: Arguments) -> float:
    time = next(arguments[name] for name in ("timestep", "timesteps", "t") if name in arguments)
    return float(time.flatten()[0]) if isinstance(time, Tensor) else float(time)


def level(size: Grid, count: int) -> Grid | None:
    """The grid of `count` positions that is h×w pixels made smaller by a whole number, or None."""
    for divisor in range(1, max(size) + 1):
        for rounded in (math.floor, math.ceil):
            grid = rounded(size[0] / divisor), rounded(size[1] / divisor)
            if math.prod(grid) == count:
                return grid
    return None
