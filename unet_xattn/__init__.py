"""Attention, the Transformer, the UNet, and traces of their attention: tensors in, tensors out.

The public names are imported when they are first used, so that a command that needs none of them starts fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet_xattn.attention import MultiHeadAttention, attention_weights
    from unet_xattn.trace import AttentionTrace
    from unet_xattn.transformer import Transformer
    from unet_xattn.unet import CrossAttentionUNet

__all__ = ["AttentionTrace", "CrossAttentionUNet", "MultiHeadAttention", "Transformer", "attention_weights"]

_MODULES = {
    "AttentionTrace": "unet_xattn.trace",
    "CrossAttentionUNet": "unet_xattn.unet",
    "MultiHeadAttention": "unet_xattn.attention",
    "Transformer": "unet_xattn.transformer",
    "attention_weights": "unet_xattn.attention",
}


def __getattr__(name: str) -> Any:  # PEP 562
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
