"""What a run reads with but does not train: a text encoder and a VAE of the ecosystem, and what they gave, kept.

Captions and pictures are encoded one at a time. Of a batch each would depend a little on its neighbours, and a run that
is resumed, whose cache is empty, would not go on bit for bit.

Shapes: B batch, T tokens, M width of the memory, C channels of a latent, f the VAE's scale factor, h×w pixels.
"""

import hashlib
import json
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.components import TextEncoder, Vae, encode_pictures, encode_text
from pipelines.data.batches import Batch

BUDGET = 2**29
"""Bytes of memories kept, and again of latents: 512 MiB, tens of thousands of captions or pictures."""


class LastUsed:
    """Tensors by their keys, up to so many bytes; what has not been used for longest goes first."""

    def __init__(self, budget: int = BUDGET):
        self.budget = budget
        self._bytes = 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What is kept under the key; if nothing is, what `make` makes, from now on."""
        if key not in self._kept:
            self._kept[key] = make()
            self._bytes += self._kept[key].nbytes
        self._kept.move_to_end(key)
        found = self._kept[key]
        while self._bytes > self.budget:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return found


class Frozen:
    """The encoders of a run that are not trained; either may be missing, and then its side of a batch stays as it is.

    Args:
        folder: where latents are kept on disk, a file for each picture and VAE, and found again by the next run that
            is given it. None where pictures never come again.
    """

    def __init__(self, text_encoder: TextEncoder | None, vae: Vae | None, folder: Path | None = None):
        self.text_encoder, self.vae = text_encoder, vae
        for network in (text_encoder, vae):
            if network is not None:
                network.requires_grad_(False).eval()  # T5 has dropout
        self.folder = None if folder is None or vae is None else folder / fingerprint(vae)[:16]
        self._memories, self._latents = LastUsed(), LastUsed()

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[Batch, Tensor | None]:
        """A batch of pictures and token ids -> the same with latents and their noise, and the memory (B, T, M).

        The noise of a latent is the beginning of the picture's: still a function of (seed, place).
        """
        memory = None if self.text_encoder is None else self.read(batch.ids, batch.token_mask)
        if self.vae is not None:
            latents = self.encode(batch.pictures)
            batch = replace(batch, pictures=latents, noise=beginning(batch.noise, latents.shape))
        return batch, memory

    def read(self, ids: Tensor, token_mask: Tensor) -> Tensor:
        """Token ids (B, T) and which of them are real (B, T) -> memory (B, T, M), 0 where there is padding."""
        rows = []
        for row, real in zip(ids, token_mask, strict=True):
            alone = row[real][None]  # (1, its tokens)
            key = tuple(alone[0].tolist())
            rows.append(self._memories.get(key, partial(self._memory, alone)))
        memory = torch.zeros(*ids.shape, rows[0].shape[-1], dtype=rows[0].dtype, device=ids.device)
        memory[token_mask] = torch.cat(rows).to(ids.device)
        return memory

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, h, w) in [-1, 1] -> latents (B, C, h/f, w/f)."""
        levels = ((pictures + 1) * 127.5).round().to(torch.uint8).cpu()  # what they were read as
        latents = []
        for picture, bytes_ in zip(pictures, levels, strict=True):
            name = hashlib.sha256(repr(tuple(bytes_.shape)).encode() + bytes_.numpy().tobytes()).hexdigest()
            latents.append(self._latents.get(name, partial(self._latent, name, picture)))
        return torch.stack(latents).to(pictures.device)

    def _memory(self, ids: Tensor) -> Tensor:
        """The memory of one caption's ids (1, T), (T, M)."""
        assert self.text_encoder is not None
        return encode_text(self.text_encoder, ids, torch.ones_like(ids, dtype=torch.bool))[0].cpu()

    def _latent(self, name: str, picture: Tensor) -> Tensor:
        """A picture's latent (C, h/f, w/f), from the folder if it is there, and from now on."""
        file = None if self.folder is None else self.folder / name[:2] / f"{name}.safetensors"
        if file is not None and file.is_file():
            try:
                return load_file(file)["latent"]
            except SafetensorError:  # torn when the power went: made again
                pass
        latent = encode_pictures(self.vae, picture[None])[0].float().cpu().contiguous()
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            new = file.with_suffix(f".{os.getpid()}.new")  # processes of one run may come by the same picture
            save_file({"latent": latent}, new)
            new.replace(file)
        return latent


def beginning(noise: Tensor, shape: torch.Size) -> Tensor:
    """Noise of pictures (B, 3, h, w) -> of a latent's shape, the first of each picture's numbers."""
    wanted = math.prod(shape[1:])
    if noise[0].numel() < wanted:
        raise ValueError(f"this VAE's latents hold {wanted} numbers, more than the {noise[0].numel()} of a picture")
    return noise.flatten(1)[:, :wanted].reshape(shape)


def fingerprint(vae: Vae) -> str:
    """A sha256 of what a VAE is: its class, its settings and its weights, whatever it is called."""
    settings = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps([type(vae).__name__, settings], sort_keys=True, default=str).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
