"""Examples to train on, the endless scenes among them, as batches ready for a training step.

Everything random about an example (which one, dropped caption, noise, time) is a function of (seed, place in the
endless stream of examples). So a resumed run needs one number, and the batch size or the number of processes decides
only how the stream is cut (where pictures have several shapes, the batch size decides on their order too).

Shapes: B batch, T tokens, h×w pixels.
"""

import hashlib
import signal
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from pipelines.captions import LANGUAGES
from pipelines.pictures import to_tensor
from pipelines.scenes import Scene, word_mask
from pipelines.worlds import WORLDS
from unet_xattn import flow
from unet_xattn.words import tokens_of

VALIDATION_SEED = 2**31
"""Scenes of this seed validate; training takes seeds below it."""


@dataclass(frozen=True)
class Example:
    """A picture (h, w, 3) uint8, its caption, and where stretches of the caption lie in the picture, if known.

    `translation` says the same in another language, if somebody has said it; `scene` is what the caption describes,
    where that is known.
    """

    picture: np.ndarray
    caption: str
    regions: Sequence[tuple[int, int, np.ndarray]] = ()  # (start, end, mask (h, w) in [0, 1])
    translation: str = ""
    scene: Scene | None = None


class Stream(Protocol):
    """An endless stream of whatever is trained on."""

    def example(self, place: int) -> Any: ...


class Examples(Protocol):
    """An endless stream of training examples, and a fixed set of others to validate on.

    `translates`: whether some say their caption in another language as well; `notes`: what whoever trains on them
    should know, a line each, once there are examples. `fingerprint` is the same as long as the data is, `name` says in
    a line what is at some places of the stream.
    """

    @property
    def translates(self) -> bool: ...
    @property
    def notes(self) -> Sequence[str]: ...
    def example(self, place: int) -> Example: ...
    def validation(self, count: int) -> list[Example]: ...
    def captions(self) -> Iterable[str]: ...
    def fingerprint(self) -> str: ...
    def name(self, places: range) -> str: ...


class SceneExamples:
    """The endless scenes of one seed, every other one captioned in Chinese; `data` is one of `worlds.WORLDS`."""

    translates = True
    notes = ()

    def __init__(self, size: int, seed: int, data: str = "shapes"):
        self.size, self.seed, self.world = size, seed, WORLDS[data]

    def example(self, place: int) -> Example:
        return self._render(self.seed, place)

    def validation(self, count: int) -> list[Example]:
        return [self._render(VALIDATION_SEED, place) for place in range(count)]

    def captions(self) -> Iterable[str]:
        scene = self.world.scene
        return (scene(self.seed, i, language=lang).caption for i in range(self.world.WORDY) for lang in LANGUAGES)

    def fingerprint(self) -> str:
        """Scenes have no version that somebody could forget to raise: it is what some of them look like."""
        digest = hashlib.sha256(repr(self.seed).encode())
        for place in range(32):
            example = self._render(self.seed, place)
            digest.update(example.picture.tobytes() + f"{example.caption}\n{example.translation}\n".encode())
        return digest.hexdigest()[:16]

    def name(self, places: range) -> str:
        return f"the scenes {places.start} to {places.stop - 1} of seed {self.seed}"

    def _render(self, seed: int, place: int) -> Example:
        scene, other = self.world.tellings(seed, place, ("en", "zh") if place % 2 == 0 else ("zh", "en"))
        picture, masks = self.world.render(scene, self.size)
        where = [(w.start, w.end, word_mask(w, masks)) for w in scene.words]
        regions = [(start, end, mask) for start, end, mask in where if mask is not None]
        return Example(picture, scene.caption, regions, other.caption, scene)


@dataclass
class Batch:
    """What one step trains on.

    pictures (B, 3, h, w) in [-1, 1], noise likewise, times (B,) in (0, 1), ids and token_mask (B, T),
    masks (B, T, h / cell, w / cell): where each token's meaning lies, zero everywhere if unknown; target_ids and
    target_mask (B, S): the translations, and which of their tokens are real: none where there is no translation.
    """

    pictures: Tensor
    noise: Tensor
    times: Tensor
    ids: Tensor
    token_mask: Tensor
    masks: Tensor
    target_ids: Tensor
    target_mask: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


