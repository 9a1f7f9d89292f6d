"""The networks of a pipeline: which classes are supported, loading them safely, and calling them alike.

A text encoder is our Transformer, or a CLIPTextModel or T5EncoderModel of transformers. A VAE is an AutoencoderKL or
AutoencoderTiny of diffusers. Weights are read from safetensors only, and code that comes with a model is never run.

Shapes: B batch, T tokens, M width of the memory, C channels of a latent, f the VAE's scale factor, h×w pixels.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, PreTrainedModel, PreTrainedTokenizerFast, T5EncoderModel
from transformers.utils import logging as transformers_logging

from pipelines.tokenizer import MAX_TOKENS
from unet_xattn import CrossAttentionUNet, Transformer

TextEncoder: TypeAlias = Transformer | CLIPTextModel | T5EncoderModel
Vae: TypeAlias = AutoencoderKL | AutoencoderTiny

TEXT_ENCODERS = {kind.__name__: kind for kind in (Transformer, CLIPTextModel, T5EncoderModel)}
VAES = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny)}
MODEL_TYPES = {"clip": CLIPTextModel, "clip_text_model": CLIPTextModel, "t5": T5EncoderModel}
"""`model_type` of transformers' config -> the encoder's class; configs of a full CLIP or T5 model are accepted too."""

SOURCE = ("dtype", "torch_dtype", "revision", "cache_dir", "token", "variant")
"""Arguments of `from_pretrained` that also hold for each network: its source and its dtype."""


# Loading.


_LOADING = RLock()
"""Held while models load, because `quiet` changes settings that all threads share."""


@contextmanager
def quiet() -> Iterator[None]:
    """Load without progress bars and without transformers' notes on unused weights; bars of downloads stay.

    Loading takes no time. Which weights are missing is checked here, and a full CLIP always has unused ones. The
    user's settings are restored afterwards.
    """
    with _LOADING:
        verbosity, downloads = transformers_logging.get_verbosity(), not are_progress_bars_disabled()
        barred = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
        transformers_logging.set_verbosity_error()
        for library in barred:
            library.disable_progress_bar()
        if downloads:  # transformers hides these with its own
            enable_progress_bars()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            for library in barred:
                library.enable_progress_bar()
            if not downloads:
                disable_progress_bars()


def load_network(kind: Any, path: str, part: str, **source: Any) -> Any:
    """A network from the folder `part` of a model, all of whose weights were found and are finite.

    The libraries' own loaders accept missing tensors and NaN silently.

    Raises:
        ValueError: weights are missing, of another shape or not finite, or not in safetensors.
    """
    if issubclass(kind, PreTrainedModel):  # whose default is the dtype the weights were saved in
        source["dtype"] = source.pop("torch_dtype", None) or source.get("dtype") or torch.float32
    try:
        with quiet():
            network, info = kind.from_pretrained(
                path, subfolder=part, output_loading_info=True, use_safetensors=True, **source
            )
    except RuntimeError as error:
        raise ValueError(f"{path}: weights of {part or kind.__name__} do not fit: {_line(error)}") from error
    except OSError as error:
        name = part or kind.__name__
        raise ValueError(f"{path} has no {name} in safetensors (pickles are not read): {_line(error)}") from error
    missing = info["missing_keys"]
    if unusable := missing or [n for n, tensor in network.state_dict().items() if not tensor.isfinite().all()]:
        names = ", ".join(sorted(unusable)[:3])
        raise ValueError(f"{path}: weights of {part or kind.__name__} are missing or not numbers: {names}")
    return network


def load_components(path: str, given: dict[str, Any], **source: Any) -> dict[str, Any]:
    """The networks of a pipeline's folder or hub id, except those in `given`.

    Raises:
        ValueError: a network's class is not supported, or its weights are incomplete.
        OSError: the model is not found.
    """
    index = _read_json(path, "model_index.json", **source)
    kinds = {"text_encoder": TEXT_ENCODERS, "unet": {"CrossAttentionUNet": CrossAttentionUNet}, "vae": VAES}
    networks = {}
    for part, supported in kinds.items():
        if part in given:
            continue
        name = (index.get(part) or [None, None])[1]
        if name is None and part == "vae":
            continue
        if name not in supported:
            raise ValueError(f"{path}: its {part} is a {name}, this pipeline takes {' or '.join(supported)}")
        networks[part] = load_network(supported[name], path, part, **source)
    return networks


def find_text_encoder(name: str) -> tuple[PreTrainedTokenizerFast, TextEncoder]:
    """A text encoder of transformers and its tokenizer, whose `model_max_length` is what the encoder reads.

    Args:
        name: a folder or hub id of the encoder, or of a diffusers pipeline with `text_encoder` and `tokenizer`.

    Raises:
        ValueError: no text encoder is found, it is of another kind, or its tokenizer does not fit.
    """
    config, part = _find_config(name, "text_encoder")
    kind = MODEL_TYPES.get(config.get("model_type", ""))
    if kind is None:
        found = config.get("model_type") or config.get("_class_name") or "of unknown kind"
        raise ValueError(f"{name} is {found}: a text encoder is a CLIPTextModel or a T5EncoderModel of transformers")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                name, subfolder="tokenizer" if part else "", trust_remote_code=False
            )
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{name} has no tokenizer that can be read: save its tokenizer.json beside it") from error
    if not tokenizer.is_fast:
        raise ValueError(f"{name}: its tokenizer has no offsets: save a fast one, with a tokenizer.json")
    text_encoder = load_network(kind, name, part)
    check_tokenizer(name, tokenizer, text_encoder)
    limits = (tokenizer.model_max_length, getattr(text_encoder.config, "max_position_embeddings", None))
    known_limits = [limit for limit in limits if limit and limit < 10**6]  # 10³⁰ means no limit
    tokenizer.model_max_length = min(known_limits, default=MAX_TOKENS)
    return tokenizer, text_encoder


def check_tokenizer(name: str, tokenizer: PreTrainedTokenizerFast, text_encoder: TextEncoder) -> None:
    """Raise ValueError where a tokenizer does not belong to an encoder of transformers.

    Where its files are missing, transformers silently returns one without a vocabulary.
    """
    if isinstance(text_encoder, Transformer):
        return
    known = text_encoder.config.vocab_size
    if len(tokenizer) > known:
        raise ValueError(f"{name}: its tokenizer has {len(tokenizer)} tokens, its text encoder knows {known}")
    if tokenizer.unk_token_id in tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise ValueError(f"{name}: its tokenizer cannot spell 'a': are the files of its vocabulary missing?")
    if not tokenizer("")["input_ids"]:
        raise ValueError(
            f"{name}: its tokenizer adds neither a start nor an end token, so an empty caption has no tokens"
        )


def find_vae(name: str) -> Vae:
    """A VAE of diffusers.

    Args:
        name: a folder or hub id of the VAE, or of a diffusers pipeline with a `vae`.

    Raises:
        ValueError: no VAE is found, or it is of another kind.
    """
    config, part = _find_config(name, "vae")
    kind = VAES.get(config.get("_class_name", ""))
    if kind is None:
        found = config.get("_class_name") or config.get("model_type") or "of unknown kind"
        raise ValueError(f"{name} is {found}: a VAE is an AutoencoderKL or an AutoencoderTiny of diffusers")
    return load_network(kind, name, part)


def _find_config(name: str, part: str) -> tuple[dict[str, Any], str]:
    """The config.json of a network, and its folder: "", or `part` where the model is a pipeline."""
    errors = []
    for folder in ("", part):
        try:
            return _read_json(name, f"{folder}/config.json".lstrip("/")), folder
        except (OSError, ValueError) as error:
            errors.append(error)
    raise ValueError(
        f"{name} has no {part}: give a folder or a hub id that holds its config.json, or a pipeline's with {part}/"
    ) from errors[0]


def _read_json(name: str, file: str, **source: Any) -> dict[str, Any]:
    """A JSON file of a folder or of a hub id."""
    if Path(name).is_dir():
        path = Path(name) / file
    else:
        where = {key: value for key, value in source.items() if key in ("revision", "cache_dir", "token")}
        path = Path(hf_hub_download(name, file, **where))
    return json.loads(path.read_text())


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


# Texts.


def encode_text(text_encoder: TextEncoder, ids: Tensor, token_mask: Tensor) -> Tensor:
    """Token ids (B, T) and their mask (B, T) -> memory (B, T, M): the encoder's last hidden state."""
    if isinstance(text_encoder, Transformer):
        return text_encoder.encode(ids, token_mask)
    return text_encoder(input_ids=ids, attention_mask=token_mask).last_hidden_state


