"""Attention, the Transformer, the UNet and what their attention says: tensors in, tensors out."""

from unet_xattn.attention import MultiHeadAttention, attention_weights
from unet_xattn.trace import AttentionTrace
from unet_xattn.transformer import Transformer
from unet_xattn.unet import CrossAttentionUNet

__all__ = ["AttentionTrace", "CrossAttentionUNet", "MultiHeadAttention", "Transformer", "attention_weights"]
