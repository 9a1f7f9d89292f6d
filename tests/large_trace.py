"""A recording as large models leave it, made of numbers: many layers, fine grids, long texts, a large picture."""

import numpy as np
import torch

from unet_xattn import AttentionTrace
from unet_xattn.trace_plan import Recording
from unet_xattn.words import SPECIAL, Text, Word

GRIDS = {f"blocks.{i}.attn": (64, 64) if i % 3 else (32, 32) for i in range(30)}


def photograph(side: int) -> np.ndarray:
    """Noise whose amplitude falls with frequency as that of photographs does: (side, side, 3) uint8."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) + 1 / side
    generator = np.random.default_rng(0)
    channels = [np.fft.irfft2(np.fft.rfft2(generator.standard_normal((side, side))) / frequency) for _ in range(3)]
    shown = np.stack(channels, axis=-1)
    return np.clip(128 + 48 * shown / shown.std(), 0, 255).astype(np.uint8)


def large_trace(words: int = 75, encoders: int = 2) -> AttentionTrace:
    """A prompt of so many words, each of one token of the first encoder and three of each other; 30 layers."""
    names = [f"word{i}" for i in range(words)]
    tokens, found, text = ["[start]"], [], " ".join(names)
    own: dict[str, list[int]] = {name: [] for name in names}
    for encoder in range(encoders):
        for name in names:
            for part in range(3 if encoder else 1):
                own[name].append(len(tokens))
                tokens.append(f"{name}.{part}")
    start = 0
    for name in names:
        found.append(Word(name, start, start + len(name), tuple(own[name])))
        start += len(name) + 1
    read = Text(text, tuple(found), (*tokens, "[end]"), (0, len(tokens)))
    assert read.named[SPECIAL] == (0, len(tokens))
    attention = AttentionTrace("mean")
    attention.start(Recording({"prompt": [read]}, (1024, 1024), GRIDS, dict.fromkeys(GRIDS, 1), 28))
    for layer, (rows, columns) in GRIDS.items():
        scores = torch.randn(1, 1, rows * columns, len(read.tokens)) + torch.randn(len(read.tokens))
        attention.recorder(0, {"prompt": slice(None)})(layer, scores.softmax(dim=-1), (rows, columns))
    attention.finish(torch.from_numpy(photograph(1024))[None])
    return attention
