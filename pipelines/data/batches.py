"""Batches of training examples: pictures, noise, times, tokens and masks, ready for a training step.

Everything random about an example (its picture, caption dropout, noise, time) is a function of the seed and of its
place in the endless stream. So a run resumes from a single number, and the batch size and the number of processes only
decide how the stream is cut. With pictures of several shapes, the batch size also decides their order.

Shapes: B batch, T tokens, h×w pixels.
"""

import hashlib
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from pipelines.components import to_tensor
from pipelines.data.stream import Example, Stream, seed_of
from unet_xattn import flow
from unet_xattn.words import tokens_of


@dataclass
class Batch:
    """The examples of one training step.

    pictures (B, 3, h, w) in [-1, 1], noise (B, 3, h, w), times (B,) in (0, 1), ids and token_mask (B, T),
    masks (B, T, h / cell, w / cell): the region of each token, all zero where it is unknown; target_ids and
    target_mask (B, S): the translations and their real tokens, none for an example without translation.
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

    def fingerprint(self) -> str:
        """A hash of what was drawn, decoded and read; the last bits of random numbers, which depend on the processor,
        have no part in it.
        """
        return hash_of(
            ((self.pictures + 1) * 127.5).round().to(torch.uint8),
            self.noise.flatten(1)[:, :64] > 0,
            (self.times * 100).round(),
            self.ids,
            self.masks > 0,
            self.target_ids,
        )


def hash_of(*tensors: Tensor) -> str:
    """A hash of the shapes and values of tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class Collator:
    """Turns (place, example) pairs into a `Batch`.

    Args:
        caption_dropout: share of captions replaced by the empty caption. This makes guidance work: the model also
            learns to generate pictures without a caption.
        cell: side, in pixels, of a cell of the masks for mask supervision: a cell of the finest grid with attention.
        shift: shift of the times towards noise (`flow.sample_times`).
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
        """Captions and their regions in pictures of shape (h, w) -> ids, token_mask (B, T), masks.

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
        """Translations, "" where missing -> target_ids (B, S), target_mask (B, S)."""
        target = self.tokenizer(translations, padding=True, truncation=True, return_tensors="pt")
        translated = torch.tensor([bool(translation) for translation in translations])
        return target["input_ids"], target["attention_mask"].bool() & translated[:, None]


class _Places(Dataset):
    def __init__(self, examples: Stream):
        self.examples = examples

    def __getitem__(self, place: int) -> tuple[int, Any]:
        return place, self.examples.example(place)


def batches(
    examples: Stream, collator: Callable[[list], Any], batch_size: int, start: int, stop: int, workers: int
) -> DataLoader:
    """Batches of the places [start, stop) of a stream. `collator` turns (place, example) pairs into a batch."""
    return DataLoader(
        _Places(examples),
        batch_size=batch_size,
        sampler=range(start, stop),
        collate_fn=collator,
        num_workers=workers,
        drop_last=True,
        worker_init_fn=_ignore_signals,
    )


def _ignore_signals(_: int) -> None:
    """Ignore stop signals, which are sent to all processes of a job: the trainer acts on them and needs its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
