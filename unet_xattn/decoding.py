"""Writing a sentence from memory, one token at a time: greedy, sampled or by beam search.

Each function takes a batch of memories (B, S, M) with the mask of their real tokens (B, S), and returns the token ids
written for each, without `start` and `end`. `greedy_steps` yields them step by step.

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
    """Greedy decoding: the most likely token at each step. Without the cache the result is the same, but slower."""
    steps = _steps(model, memory, memory_mask, start, end, max_tokens, _most_likely, use_cache)
    return _collect(steps, len(memory), end)


def greedy_steps(
    model: Transformer, memory: Tensor, memory_mask: Tensor | None, start: int, end: int, max_tokens: int = 64
) -> Iterator[Tensor]:
    """Greedy decoding step by step: the token ids of each step, (B,), with `end` where a sentence is finished."""
    return _steps(model, memory, memory_mask, start, end, max_tokens, _most_likely)


def _most_likely(logits: Tensor) -> Tensor:
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
    """Sampling: at each step a token drawn from the model's distribution.

    Args:
        temperature: values below 1 sharpen the distribution, values above 1 flatten it.
        top_k: draw only among the k most likely tokens.
        top_p: draw among the most likely tokens whose probabilities sum to this (nucleus sampling, arXiv 1904.09751);
            the most likely token is always one of them.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}: for the most likely token use greedy")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be 1 or more, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")

    def draw(logits: Tensor) -> Tensor:
        probabilities = allowed(logits / temperature, top_k, top_p).softmax(dim=-1)
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)

    return _collect(_steps(model, memory, memory_mask, start, end, max_tokens, draw), len(memory), end)


def allowed(logits: Tensor, top_k: int | None, top_p: float) -> Tensor:
    """Logits (B, V) with -inf for every token that `top_k` or `top_p` excludes."""
    ordered, order = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)  # probability of all more likely tokens
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
    """Beam search: the best sentence found by extending the `beams` best unfinished ones at each step.

    Sentences are ranked by log-probability / ((5 + length) / 6)^`length_penalty` (arXiv 1609.08144, eq. 14), so that
    long sentences are not ranked last only because of their length; 0 ranks by probability.
    """
    if beams < 1:
        raise ValueError(f"beams must be 1 or more, got {beams}")
    batch, device = len(memory), memory.device
    memory = memory.repeat_interleave(beams, dim=0)  # (B·K, S, M)
    memory_mask = None if memory_mask is None else memory_mask.repeat_interleave(beams, dim=0)
    ids = torch.full((batch * beams, 1), start, device=device)  # (B·K, T)
    scores = torch.full((batch, beams), -torch.inf, device=device)  # log-probabilities
    scores[:, 0] = 0  # at first all beams are the same: only one may be extended
    lengths = torch.zeros(batch, beams, device=device)
    finished = torch.zeros(batch, beams, dtype=torch.bool, device=device)
    cache = DecoderCache(len(model.decoder))
    for _ in range(max_tokens):
        logits = model.decode(ids[:, -1:], memory, memory_mask, cache=cache)[:, -1].float()
        gains = logits.log_softmax(dim=-1).view(batch, beams, -1)  # (B, K, V)
        # A finished sentence stays as it is: it is extended by another `end` with probability 1.
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
