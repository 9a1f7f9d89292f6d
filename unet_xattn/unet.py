"""A compact UNet in whose blocks image positions (queries) read the memory (keys and values).

The memory is the encoded prompt, one vector per token. Each cross-attention layer projects it to its own K and V.

Shapes: B batch, C channels, h×w the grid of one level, N = h·w its positions, T tokens, M width of the memory,
P patch size, H attention heads, S width of the time embedding.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn import functional as F

from unet_xattn import flow
from unet_xattn.attention import MultiHeadAttention, Record, RecordLayer, padding_mask
from unet_xattn.transformer import sinusoidal_positions


def zeroed(module: nn.Module) -> nn.Module:
    """The module with its weights and bias set to zero: a residual branch that ends in it starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class GroupNorm(nn.GroupNorm):
    """Group normalisation in fp32. Autocast does so on GPUs anyway, and on CPUs torch's bf16 kernel is slow."""

    def __init__(self, channels: int):
        super().__init__(math.gcd(16, channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return F.group_norm(x.to(wide), self.num_groups, weight, bias, self.eps).to(x.dtype)


class ResidualBlock(nn.Module):
    """Two convolutions with a residual; the noise level scales and shifts the features between (arXiv 2105.05233)."""

    def __init__(self, channels_in: int, channels: int, time_width: int, dropout: float):
        super().__init__()
        self.norm1 = GroupNorm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.time = nn.Linear(time_width, 2 * channels)
        self.norm2 = GroupNorm(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        self.shortcut = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)  # (B, C, 1, 1) each
        branch = self.conv1(F.silu(self.norm1(x)))  # (B, C, h, w)
        branch = torch.addcmul(shift, self.norm2(branch), 1 + scale)
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(branch)))


class AttentionBlock(nn.Module):
    """Self-attention over image positions (optional), then cross-attention over the memory, each with a residual."""

    def __init__(self, channels: int, heads: int, memory_width: int, self_attention: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels) if self_attention else None
        self.self_attention = MultiHeadAttention(channels, heads, zero_init=True) if self_attention else None
        self.norm2 = nn.LayerNorm(channels)
        self.cross_attention = MultiHeadAttention(channels, heads, memory_width, zero_init=True)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        mask: Tensor | None,
        record: Record | None = None,
        record_self: Record | None = None,
    ) -> Tensor:
        grid = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)  # (B, N, C)
        if self.self_attention is not None and self.norm1 is not None:
            x = x + self.self_attention(self.norm1(x), record=record_self)
        x = x + self.cross_attention(self.norm2(x), memory, mask, record)
        return x.transpose(1, 2).unflatten(2, grid)  # (B, C, h, w)


class UNetBlock(nn.Module):
    """A residual block and, on levels with cross-attention, an attention block. Level 0 is the finest grid."""

    def __init__(self, level: int, residual: ResidualBlock, attention: AttentionBlock | None):
        super().__init__()
        self.level = level
        self.residual = residual
        self.attention = attention

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        memory: Tensor,
        mask: Tensor | None,
        record: Record | None = None,
        record_self: Record | None = None,
    ) -> Tensor:
        x = self.residual(x, time)
        return x if self.attention is None else self.attention(x, memory, mask, record, record_self)


@dataclass
class CrossAttentionUNetOutput(BaseOutput):
    """The output of `CrossAttentionUNet`; `sample` (B, C, height, width) is the predicted velocity."""

    sample: Tensor


