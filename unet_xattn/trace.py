"""What the cross-attention layers saw while a picture was drawn, and the questions one asks of it.

Shapes: I images, H heads (1 where the heads are averaged), T tokens, h×w the grid of one layer; a heat map has the
picture's own height and width.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from unet_xattn.grounding import Measures, measure
from unet_xattn.unet import RecordLayer
from unet_xattn.words import Word, find_phrase

FORMAT = "unet_xattn attention 2"
KEEP = ("step", "head")

Text = tuple[str, list[Word]]
"""A prompt and its words."""

Calibration = dict[str, list[float]]
"""How far to trust each head: layer -> a weight of 0 or more for each of its heads."""

Region = tuple[int, int, int, int] | tuple[int, int] | Tensor


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
        self.size = (0, 0)
        self.calibration: Calibration | None = None
        self._texts: dict[str, list[Text]] = {"prompt": []}  # of each branch, for each image
        # (branch, step or -1, layer) -> sum of weights (I, H, T, h, w) in fp32, and how many passes it adds up
        self._sums: dict[tuple[str, int, str], Tensor] = {}
        self._counts: dict[tuple[str, int, str], int] = {}

    # Recording: the pipeline calls these.

    def start(
        self,
        prompts: list[Text],
        size: tuple[int, int],
        negatives: list[Text] | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """Begin anew for these pictures of this height and width: a prompt for each, and a negative one if there is."""
        self._texts = {"prompt": prompts} | ({} if negatives is None else {"negative": negatives})
        self.size, self.calibration = size, calibration
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
    def prompts(self) -> list[str]:
        """The prompt of each image."""
        return [text for text, _ in self._texts["prompt"]]

    @property
    def words(self) -> list[Word]:
        """The words of the (first) prompt, with their characters and tokens."""
        return self.words_of(0)

    def words_of(self, image: int, branch: str = "prompt") -> list[Word]:
        """The words of the prompt of one image, or of its negative one."""
        return self._text(image, branch)[1]

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
        reduce: str = "mean",
        scale: str = "absolute",
    ) -> Tensor:
        """Where a word, a phrase or a token landed: (height, width) float32 in [0, 1].

        Args:
            word: a word or phrase of the prompt in any case, one of `words`, or the position of a token.
            occurrence: which one, from 0, where the prompt says it more than once.
            step, layer, head: one of them; None averages over all.
            reduce: "mean" of all layers and heads, or "calibrated", weighted by how far each can be trusted; that
                takes a model that has a calibration, and heads kept apart.
            scale: "absolute", the share of attention the word got at each place, or "peak", the same over its maximum.

        Raises:
            ValueError: the word is not in the prompt, or what is asked for was not recorded.
        """
        if scale not in ("absolute", "peak"):
            raise ValueError(f"scale is 'absolute' or 'peak', not {scale!r}")
        tokens = list(self._tokens(word, occurrence, image, branch))
        heat = torch.zeros(self.size)
        for name, its_head, weight in self._weighted(layer, head, reduce):
            share = self.maps(name, step=step, head=its_head, image=image, branch=branch)[tokens].sum(dim=0)  # (h, w)
            heat += weight * F.interpolate(share[None, None], self.size, mode="bilinear")[0, 0]
        heat = heat.clamp(0, 1)
        return heat / heat.max().clamp_min(1e-12) if scale == "peak" else heat

    def words_at(self, region: Region, *, image: int = 0, **which: Any) -> list[tuple[Word, float]]:
        """Which words drew a region, most first: (word, share of the attention inside it).

        region: a box (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; a point (x, y); or a mask (height, width) of
        what counts, from 0 to 1. The shares leave room to 1: the rest went to the start and end tokens and to
        punctuation. `which` is step, layer, head or branch as for `heatmap`.

        Raises:
            ValueError: the region is empty or not inside the picture.
        """
        words, mask = self.words_of(image, which.get("branch", "prompt")), self._mask_of(region)
        shares = [float((self.heatmap(w, image=image, **which) * mask).sum() / mask.sum()) for w in words]
        return sorted(zip(words, shares, strict=True), key=lambda pair: -pair[1])

    def segmentation(self, *, image: int = 0, **which: Any) -> Tensor:
        """Which word owns each place: (height, width) int64, a position in `words_of(image)`, -1 where none does.

        It is the word with most attention there; none where all that is no word (the start and end tokens,
        punctuation) has more than that. `which` is step, layer, head or branch as for `heatmap`.
        """
        words = self.words_of(image, which.get("branch", "prompt"))
        maps = [self.heatmap(word, image=image, **which) for word in words]
        told = {token for word in words for token in word.tokens}
        rest = [self.heatmap(t, image=image, **which) for t in range(self._token_count) if t not in told]
        nothing = torch.stack(rest).sum(dim=0) if rest else torch.zeros(self.size)
        return torch.stack([nothing, *maps]).argmax(dim=0) - 1

    def measure(self, word: str | int | Word, *, image: int = 0, **which: Any) -> Measures:
        """Where and how widely a word landed, in numbers; arguments as for `heatmap`."""
        return measure(self.heatmap(word, image=image, **which))

    def leakage(self, *, image: int = 0, **which: Any) -> Tensor:
        """How far two words share one place: (words, words), Σ min(p, q) of their maps, each scaled to a sum of 1.

        1 on the diagonal; 0 for words that landed apart.
        """
        words = self.words_of(image, which.get("branch", "prompt"))
        maps = [self.heatmap(word, image=image, **which).flatten() for word in words]
        shares = torch.stack([heat / heat.sum().clamp_min(1e-12) for heat in maps])  # (words, height · width)
        return torch.minimum(shares[:, None], shares[None]).sum(dim=-1)

    def spread(self, word: str, **which: Any) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a word's heat map over all images whose prompt says it, (height, width) each.

        Raises:
            ValueError: fewer than two of the prompts say it.
        """
        self._check_recorded()
        found = []
        for image in range(len(self.prompts)):
            with suppress(ValueError):
                self._tokens(word, 0, image, which.get("branch", "prompt"))
                found.append(image)
        if len(found) < 2:
            raise ValueError(f"{len(found)} of {len(self.prompts)} prompts say {word!r}: a spread takes two or more")
        heat = torch.stack([self.heatmap(word, image=image, **which) for image in found])
        return heat.mean(dim=0), heat.std(dim=0)

    @property
    def _token_count(self) -> int:
        return next(iter(self._sums.values())).shape[2]

    def _mask_of(self, region: Region) -> Tensor:
        """A region as a mask (height, width) float32."""
        height, width = self.size
        if isinstance(region, Tensor):
            if tuple(region.shape) != self.size:
                raise ValueError(f"the mask is {tuple(region.shape)}, the picture {self.size} (height, width)")
            mask = region.float()
            if not (mask.min() >= 0 and mask.max() <= 1 and mask.sum() > 0):  # not NaN either
                raise ValueError("a mask holds values from 0 to 1, and something in it is above 0")
            return mask
        x0, y0, x1, y1 = region if len(region) == 4 else (*region, region[0] + 1, region[1] + 1)
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            what = "point (x, y)" if len(region) == 2 else "box (x0, y0, x1, y1)"
            raise ValueError(f"region {tuple(region)} is not a {what} inside the picture, {width}×{height}")
        mask = torch.zeros(self.size)
        mask[y0:y1, x0:x1] = 1
        return mask

    def _weighted(self, layer: str | None, head: int | None, reduce: str) -> list[tuple[str, int | None, float]]:
        """Which maps a heat map is the sum of: (layer, head or None for their mean, weight)."""
        if reduce not in ("mean", "calibrated"):
            raise ValueError(f"reduce is 'mean' or 'calibrated', not {reduce!r}")
        if reduce == "mean" or layer is not None or head is not None:
            layers = self.layers if layer is None else [layer]
            return [(name, head, 1 / len(layers)) for name in layers]
        if self.calibration is None:
            raise ValueError("this model has no calibration: `unet-xattn calibrate` makes one")
        if "head" not in self.keep:
            raise ValueError("heads were averaged while recording: trace with keep='head' for a calibrated map")
        return [(name, h, w) for name, weights in self.calibration.items() for h, w in enumerate(weights) if w > 0]

    def _tokens(self, word: str | int | Word, occurrence: int, image: int, branch: str) -> tuple[int, ...]:
        prompt, words = self._text(image, branch)
        if isinstance(word, Word):
            return word.tokens
        if isinstance(word, str):
            return find_phrase(word, prompt, words, occurrence)
        if not 0 <= word < self._token_count:
            raise ValueError(f"token {word} is not there: the prompt has tokens 0 to {self._token_count - 1}")
        return (word,)

    def _text(self, image: int, branch: str) -> Text:
        self._check_recorded(image)
        if branch not in self._texts:
            raise ValueError(f"nothing was recorded of branch {branch!r}; branches: {', '.join(sorted(self._texts))}")
        return self._texts[branch][image]

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
        texts = {
            branch: [[text, [[w.text, w.start, w.end, w.tokens] for w in words]] for text, words in texts]
            for branch, texts in self._texts.items()
        }
        header: dict[str, Any] = {"texts": texts, "size": self.size, "keep": sorted(self.keep)}
        header["calibration"] = self.calibration
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
        texts = {
            branch: [(text, [Word(w, start, end, tuple(t)) for w, start, end, t in words]) for text, words in texts]
            for branch, texts in header["texts"].items()
        }
        trace.start(texts["prompt"], tuple(header["size"]), texts.get("negative"), header["calibration"])
        for name, count in header["counts"].items():  # in the order the layers ran; safetensors keeps its own
            branch, step, layer = name.split("|")
            trace._sums[branch, int(step), layer] = tensors[name].float() * count
            trace._counts[branch, int(step), layer] = count
        return trace