class Collator:
    """Turns (place, example) pairs into a `Batch`.

    Args:
        caption_dropout: share of captions replaced by the empty one. This is what makes guidance work: the model
            learns what a picture is without being told what it shows.
        cell: side, in pixels, of a cell of the masks given to mask supervision: of the finest grid that attends.
        shift: how far times lie nearer to noise (`flow.sample_times`).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        seed: int,
        caption_dropout: float,
        cell: int,
        shift: float = flow.TIME_SHIFT,
    ):
        self.tokenizer, self.seed, self.caption_dropout, self.cell = tokenizer, seed, caption_dropout, cell
        self.shift = shift

    def __call__(self, items: Sequence[tuple[int, Example]]) -> Batch:
        captions, translations, noise, times = [], [], [], []
        for place, example in items:
            generator = torch.Generator().manual_seed(seed_of(self.seed, place))
            dropped = torch.rand((), generator=generator) < self.caption_dropout
            captions.append("" if dropped else example.caption)
            translations.append("" if dropped else example.translation)
            times.append(flow.sample_times(1, generator, self.shift))
            noise.append(torch.randn(3, *example.picture.shape[:2], generator=generator))
        pictures = to_tensor(np.stack([example.picture for _, example in items]))
        ids, token_mask, masks = self.read(captions, [example.regions for _, example in items], pictures.shape[2:])
        return Batch(pictures, torch.stack(noise), torch.cat(times), ids, token_mask, masks, *self.write(translations))

    def read(
        self, captions: list[str], regions: Sequence[Sequence[tuple[int, int, np.ndarray]]], shape: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Captions and their regions, of pictures of one shape (h, w) -> ids (B, T), token_mask (B, T), masks.

        masks (B, T, h / cell, w / cell)
        """
        read = self.tokenizer(captions, padding=True, truncation=True, return_offsets_mapping=True, return_tensors="pt")
        masks = np.zeros((*read["input_ids"].shape, *(side // self.cell for side in shape)), np.float32)
        for row, (caption, offsets, spans) in enumerate(
            zip(captions, read["offset_mapping"].tolist(), regions, strict=True)
        ):
            if caption and spans:
                pooled = F.avg_pool2d(torch.from_numpy(np.stack([mask for _, _, mask in spans])), self.cell)
                for (start, end, _), cells in zip(spans, pooled.numpy(), strict=True):
                    masks[row, list(tokens_of(start, end, offsets))] = cells
        return read["input_ids"], read["attention_mask"].bool(), torch.from_numpy(masks)

    def write(self, translations: list[str]) -> tuple[Tensor, Tensor]:
        """Translations, "" where there is none -> target_ids (B, S), target_mask (B, S)."""
        target = self.tokenizer(translations, padding=True, truncation=True, return_tensors="pt")
        said = torch.tensor([bool(translation) for translation in translations])
        return target["input_ids"], target["attention_mask"].bool() & said[:, None]


class Shuffled:
    """Rows again and again, each epoch in an order of its own, and each as often as its weight says.

    A row of weight 2 comes twice in every epoch, one of weight ½ in every other epoch. What comes when is a function of
    (seed, place).
    """

    def __init__(self, weights: Sequence[float], seed: int):
        self.weights, self.seed = np.asarray(weights, np.float64), seed
        assert (self.weights >= 0).all() and self.weights.sum() > 0
        # Rows of weight ½ do not all come in the same epochs. Steps of 2⁻²⁰ leave whole weights exact.
        self.offsets = np.random.default_rng(seed).integers(2**20, size=len(weights)) / 2**20
        self._epoch: tuple[int, np.ndarray, np.ndarray] = (0, np.empty(0, int), np.empty(0, int))

    def __getitem__(self, place: int) -> tuple[int, int]:
        """The row at a place, and how often it has come before."""
        start, rows, times = self._epoch
        if not 0 <= place - start < len(rows):
            start, rows, times = self._epoch = self._shuffle(place)
        return int(rows[place - start]), int(times[place - start])

    def _shuffle(self, place: int) -> tuple[int, np.ndarray, np.ndarray]:
        """The epoch around a place: where it starts, its rows, and how often each has come before."""
        latest = int((place + len(self.weights)) / self.weights.sum()) + 2
        epoch = bisect_right(range(latest), place, key=lambda epoch: self._before(epoch).sum()) - 1
        before = self._before(epoch)
        copies = self._before(epoch + 1) - before
        rows = np.repeat(np.arange(len(copies)), copies)
        times = before[rows] + np.arange(len(rows)) - np.repeat(copies.cumsum() - copies, copies)
        shuffled = np.random.default_rng((self.seed, epoch)).permutation(rows)
        in_order = np.empty_like(times)
        in_order[np.argsort(shuffled, kind="stable")] = times
        return int(before.sum()), shuffled, in_order

    def _before(self, epoch: int) -> np.ndarray:
        """How often each row has come before an epoch."""
        return np.floor(epoch * self.weights + self.offsets).astype(np.int64)


def seed_of(*numbers: int) -> int:
    """One seed for torch out of several numbers, well mixed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class _Places(Dataset):
    def __init__(self, examples: Stream):
        self.examples = examples

    def __getitem__(self, place: int) -> tuple[int, Any]:
        return place, self.examples.example(place)


def batches(
    examples: Stream, collator: Callable[[list], Any], batch_size: int, start: int, stop: int, workers: int
) -> DataLoader:
    """The stream of batches over places [start, stop): what `collator` makes of (place, example) pairs."""
    return DataLoader(
        _Places(examples),
        batch_size=batch_size,
        sampler=range(start, stop),
        collate_fn=collator,
        num_workers=workers,
        drop_last=True,
        worker_init_fn=_leave_signals,
    )


def _leave_signals(_: int) -> None:
    """A stop is often sent to all of a job's processes, and is the trainer's to act on: it still needs its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