class CrossAttentionUNet(ModelMixin, ConfigMixin):
    """Predicts the velocity of the flow from picture to noise, from a noisy picture, its noise level and the memory.

    The layers predict the clean picture; `forward` converts it to the velocity. Noise varies in every dimension of a
    patch, pictures in few (arXiv 2511.13720): a narrow network that predicted the velocity itself would need most of
    its width to pass the noise through.

    The text reaches the picture only through cross-attention; no pooled text is added to the time embedding. So every
    influence of the text enters through a layer that can be recorded.

    Args:
        sample_size: height and width of the training pictures, in pixels; other multiples of `size_multiple` work too.
        in_channels: channels of the picture (or latent).
        patch_size: P; each P×P patch of pixels becomes one position of the finest grid.
        block_out_channels: channels of each level, finest first; each level halves the grid.
        layers_per_block: blocks per level on the way down, and again on the way up; one number, or one per level.
        cross_attention: which levels attend to the memory.
        self_attention: on which levels positions also attend to one another, at a cost that grows with their square.
        heads: attention heads of every attention layer.
        memory_width: M, width of the memory.
        dropout: probability of dropping a unit of a residual block during training.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        patch_size: int = 2,
        block_out_channels: tuple[int, ...] = (48, 96, 160, 160),
        layers_per_block: int | tuple[int, ...] = (1, 2, 1, 1),
        cross_attention: tuple[bool, ...] = (False, True, True, True),
        self_attention: tuple[bool, ...] = (False, False, True, True),
        heads: int = 4,
        memory_width: int = 128,
        dropout: float = 0.0,
    ):
        super().__init__()
        levels = len(block_out_channels)
        depths = [layers_per_block] * levels if isinstance(layers_per_block, int) else list(layers_per_block)
        for name, value in [
            ("layers_per_block", depths),
            ("cross_attention", cross_attention),
            ("self_attention", self_attention),
        ]:
            if len(value) != levels:
                raise ValueError(f"{name} has {len(value)} entries for {levels} levels: give one per level")
        if any(own and not cross for own, cross in zip(self_attention, cross_attention, strict=True)):
            raise ValueError("a level with self_attention needs cross_attention: the two share a block")

        self.gradient_checkpointing = False
        self.size_multiple = patch_size * 2 ** (levels - 1)
        time_width = 4 * block_out_channels[0]

        def block(level: int, channels_in: int) -> UNetBlock:
            channels = block_out_channels[level]
            attention = None
            if cross_attention[level]:
                attention = AttentionBlock(channels, heads, memory_width, self_attention[level])
            return UNetBlock(level, ResidualBlock(channels_in, channels, time_width, dropout), attention)

        self.time_embedding = nn.Sequential(
            nn.Linear(block_out_channels[0], time_width), nn.SiLU(), nn.Linear(time_width, time_width), nn.SiLU()
        )
        # Two more channels hold the position of each patch (CoordConv, arXiv 1807.03247): "left of" needs a left.
        channels = block_out_channels[0]
        self.conv_in = nn.Conv2d(in_channels * patch_size**2 + 2, channels, 3, padding=1)

        self.down, skips = nn.ModuleList(), []
        for level in range(levels):
            blocks = []
            for _ in range(depths[level]):
                blocks.append(block(level, channels))
                channels = block_out_channels[level]
                skips.append(channels)
            self.down.append(nn.ModuleList(blocks))
        self.mid = block(levels - 1, channels)
        self.up = nn.ModuleList()
        for level in reversed(range(levels)):
            blocks = []
            for _ in range(depths[level]):
                blocks.append(block(level, channels + skips.pop()))
                channels = block_out_channels[level]
            self.up.append(nn.ModuleList(blocks))

        self.norm_out = GroupNorm(channels)
        self.conv_out = zeroed(nn.Conv2d(channels, in_channels * patch_size**2, 3, padding=1))

    @property
    def attention_layers(self) -> list[str]:
        """Names of the blocks with cross-attention, in the order they run, as `record` receives them.

        "down.0.0" is the first block of the finest level, "up.0.0" the first block of the coarsest.
        """
        return [name for name, _ in self._attention_blocks()]

    def attention_grids(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        """The grid (h, w) of each of `attention_layers`, for a picture of this many pixels."""
        sides = {name: self.config.patch_size * 2**block.level for name, block in self._attention_blocks()}
        return {name: (height // side, width // side) for name, side in sides.items()}

    def _attention_blocks(self) -> Iterator[tuple[str, UNetBlock]]:
        for name, module in self.named_modules():  # registered in the order they run: down, mid, up
            if isinstance(module, UNetBlock) and module.attention is not None:
                yield name, module

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError if the levels cannot halve a grid of this many pixels."""
        if height % self.size_multiple or width % self.size_multiple or min(height, width) <= 0:
            raise ValueError(
                f"this model draws sizes that are multiples of {self.size_multiple} pixels, got {width}×{height}"
            )

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
        record: RecordLayer | None = None,
        record_self: RecordLayer | None = None,
    ) -> CrossAttentionUNetOutput | tuple[Tensor]:
        """Predict the velocity of a noisy picture.

        Args:
            sample: noisy pictures (B, C, height, width).
            timestep: a number or (B,), from 0 (clean) to 1000 (noise).
            encoder_hidden_states: the memory (B, T, M).
            encoder_attention_mask: which of its tokens are real (B, T).
            record: called as f(name, weights (B, H, h·w, T), (h, w)) by every cross-attention layer, which uses what it
                returns, if anything, instead of these weights. A recorded pass does not use gradient checkpointing,
                because recomputing would record twice.
            record_self: likewise for the self-attention of positions, with weights (B, H, h·w, h·w).

        Returns:
            `.sample` (B, C, height, width), or a tuple of it where `return_dict` is False.
        """
        self.check_size(*sample.shape[-2:])
        memory = encoder_hidden_states
        mask = None if encoder_attention_mask is None else padding_mask(encoder_attention_mask)
        timestep = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])  # (B,)
        time = sinusoidal_positions(timestep, self.config.block_out_channels[0]).to(sample.dtype)
        time = self.time_embedding(time)  # (B, S)

        def run(name: str, block: UNetBlock, x: Tensor) -> Tensor:
            if record is not None or record_self is not None:
                grid = (x.shape[-2], x.shape[-1])
                return block(x, time, memory, mask, _named(record, name, grid), _named(record_self, name, grid))
            if self.gradient_checkpointing and torch.is_grad_enabled():
                return self._gradient_checkpointing_func(block, x, time, memory, mask)
            return block(x, time, memory, mask)

        x = F.pixel_unshuffle(sample, self.config.patch_size)  # (B, C·P², h, w)
        x = self.conv_in(torch.cat([x, coordinates(x)], dim=1))
        skips = []
        for i, blocks in enumerate(self.down):
            x = F.avg_pool2d(x, 2) if i else x
            for j, block in enumerate(blocks):  # type: ignore[arg-type, var-annotated]
                x = run(f"down.{i}.{j}", block, x)
                skips.append(x)
        x = run("mid", self.mid, x)
        for i, blocks in enumerate(self.up):
            x = F.interpolate(x, scale_factor=2.0) if i else x
            for j, block in enumerate(blocks):  # type: ignore[arg-type, var-annotated]
                x = run(f"up.{i}.{j}", block, torch.cat([x, skips.pop()], dim=1))
        x = self.conv_out(F.silu(self.norm_out(x)))
        clean = F.pixel_shuffle(x, self.config.patch_size)  # (B, C, height, width)
        velocity = flow.velocity_from(clean, sample, timestep / flow.TRAIN_TIMESTEPS)
        return CrossAttentionUNetOutput(sample=velocity) if return_dict else (velocity,)


def _named(record: RecordLayer | None, name: str, grid: tuple[int, int]) -> Record | None:
    return None if record is None else lambda weights: record(name, weights, grid)


def coordinates(x: Tensor) -> Tensor:
    """Coordinates (x, y) of each position, from -1 (left, top) to 1 (right, bottom): (B, C, h, w) -> (B, 2, h, w)."""
    b, _, h, w = x.shape
    centre_x = (torch.arange(w, device=x.device, dtype=x.dtype) * 2 + 1) / w - 1
    centre_y = (torch.arange(h, device=x.device, dtype=x.dtype) * 2 + 1) / h - 1
    return torch.stack([centre_x.expand(h, w), centre_y[:, None].expand(h, w)]).expand(b, 2, h, w)