def memory_width(text_encoder: TextEncoder) -> int:
    """M, the width of an encoder's memory."""
    config = text_encoder.config
    return config.width if isinstance(text_encoder, Transformer) else config.hidden_size


def can_translate(text_encoder: TextEncoder) -> bool:
    """Whether the encoder comes with a decoder that reads its memory: ours may, those of transformers never do."""
    return isinstance(text_encoder, Transformer) and len(text_encoder.decoder) > 0


# Pictures.


def scale_factor(vae: Vae | None) -> int:
    """f, the side in pixels of one position of a latent; 1 without a VAE."""
    return 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)


def encode_pictures(vae: Vae | None, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, h, w) in [-1, 1] -> latents (B, C, h/f, w/f), centred and scaled by the VAE's config.

    An AutoencoderKL predicts a distribution; its mode is used, so that each picture has one latent. Without a VAE the
    pictures are returned unchanged.
    """
    if vae is None:
        return pictures
    encoded = vae.encode(pictures.to(vae.dtype))
    latents = encoded.latent_dist.mode() if isinstance(vae, AutoencoderKL) else encoded.latents
    return (latents - (vae.config.shift_factor or 0)) * vae.config.scaling_factor


def decode_latents(vae: Vae | None, latents: Tensor) -> Tensor:
    """The inverse: latents (B, C, h/f, w/f) -> pictures (B, 3, h, w), about in [-1, 1]."""
    if vae is None:
        return latents
    return vae.decode((latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)).to(vae.dtype)).sample


def check_size(unet: CrossAttentionUNet, vae: Vae | None, height: int, width: int) -> None:
    """Raise ValueError unless both sides are positive multiples of what VAE and UNet downsample by."""
    multiple = unet.size_multiple * scale_factor(vae)
    if height % multiple or width % multiple or min(height, width) <= 0:
        raise ValueError(f"this model draws sizes that are multiples of {multiple} pixels, got {width}×{height}")


def to_tensor(pictures: np.ndarray) -> Tensor:
    """Pictures (B, h, w, 3) uint8 -> (B, 3, h, w) float32 in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
