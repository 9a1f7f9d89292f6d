"""Writing a sentence from memory, one token at a time: greedy, sampled or by beam search.

Each function takes a batch of memories, (B, S, M) with the mask of their real tokens (B, S), and returns for each the
token ids that were written, without `start` and without `end`; `greedy_steps` gives them out as it goes.

Shapes: B batch, K beams, S source tokens, T tokens written so far, V vocabulary.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from unet_xattn.transformer import DecoderCache, Transformer


def greedy(
    model: Transformer,
    memory: Tensor,
    memory_mask: Tensor | None,
    start: int,
    end: int,
    max_tokens: int = 64,
    use_cache: bool = True,
) -> list[list[int]]:
    """The likeliest token each time. Without the cache every step computes all tokens again: the same, but slower."""
    steps = _steps(model, memory, memory_mask, start, end, max_tokens, _likeliest, use_cache)
    return _collect(steps, len(memory), end)


def greedy_steps(
    model: Transformer, memory: Tensor, memory_mask: Tensor | None, start: int, end: int, max_tokens: int = 64
) -> Iterator[Tensor]:
    """What `greedy` writes, as it is written: the token ids of each step, (B,), `end` where a sentence is over."""
    return _steps(model, memory, memory_mask, start, end, max_tokens, _likeliest)


def _likeliest(logits: Tensor) -> Tensor:
    return logits.argmax(dim=-1)


def sample(
    model: Transformer,
    memory: Tensor,
    memory_mask: Tensor | None,
    start: int,
    end: int,
    max_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """A token drawn from the model's distribution each time.

    Args:
        temperature: below 1 sharpens the distribution, above 1 flattens it.
        top_k: draw among the k likeliest tokens only.
        top_p: draw among the likeliest tokens that together hold this much of the probability (nucleus sampling,
            arXiv 1904.09751); the likeliest is always one of them.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}: for the likeliest token use greedy")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be 1 or more, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")

    def draw(logits: Tensor) -> Tensor:
        probabilities = allowed(logits / temperature, top_k, top_p).softmax(dim=-1)
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)

    return _collect(_steps(model, memory, memory_mask, start, end, max_tokens, draw), len(memory), end)


def allowed(logits: Tensor, top_k: int | None, top_p: float) -> Tensor:
    """Logits (B, V) with -inf for every token that `top_k` or `top_p` rules out."""
    ordered, order = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)  # held by the likelier ones
    out = before >= top_p
    if top_k is not None:
        out[:, top_k:] = True
    out[:, 0] = False
    return logits.masked_fill(out.scatter(-1, order, out), -torch.inf)


@torch.no_grad()
def _steps(
    model: Transformer,
    memory: Tensor,
    memory_mask: Tensor | None,
    start: int,
    end: int,
    max_tokens: int,
    choose: Callable[[Tensor], Tensor],
    use_cache: bool = True,
) -> Iterator[Tensor]:
    ids = torch.full((len(memory), 1), start, device=memory.device)  # (B, T)
    finished = torch.zeros(len(memory), dtype=torch.bool, device=memory.device)  # (B,)
    cache = DecoderCache(len(model.decoder)) if use_cache else None
    for _ in range(max_tokens):
        logits = model.decode(ids[:, -1:] if use_cache else ids, memory, memory_mask, cache=cache)[:, -1]  # (B, V)
        token = choose(logits.float()).masked_fill(finished, end)
        yield token
        ids = torch.cat([ids, token[:, None]], dim=1)
        finished |= token == end
        if finished.all():
            break


@torch.no_grad()
def beam_search(
    model: Transformer,
    memory: Tensor,
    memory_mask: Tensor | None,
    start: int,
    end: int,
    max_tokens: int = 64,
    beams: int = 4,
    length_penalty: float = 0.6,
) -> list[list[int]]:
    """The likeliest of the sentences that `beams` of them at a time lead to.

    Sentences are ranked by log-probability / ((5 + length) / 6)^`length_penalty` (arXiv 1609.08144, eq. 14), so
    that long ones are not put last for their length alone; 0 ranks by probability.
    """
    if beams < 1:
        raise ValueError(f"beams must be 1 or more, got {beams}")
    batch, device = len(memory), memory.device
    memory = memory.repeat_interleave(beams, dim=0)  # (B·K, S, M)
    memory_mask = None if memory_mask is None else memory_mask.repeat_interleave(beams, dim=0)
    ids = torch.full((batch * beams, 1), start, device=device)  # (B·K, T)
    scores = torch.full((batch, beams), -torch.inf, device=device)  # log-probabilities
    scores[:, 0] = 0  # all beams are still the same: only one may go on
    lengths = torch.zeros(batch, beams, device=device)
    finished = torch.zeros(batch, beams, dtype=torch.bool, device=device)
    cache = DecoderCache(len(model.decoder))
    for _ in range(max_tokens):
        logits = model.decode(ids[:, -1:], memory, memory_mask, cache=cache)[:, -1].float()
        gains = logits.log_softmax(dim=-1).view(batch, beams, -1)  # (B, K, V)
        # A finished sentence goes on as itself, by another `end` that costs nothing.
        gains = gains.masked_fill(finished[..., None], -torch.inf)
        gains[..., end] = gains[..., end].masked_fill(finished, 0.0)
        totals = scores[..., None] + gains
        lengths = lengths + ~finished
        ranks = totals / ((5 + lengths[..., None]) / 6) ** length_penalty
        best = ranks.flatten(1).topk(beams).indices  # (B, K)
        beam, token = best // gains.shape[-1], best % gains.shape[-1]
        scores = totals.flatten(1).gather(1, best)
        lengths = lengths.gather(1, beam)
        finished = finished.gather(1, beam) | (token == end)
        rows = (torch.arange(batch, device=device)[:, None] * beams + beam).flatten()  # (B·K,)
        ids = torch.cat([ids[rows], token.view(-1, 1)], dim=1)
        cache.select(rows)
        if finished.all():
            break
    return [_until(row, end) for row in ids[::beams, 1:].tolist()]  # topk puts the best first


def _collect(steps: Iterator[Tensor], batch: int, end: int) -> list[list[int]]:
    written = [token.tolist() for token in steps]  # step by step, (B,) each
    return [_until([token[row] for token in written], end) for row in range(batch)]


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
