"""Properties of the attention mechanism, measured: its scale, its cost, its heads, and the decoder's cache.

Shapes: B batch, H heads, N queries, T keys, E width of one head.
"""

import itertools
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.bench.speed import seconds
from pipelines.components import can_translate
from pipelines.evaluation.agreement import fixed_scenes
from pipelines.runs.machine import machine
from pipelines.scenes.worlds import world_of
from pipelines.text_to_image import TextToImagePipeline
from unet_xattn import Transformer, flow
from unet_xattn.attention import MultiHeadAttention, Record
from unet_xattn.decoding import greedy


def bench_attention(pipe: TextToImagePipeline, repeats: int = 7) -> dict:
    """The scale, the cost, and the trained heads of `pipe`, in one report."""
    return {
        "machine": machine(),
        "scaling": {f"d_k {width}": scaling(width) for width in (16, 64, 256)},
        "by length": {f"n {n}": cost(n, heads=4, repeats=repeats) for n in (64, 256, 1024, 2048)},
        "by heads, n 512": {f"h {heads}": cost(512, heads, repeats=repeats) for heads in (1, 2, 4, 8, 16)},
        "trained heads": trained_heads(pipe),
    }


def bench_text(repeats: int = 7) -> dict:
    """Decoding with and without the cache, and a training step compared with torch's Transformer of the same size."""
    return {
        "machine": machine(),
        "decoding": {f"{n} tokens": decoding(n, repeats) for n in (16, 64, 256)},
        "training step / torch.nn.Transformer's": training_step(repeats),
    }


def scaling(width: int, queries: int = 4096, keys: int = 64) -> dict[str, float]:
    """The effect of 1/√d_k on queries and keys of independent unit components (section 3.2.1 of arXiv 1706.03762).

    `gradient` is the trace of softmax's Jacobian, Σ p(1 − p), its mean over rows: 0 where all weight is on one key.
    """
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(n, width, generator=generator) for n in (queries, keys))
    report = {}
    for name, scores in (("plain", q @ k.T), ("scaled", q @ k.T * width**-0.5)):
        p = scores.softmax(dim=-1)  # (queries, keys)
        report[f"variance, {name}"] = float(scores.var())
        report[f"gradient, {name}"] = float((p * (1 - p)).sum(dim=-1).mean())
    return report


def cost(n: int, heads: int, width: int = 128, batch: int = 4, repeats: int = 7) -> dict[str, float]:
    """Self-attention over n positions, forward and backward: explicit weights, and torch's fused kernel.

    In milliseconds, and in megabytes that the forward pass keeps for the backward pass.
    """
    torch.manual_seed(0)
    attention = MultiHeadAttention(width, heads)
    x = torch.randn(batch, n, width)

    def both_passes(record: Record | None) -> None:
        attention(x, record=record).sum().backward()

    records: dict[str, Record | None] = {"explicit": lambda weights: None, "fused": None}
    report = {}
    times: dict[str, list[float]] = {name: [] for name in records}
    for name, record in records.items():
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = attention(x, record=record)
        report[f"MB, {name}"] = sum(kept.values()) / 1e6
        del out
    for _ in range(repeats):  # in turn, so that both see the same drift of the machine
        for name, record in records.items():
            times[name].append(seconds(partial(both_passes, record)))
    return {f"ms, {name}": statistics.median(t) * 1e3 for name, t in times.items()} | report


