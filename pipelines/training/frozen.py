"""The frozen encoders of a run, a text encoder and a VAE of the ecosystem, and a cache of their outputs.

Captions and pictures are encoded one at a time. In a batch the output of each would depend a little on its neighbours,
and a resumed run, whose cache is empty, would not repeat the original bit for bit.

Shapes: B batch, T tokens, M width of the memory, C channels of a latent, f the VAE's scale factor, h×w pixels.
"""

import hashlib
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cachetools import LRUCache, cachedmethod
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from pipelines.components import TextEncoder, Vae, encode_pictures, encode_text
from pipelines.data.batches import Batch

CACHE_BYTES = 2**29
"""Size of the cache of memories, and again of that of latents: 512 MiB, tens of thousands of captions or pictures."""


class Frozen:
    """The encoders of a run that are not trained. Without one of them, its side of a batch stays as it is.

    Args:
        folder: cache of latents on disk, a file for each picture and VAE, which later runs can share. None where no
            picture comes twice.
    """

    def __init__(self, text_encoder: TextEncoder | None, vae: Vae | None, folder: Path | None = None):
        self.text_encoder, self.vae = text_encoder, vae
        for network in (text_encoder, vae):
            if network is not None:
                network.requires_grad_(False).eval()  # T5 has dropout
        self.folder = None if folder is None or vae is None else folder / fingerprint(vae)[:16]
        self._memories: LRUCache[tuple, Tensor] = LRUCache(CACHE_BYTES, getsizeof=lambda tensor: tensor.nbytes)
        self._latents: LRUCache[str, Tensor] = LRUCache(CACHE_BYTES, getsizeof=lambda tensor: tensor.nbytes)

    def fingerprints(self, tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
        """Fingerprints of the networks by their kind. `tokenizer` is that of the text encoder, if there is one here."""
        found = {}
        if self.text_encoder is not None:
            found["text_encoder"] = _fingerprint(self.text_encoder, tokenizer.get_vocab())[:16]
        if self.vae is not None:
            found["vae"] = fingerprint(self.vae)[:16]
        return found

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[Batch, Tensor | None]:
        """A batch of pictures and token ids -> the same with latents and their noise, and the memory (B, T, M).

        The noise of a latent is the beginning of the picture's noise, so it is still a function of (seed, place).
        """
        memory = None if self.text_encoder is None else self.read(batch.ids, batch.token_mask)
        if self.vae is not None:
            latents = self.encode(batch.pictures)
            batch = replace(batch, pictures=latents, noise=beginning(batch.noise, latents.shape))
        return batch, memory

    def read(self, ids: Tensor, token_mask: Tensor) -> Tensor:
        """Token ids (B, T) and the mask of real tokens (B, T) -> memory (B, T, M), 0 where there is padding."""
        rows = [self._memory(row[real][None]) for row, real in zip(ids, token_mask, strict=True)]
        memory = torch.zeros(*ids.shape, rows[0].shape[-1], dtype=rows[0].dtype, device=ids.device)
        memory[token_mask] = torch.cat(rows).to(ids.device)
        return memory

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, h, w) in [-1, 1] -> latents (B, C, h/f, w/f)."""
        levels = ((pictures + 1) * 127.5).round().to(torch.uint8).cpu()  # the bytes they were read from
        latents = []
        for picture, bytes_ in zip(pictures, levels, strict=True):
            name = hashlib.sha256(repr(tuple(bytes_.shape)).encode() + bytes_.numpy().tobytes()).hexdigest()
            latents.append(self._latent(name, picture))
        return torch.stack(latents).to(pictures.device)

    @cachedmethod(lambda self: self._memories, key=lambda self, ids: tuple(ids[0].tolist()))
    def _memory(self, ids: Tensor) -> Tensor:
        """The memory of one caption's ids (1, T), (T, M)."""
        assert self.text_encoder is not None
        return encode_text(self.text_encoder, ids, torch.ones_like(ids, dtype=torch.bool))[0].cpu()

    @cachedmethod(lambda self: self._latents, key=lambda self, name, picture: name)
    def _latent(self, name: str, picture: Tensor) -> Tensor:
        """A picture's latent (C, h/f, w/f), read from the folder or encoded and written to it."""
        file = None if self.folder is None else self.folder / name[:2] / f"{name}.safetensors"
        if file is not None and file.is_file():
            try:
                return load_file(file)["latent"]
            except SafetensorError:  # a power cut left half a file: encode again
                pass
        latent = encode_pictures(self.vae, picture[None])[0].float().cpu().contiguous()
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            new = file.with_suffix(f".{os.getpid()}.new")  # several processes of a run may encode the same picture
            save_file({"latent": latent}, new)
            new.replace(file)
        return latent


def beginning(noise: Tensor, shape: torch.Size) -> Tensor:
    """The first numbers of each picture's noise (B, 3, h, w), in the shape of a batch of latents."""
    wanted = math.prod(shape[1:])
    if noise[0].numel() < wanted:
        raise ValueError(f"this VAE's latents hold {wanted} numbers, more than the {noise[0].numel()} of a picture")
    return noise.flatten(1)[:, :wanted].reshape(shape)


def fingerprint(vae: Vae) -> str:
    """A sha256 of a VAE's class, settings and weights; its name and place have no part in it."""
    return _fingerprint(vae, {key: value for key, value in vae.config.items() if not key.startswith("_")})


def _fingerprint(network: nn.Module, settings: Any) -> str:
    digest = hashlib.sha256(json.dumps([type(network).__name__, settings], sort_keys=True, default=str).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
