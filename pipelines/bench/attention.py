"""What the attention mechanism promises, measured: the scale, the cost, the heads, the cache.

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
    """Everything below in one report; `pipe`'s trained heads are those that are looked at."""
    return {
        "machine": machine(),
        "scaling": {f"d_k {width}": scaling(width) for width in (16, 64, 256)},
        "by length": {f"n {n}": cost(n, heads=4, repeats=repeats) for n in (64, 256, 1024, 2048)},
        "by heads, n 512": {f"h {heads}": cost(512, heads, repeats=repeats) for heads in (1, 2, 4, 8, 16)},
        "trained heads": trained_heads(pipe),
    }


def bench_text(repeats: int = 7) -> dict:
    """Decoding with and without its cache, and a training step beside torch's own Transformer of the same size."""
    return {
        "machine": machine(),
        "decoding": {f"{n} tokens": decoding(n, repeats) for n in (16, 64, 256)},
        "training step / torch.nn.Transformer's": training_step(repeats),
    }


def scaling(width: int, queries: int = 4096, keys: int = 64) -> dict[str, float]:
    """Section 3.2.1 of arXiv 1706.03762: what 1/√d_k does for queries and keys of independent unit components.

    `gradient` is the trace of softmax's Jacobian, Σ p(1 − p), a row's mean: 0 where all weight is on one key.
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
    """Self-attention over n positions, forward and back: explicit weights beside torch's fused kernel.

    Milliseconds, and megabytes kept from the forward pass for the way back.
    """
    torch.manual_seed(0)
    attention = MultiHeadAttention(width, heads)
    x = torch.randn(batch, n, width)

    def there_and_back(record: Record | None) -> None:
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
    for _ in range(repeats):  # in turn, so that a drift of the machine touches both
        for name, record in records.items():
            times[name].append(seconds(partial(there_and_back, record)))
    return {f"ms, {name}": statistics.median(t) * 1e3 for name, t in times.items()} | report


@torch.no_grad()
def trained_heads(pipe: TextToImagePipeline, prompts: int = 8) -> dict[str, dict[str, float]]:
    """How a trained model's heads behave and differ, for each attention of encoder, decoder and UNet.

    `entropy` of a query's weights as a share of the greatest there can be; `distance` from a token to those it reads,
    in tokens, where it reads its own sentence; `overlap` of two heads' weights, Σ min(p, q), their pairs' mean: 1 where
    all heads look alike. The UNet is looked at half way to noise.
    """
    captions = [s.caption for s in fixed_scenes(prompts // 4, False, data=world_of(pipe.tokenizer))][:prompts]
    pairs: dict[str, list[dict[str, float]]] = {}
    for i, caption in enumerate(captions):  # one by one: no padding in the way

        def look(name: str, weights: Tensor) -> None:
            pairs.setdefault(name, []).append(behaviour(weights[0], reads_itself=name.endswith("self")))

        ids = torch.tensor(pipe.tokenizer(caption)["input_ids"])[None]
        if isinstance(pipe.text_encoder, Transformer):
            memory = pipe.text_encoder.encode(ids, record=lambda name, w: look(f"{name}.self", w))
        else:
            memory, _ = pipe.encode_prompt([caption])
        if can_translate(pipe.text_encoder):
            pipe.text_encoder.decode(ids, memory, record=look)
        size = pipe.unet.config.sample_size
        noise = torch.randn(1, pipe.unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(i))
        pipe.unet(noise, 0.5 * flow.TRAIN_TIMESTEPS, memory, record=lambda name, w, _: look(f"unet.{name}", w))
    return {name: {key: statistics.mean(r[key] for r in rows) for key in rows[0]} for name, rows in pairs.items()}


def behaviour(weights: Tensor, reads_itself: bool) -> dict[str, float]:
    """Weights of one layer, (H, N, T) -> entropy, overlap and, where it `reads_itself`, distance (see above)."""
    heads, queries, keys = weights.shape
    entropy = -(weights * weights.clamp_min(1e-12).log()).sum(dim=-1).mean()
    report = {"entropy": float(entropy) / max(torch.tensor(keys).log().item(), 1e-12)}
    overlaps = [torch.minimum(a, b).sum(dim=-1).mean() for a, b in itertools.combinations(weights, 2)]
    report["overlap"] = float(torch.stack(overlaps).mean()) if heads > 1 else 1.0
    if reads_itself:
        apart = (torch.arange(queries)[:, None] - torch.arange(keys)).abs()  # (N, T)
        report["distance"] = float((weights * apart).sum(dim=-1).mean())
    return report


def decoding(tokens: int, repeats: int = 7, batch: int = 4) -> dict[str, float]:
    """Tokens a second, greedy, with and without the cache; the memory's projections it takes for each layer."""
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
        greedy(model, memory, None, start=2, end=-1, max_tokens=tokens, use_cache=cached)  # no token ends it
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
    """`torch.nn.Transformer` between the same embedding, positions and tied output as `Transformer`."""

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
            enable_nested_tensor=False,  # for which it wants post-norm
        )
        self.transformer = nn.Transformer(
            c.width, c.heads, 0, c.decoder_layers, *sizes[2:], custom_encoder=encoder, **how
        )

    def forward(self, source: Tensor, target: Tensor, source_mask: Tensor, target_mask: Tensor) -> Tensor:
        """As `Transformer.forward`; torch's own masks are True where it must not look."""
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
    """Time of one of our training steps over that of `torch.nn.Transformer`, median of pairs; a tenth is padding."""
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
