"""Scenes, or a folder of captioned pictures, as batches ready for a training step.

Everything random about an example (which one, dropped caption, noise, time) is a function of (seed, place in the
endless stream of examples). So a resumed run needs one number, and the batch size or the number of processes decides
only how the stream is cut.

Shapes: B batch, T tokens, h×w pixels.
"""

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from pipelines.captions import LANGUAGES
from pipelines.pictures import load_picture, to_tensor
from pipelines.scenes import Scene, word_mask
from pipelines.sources import read_folder
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

    `fingerprint` is the same as long as the data is, `name` says in a line what is at some places of the stream.
    """

    def example(self, place: int) -> Example: ...
    def validation(self, count: int) -> list[Example]: ...
    def captions(self) -> Iterable[str]: ...
    def fingerprint(self) -> str: ...
    def name(self, places: range) -> str: ...


class SceneExamples:
    """The endless scenes of one seed, every other one captioned in Chinese; `data` is one of `worlds.WORLDS`."""

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
            example = self.example(place)
            digest.update(example.picture.tobytes() + f"{example.caption}\n{example.translation}\n".encode())
        return digest.hexdigest()[:16]

    def name(self, places: range) -> str:
        return f"the scenes {places.start} to {places.stop - 1} of seed {self.seed}"

    def _render(self, seed: int, place: int) -> Example:
        language, other = ("en", "zh") if place % 2 == 0 else ("zh", "en")
        scene = self.world.scene(seed, place, language=language)
        picture, masks = self.world.render(scene, self.size)
        regions = [(w.start, w.end, word_mask(w, masks)) for w in scene.words]
        translation = self.world.scene(seed, place, language=other).caption
        return Example(picture, scene.caption, [(s, e, m) for s, e, m in regions if m is not None], translation, scene)


class FolderExamples:
    """A folder of pictures with a `metadata.jsonl` (or .csv) of `file_name` and `text`, read by datasets' imagefolder.

    Each epoch visits every picture once, in an order that is a function of (seed, epoch). One picture in twenty is
    kept for validation.
    """

    def __init__(self, folder: str | Path, size: int, seed: int):
        self.folder, self.size, self.seed = folder, size, seed
        self.rows = read_folder(folder)
        held_back = range(7 % len(self.rows), len(self.rows), 20) if len(self.rows) >= 20 else range(len(self.rows))
        self.validation_rows = [self.rows[i] for i in held_back]
        if len(self.rows) >= 20:
            self.rows = [row for i, row in enumerate(self.rows) if i not in held_back]

    def example(self, place: int) -> Example:
        return self._load(self.rows[shuffled_place(place, len(self.rows), self.seed)])

    def validation(self, count: int) -> list[Example]:
        return [self._load(row) for row in self.validation_rows[:count]]

    def captions(self) -> Iterable[str]:
        return (caption for _, caption in self.rows)

    def fingerprint(self) -> str:
        """Of the pictures' files, their names and their captions, in their order."""
        digest = hashlib.sha256()
        for path, caption in self.rows + self.validation_rows:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(json.dumps([os.path.relpath(path, self.folder), caption, content]).encode())
        return digest.hexdigest()[:16]

    def name(self, places: range) -> str:
        paths = [self.rows[shuffled_place(place, len(self.rows), self.seed)][0] for place in places]
        return ", ".join(path.name for path in paths)

    def _load(self, row: tuple[Path, str]) -> Example:
        return Example(load_picture(row[0], self.size), row[1])


@dataclass
class Batch:
    """What one step trains on.

    pictures (B, 3, h, w) in [-1, 1], noise likewise, times (B,) in (0, 1), ids and token_mask (B, T),
    masks (B, T, grid, grid): where each token's meaning lies, zero everywhere if unknown; target_ids and target_mask
    (B, S): the translations, and which of their tokens are real: none where there is no translation.
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
        grid: side of the masks given to mask supervision, the finest grid that attends.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, caption_dropout: float, grid: int):
        self.tokenizer, self.seed, self.caption_dropout, self.grid = tokenizer, seed, caption_dropout, grid

    def __call__(self, items: Sequence[tuple[int, Example]]) -> Batch:
        captions, translations, noise, times = [], [], [], []
        for place, example in items:
            generator = torch.Generator().manual_seed(seed_of(self.seed, place))
            dropped = torch.rand((), generator=generator) < self.caption_dropout
            captions.append("" if dropped else example.caption)
            translations.append("" if dropped else example.translation)
            times.append(flow.sample_times(1, generator))
            noise.append(torch.randn(3, *example.picture.shape[:2], generator=generator))
        ids, token_mask, masks = self.read(captions, [example.regions for _, example in items])
        pictures = to_tensor(np.stack([example.picture for _, example in items]))
        return Batch(pictures, torch.stack(noise), torch.cat(times), ids, token_mask, masks, *self.write(translations))

    def read(
        self, captions: list[str], regions: Sequence[Sequence[tuple[int, int, np.ndarray]]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Captions and their regions -> ids (B, T), token_mask (B, T), masks (B, T, grid, grid)."""
        read = self.tokenizer(captions, padding=True, truncation=True, return_offsets_mapping=True, return_tensors="pt")
        masks = np.zeros((*read["input_ids"].shape, self.grid, self.grid), np.float32)
        for row, (caption, offsets, spans) in enumerate(
            zip(captions, read["offset_mapping"].tolist(), regions, strict=True)
        ):
            for start, end, mask in spans if caption else ():
                side = mask.shape[0] // self.grid
                pooled = mask.reshape(self.grid, side, self.grid, side).mean(axis=(1, 3))
                masks[row, list(tokens_of(start, end, offsets))] = pooled
        return read["input_ids"], read["attention_mask"].bool(), torch.from_numpy(masks)

    def write(self, translations: list[str]) -> tuple[Tensor, Tensor]:
        """Translations, "" where there is none -> target_ids (B, S), target_mask (B, S)."""
        target = self.tokenizer(translations, padding=True, truncation=True, return_tensors="pt")
        said = torch.tensor([bool(translation) for translation in translations])
        return target["input_ids"], target["attention_mask"].bool() & said[:, None]


def shuffled_place(place: int, count: int, seed: int) -> int:
    """Which of `count` rows stands at a place of the endless stream: each epoch has all, in an order of its own."""
    epoch, position = divmod(place, count)
    return int(np.random.default_rng((seed, epoch)).permutation(count)[position])


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
