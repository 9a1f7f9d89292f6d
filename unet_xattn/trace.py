"""What the cross-attention layers saw while a picture was drawn, and the questions one asks of it.

Shapes: I images, H heads (1 where the heads are averaged), T tokens, h×w the grid of one layer; a heat map has the
picture's own height and width.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from unet_xattn.unet import RecordLayer
from unet_xattn.words import Word, find_phrase

FORMAT = "unet_xattn attention 1"
KEEP = ("step", "head")


class AttentionTrace:
    """Running sums of attention, one per layer, with steps and heads averaged unless they are kept apart.

    Memory does not grow with the number of steps unless `keep` names "step". A layer's grid is always its own.

    Args:
        keep: which of "step" and "head" to keep apart; "mean" for neither, "full" for both.
    """

    def __init__(self, keep: str | Collection[str] = "mean"):
        kept = {"mean": (), "full": KEEP}.get(keep, (keep,)) if isinstance(keep, str) else tuple(keep)
        if unknown := set(kept) - set(KEEP):
            raise ValueError(f"keep can name {', '.join(KEEP)}, 'mean' or 'full', not {', '.join(sorted(unknown))}")
        self.keep = frozenset(kept)
        self.prompts: list[str] = []
        self.size = (0, 0)
        self._words: list[list[Word]] = []
        # (branch, step or -1, layer) -> sum of weights (I, H, T, h, w) in fp32, and how many passes it adds up
        self._sums: dict[tuple[str, int, str], Tensor] = {}
        self._counts: dict[tuple[str, int, str], int] = {}

    # Recording: the pipeline calls these.

    def start(self, prompts: list[str], words: list[list[Word]], size: tuple[int, int]) -> None:
        """Begin anew for these pictures (a prompt and its words for each) of this height and width."""
        self.prompts, self._words, self.size = prompts, words, size
        self._sums.clear()
        self._counts.clear()

    def recorder(self, step: int, branches: Mapping[str, slice]) -> RecordLayer:
        """What to hand to one pass of the UNet; `branches` names the rows of its batch ("prompt", "negative")."""

        def record(layer: str, weights: Tensor, grid: tuple[int, int]) -> None:
            for branch, rows in branches.items():
                part = weights.detach()[rows].float()  # (I, H, h·w, T)
                part = part if "head" in self.keep else part.mean(dim=1, keepdim=True)
                part = part.transpose(2, 3).unflatten(-1, grid)  # (I, H, T, h, w)
                key = (branch, step if "step" in self.keep else -1, layer)
                self._sums[key] = self._sums[key].add_(part) if key in self._sums else part.clone()
                self._counts[key] = self._counts.get(key, 0) + 1

        return record

    def finish(self, expected_layers: Iterable[str]) -> None:
        """Raise RuntimeError unless just these layers have reported: a map of part of them would look right."""
        expected, seen = set(expected_layers), set(self.layers)
        if expected != seen:
            raise RuntimeError(f"attention was not recorded: expected layers {sorted(expected)}, got {sorted(seen)}")

    # Asking.

    @property
    def words(self) -> list[Word]:
        """The words of the (first) prompt, with their characters and tokens."""
        return self.words_of(0)

    def words_of(self, image: int) -> list[Word]:
        """The words of the prompt of one image."""
        self._check_recorded(image)
        return self._words[image]

    @property
    def layers(self) -> list[str]:
        """The layers that were recorded, in the order they ran."""
        return list(dict.fromkeys(layer for _, _, layer in self._sums))

    @property
    def steps(self) -> list[int]:
        """The steps that were kept apart; none by default."""
        return sorted({step for _, step, _ in self._sums if step >= 0})

    def maps(
        self,
        layer: str,
        *,
        step: int | None = None,
        head: int | None = None,
        image: int = 0,
        branch: str = "prompt",
    ) -> Tensor:
        """Mean attention of one layer, (T, h, w) float32: at each position, the shares of all tokens add up to 1."""
        self._check_recorded(image)
        for name, asked in (("step", step), ("head", head)):
            if asked is not None and name not in self.keep:
                raise ValueError(f"{name}s were averaged while recording: trace with keep={name!r} to ask for one")
        keys = [k for k in self._sums if k[0] == branch and k[2] == layer and step in (None, k[1])]
        if not keys:
            where = f"layer {layer!r}" if step is None else f"layer {layer!r} at step {step}"
            branches = sorted({key[0] for key in self._sums})
            raise ValueError(
                f"nothing was recorded for {where} of branch {branch!r}; layers: {', '.join(self.layers)}; "
                f"steps: {self.steps or 'averaged'}; branches: {', '.join(branches)}"
            )
        mean = torch.stack([self._sums[k][image] for k in keys]).sum(dim=0).cpu() / sum(
            self._counts[k] for k in keys
        )  # (H, T, h, w)
        if head is None:
            return mean.mean(dim=0)
        if not 0 <= head < len(mean):
            raise ValueError(f"layer {layer!r} has heads 0 to {len(mean) - 1}, not {head}")
        return mean[head]

    def heatmap(
        self,
        word: str | int | Word,
        *,
        occurrence: int = 0,
        step: int | None = None,
        layer: str | None = None,
        head: int | None = None,
        image: int = 0,
        branch: str = "prompt",
        scale: str = "absolute",
    ) -> Tensor:
        """Where a word, a phrase or a token landed: (height, width) float32 in [0, 1].

        Args:
            word: a word or phrase of the prompt in any case, one of `words`, or the position of a token.
            occurrence: which one, from 0, where the prompt says it more than once.
            step, layer, head: one of them; None averages over all.
            scale: "absolute", the share of attention the word got at each place, or "peak", the same over its maximum.

        Raises:
            ValueError: the word is not in the prompt, or what is asked for was not recorded.
        """
        if scale not in ("absolute", "peak"):
            raise ValueError(f"scale is 'absolute' or 'peak', not {scale!r}")
        tokens = self._tokens(word, occurrence, image)
        layers = self.layers if layer is None else [layer]
        heat = torch.zeros(self.size)
        for name in layers:
            share = self.maps(name, step=step, head=head, image=image, branch=branch)[list(tokens)].sum(dim=0)  # (h, w)
            heat += F.interpolate(share[None, None], self.size, mode="bilinear")[0, 0] / len(layers)
        heat = heat.clamp(0, 1)
        return heat / heat.max().clamp_min(1e-12) if scale == "peak" else heat

    def words_at(self, region: tuple[int, int, int, int], *, image: int = 0, **which: Any) -> list[tuple[Word, float]]:
        """Which words drew a region, most first: (word, share of the attention inside it).

        region: a box (x0, y0, x1, y1) in pixels, x1 and y1 exclusive. The shares leave room to 1: the rest went to
        the start and end tokens and to punctuation. `which` is step, layer, head or branch as for `heatmap`.

        Raises:
            ValueError: the region is empty or not inside the picture.
        """
        words = self.words_of(image)
        (height, width), (x0, y0, x1, y1) = self.size, region
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(f"region {region} is not a box (x0, y0, x1, y1) inside the picture, {width}×{height}")
        shares = [float(self.heatmap(w, image=image, **which)[y0:y1, x0:x1].mean()) for w in words]
        return sorted(zip(words, shares, strict=True), key=lambda pair: -pair[1])

    def _tokens(self, word: str | int | Word, occurrence: int, image: int) -> tuple[int, ...]:
        words = self.words_of(image)
        if isinstance(word, Word):
            return word.tokens
        if isinstance(word, str):
            return find_phrase(word, self.prompts[image], words, occurrence)
        count = next(iter(self._sums.values())).shape[2]
        if not 0 <= word < count:
            raise ValueError(f"token {word} is not there: the prompt has tokens 0 to {count - 1}")
        return (word,)

    def _check_recorded(self, image: int = 0) -> None:
        if not self._sums:
            raise ValueError("nothing has been recorded yet: call the pipeline inside `with trace(pipe) as attention:`")
        if not 0 <= image < len(self.prompts):
            raise ValueError(f"image {image} is not there: {len(self.prompts)} image(s) were recorded")

    # Keeping.

    def save(self, path: str | Path) -> None:
        """Write the means as fp16 safetensors, prompts and words in the header; no model is needed to read it."""
        self._check_recorded()
        tensors = {
            f"{branch}|{step}|{layer}": (total / self._counts[branch, step, layer]).half().contiguous()
            for (branch, step, layer), total in self._sums.items()
        }
        words = [[[w.text, w.start, w.end, w.tokens] for w in words] for words in self._words]
        header = {"prompts": self.prompts, "words": words, "size": self.size, "keep": sorted(self.keep)}
        header["counts"] = {f"{b}|{s}|{layer}": n for (b, s, layer), n in self._counts.items()}
        save_file(tensors, path, metadata={"format": FORMAT, "trace": json.dumps(header, ensure_ascii=False)})

    @classmethod
    def load(cls, path: str | Path) -> "AttentionTrace":
        """Read what `save` wrote.

        Raises:
            ValueError: the file is cut short or is no attention trace.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read as safetensors ({error}): is it complete?") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is {metadata.get('format', 'no attention trace')!r}, expected {FORMAT!r}")
        header = json.loads(metadata["trace"])
        trace = cls(keep=header["keep"])
        words = [[Word(text, start, end, tuple(tokens)) for text, start, end, tokens in ws] for ws in header["words"]]
        trace.start(header["prompts"], words, tuple(header["size"]))
        for name, count in header["counts"].items():  # in the order the layers ran; safetensors keeps its own
            branch, step, layer = name.split("|")
            trace._sums[branch, int(step), layer] = tensors[name].float() * count
            trace._counts[branch, int(step), layer] = count
        return trace