@torch.no_grad()
def trained_heads(pipe: TextToImagePipeline, prompts: int = 8) -> dict[str, dict[str, float]]:
    """The behaviour of a trained model's heads, for each attention of encoder, decoder and UNet.

    `entropy`: of a query's weights, as a share of the largest possible. `distance`: from a token to those it attends
    to, in tokens; self-attention only. `overlap`: of two heads' weights, Σ min(p, q), the mean over all pairs; 1 where
    all heads are alike. The UNet is measured at noise level 0.5.
    """
    captions = [s.caption for s in fixed_scenes(prompts // 4, False, data=world_of(pipe.tokenizer))][:prompts]
    pairs: dict[str, list[dict[str, float]]] = {}
    for i, caption in enumerate(captions):  # one by one, so that nothing is padded

        def add(name: str, weights: Tensor) -> None:
            pairs.setdefault(name, []).append(behaviour(weights[0], self_attention=name.endswith("self")))

        ids = torch.tensor(pipe.tokenizer(caption)["input_ids"])[None]
        if isinstance(pipe.text_encoder, Transformer):
            memory = pipe.text_encoder.encode(ids, record=lambda name, w: add(f"{name}.self", w))
        else:
            memory, _ = pipe.encode_prompt([caption])
        if can_translate(pipe.text_encoder):
            pipe.text_encoder.decode(ids, memory, record=add)
        size = pipe.unet.config.sample_size
        noise = torch.randn(1, pipe.unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(i))
        pipe.unet(noise, 0.5 * flow.TRAIN_TIMESTEPS, memory, record=lambda name, w, _: add(f"unet.{name}", w))
    return {name: {key: statistics.mean(r[key] for r in rows) for key in rows[0]} for name, rows in pairs.items()}


def behaviour(weights: Tensor, self_attention: bool) -> dict[str, float]:
    """The weights of one layer (H, N, T) -> entropy, overlap and, for self-attention, distance (see above)."""
    heads, queries, keys = weights.shape
    entropy = -(weights * weights.clamp_min(1e-12).log()).sum(dim=-1).mean()
    report = {"entropy": float(entropy) / max(torch.tensor(keys).log().item(), 1e-12)}
    overlaps = [torch.minimum(a, b).sum(dim=-1).mean() for a, b in itertools.combinations(weights, 2)]
    report["overlap"] = float(torch.stack(overlaps).mean()) if heads > 1 else 1.0
    if self_attention:
        apart = (torch.arange(queries)[:, None] - torch.arange(keys)).abs()  # (N, T)
        report["distance"] = float((weights * apart).sum(dim=-1).mean())
    return report


def decoding(tokens: int, repeats: int = 7, batch: int = 4) -> dict[str, float]:
    """Tokens per second of greedy decoding, with and without the cache, and how often a layer projects the memory."""
    torch.manual_seed(0)
    model = Transformer(vocab_size=512, decoder_layers=2).eval()
    memory = torch.randn(batch, 24, model.config.width)
    projected = 0

    def count(*_: object) -> None:
        nonlocal projected
        projected += 1

    handle = model.decoder[0].cross_attention.to_k.register_forward_hook(count)  # type: ignore[union-attr]
    times: dict[bool, list[float]] = {True: [], False: []}
    projections = {}
    for cached in times:
        projected = 0
        greedy(model, memory, None, start=2, end=-1, max_tokens=tokens, use_cache=cached)  # -1: no token ends it
        projections[cached] = projected
    handle.remove()
    for _ in range(repeats):
        for cached in times:
            write = partial(greedy, model, memory, None, 2, -1, max_tokens=tokens, use_cache=cached)
            times[cached].append(seconds(write))
    rates = {cached: batch * tokens / statistics.median(measured) for cached, measured in times.items()}
    return {
        "tokens/s, cached": rates[True],
        "tokens/s, not cached": rates[False],
        "times faster": rates[True] / rates[False],
        "projections of memory, cached": projections[True],
        "projections of memory, not cached": projections[False],
    }


class TorchTransformer(nn.Module):
    """`torch.nn.Transformer` with the embedding, positions and tied output of our `Transformer`."""

    def __init__(self, like: Transformer):
        super().__init__()
        c = like.config
        self.ends = Transformer(c.vocab_size, c.width, encoder_layers=0)
        sizes = (c.width, c.heads, c.hidden or 4 * c.width, c.dropout, "gelu")
        how = {"batch_first": True, "norm_first": c.norm_first}
        encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(*sizes, **how),
            c.encoder_layers,
            nn.LayerNorm(c.width),
            enable_nested_tensor=False,  # only possible with post-norm
        )
        self.transformer = nn.Transformer(
            c.width, c.heads, 0, c.decoder_layers, *sizes[2:], custom_encoder=encoder, **how
        )

    def forward(self, source: Tensor, target: Tensor, source_mask: Tensor, target_mask: Tensor) -> Tensor:
        """The same as `Transformer.forward`. Torch's masks are True where attention is not allowed."""
        x = self.transformer(
            self.ends.embed(source),
            self.ends.embed(target),
            tgt_mask=~torch.ones(target.shape[1], target.shape[1], dtype=torch.bool, device=target.device).tril(),
            src_key_padding_mask=~source_mask,
            tgt_key_padding_mask=~target_mask,
            memory_key_padding_mask=~source_mask,
        )
        return F.linear(x, self.ends.embedding.weight)


def training_step(repeats: int = 7, batch: int = 64, tokens: int = 24) -> float:
    """Our time for a training step / that of `torch.nn.Transformer`, the median of pairs. A tenth of it is padding."""
    torch.manual_seed(0)
    ours = Transformer(vocab_size=4096, decoder_layers=3)
    models = {"ours": ours, "torch": TorchTransformer(ours)}
    source, target = torch.randint(4, 4096, (2, batch, tokens))
    mask = torch.arange(tokens) < torch.randint(tokens * 8 // 10, tokens + 1, (batch, 1))

    def stepper(model: nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

        def step() -> None:
            logits = model(source, target, mask, mask)
            F.cross_entropy(logits.flatten(0, 1), target.flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    steps = {name: stepper(model) for name, model in models.items()}
    for step in steps.values():
        step()
    rounds = [{name: seconds(step) for name, step in steps.items()} for _ in range(repeats)]
    return statistics.median(r["ours"] / r["torch"] for r in rounds)
