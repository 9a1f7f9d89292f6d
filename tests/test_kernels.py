"""Shares by one-hot values. Shapes: B rows, H heads, h heads of the keys, L queries, S keys, E width, G groups."""

import math
from threading import Thread
from typing import Any

import pytest
import torch
from families_of_pipelines import explicit_softmax, for_each_head
from torch import Tensor
from torch.nn import functional as F

from pipelines.tracing.kernels import Explicit, Fused, Watch, in_slices

B, H, L, S, E = 2, 4, 6, 20, 8
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def random_mask(*shape: int) -> Tensor:
    """Booleans, with at least one key that each query reads."""
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(0)) > 0.4) | (torch.arange(shape[-1]) == 0)


HOW: dict[str, dict[str, Any]] = {
    "plain": {},
    "bool mask of the keys": {"attn_mask": random_mask(B, 1, 1, S)},
    "bool mask of queries and keys": {"attn_mask": random_mask(B, H, L, S)},
    "float mask": {"attn_mask": torch.linspace(-2, 2, B * L * S).view(B, 1, L, S)},
    "float mask of zeros and infinity": {"attn_mask": torch.where(random_mask(B, 1, 1, S), 0.0, -torch.inf)},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.7},
    "grouped queries": {"enable_gqa": True},
}


def seen(how: dict[str, Any], dtype: torch.dtype = torch.float32, width: int = E) -> Fused:
    """The kernel of a call of torch's attention with these arguments, as `Watch` reports it."""
    q, k, v = torch.randn(B, H, L, E), torch.randn(B, H, S, E), torch.randn(B, H, S, width)
    if how.get("enable_gqa"):
        k, v = k[:, :2], v[:, :2]
    given = {name: x.to(dtype) if isinstance(x, Tensor) and x.dtype != torch.bool else x for name, x in how.items()}
    found: list[Fused] = []
    with Watch(found.append, lambda out: None):
        F.scaled_dot_product_attention(q.to(dtype), k.to(dtype), v.to(dtype), **given)
    (kernel,) = found
    return kernel


def one_hot(groups: int) -> Tensor:
    """Each key in one group, in another order in each row of the batch: (B, 1, S, G)."""
    assigned = torch.stack([torch.randperm(S) % groups for _ in range(B)])
    return F.one_hot(assigned, groups)[:, None].float()


@pytest.mark.parametrize("how", HOW.values(), ids=HOW.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 5, E, E + 3, S])  # some more than a head is wide
def test_shares_are_those_of_an_explicit_softmax(how: dict[str, Any], dtype: torch.dtype, count: int) -> None:
    kernel, groups = seen(how, dtype), one_hot(count)
    shares = kernel.shares(groups)
    weights = explicit_softmax(kernel.q, kernel.k, **kernel.how)
    close = {"rtol": 0, "atol": 8 * torch.finfo(dtype).eps}
    assert shares.shape == (B, H, L, count) and shares.dtype == dtype
    torch.testing.assert_close(shares.double(), weights @ groups.double(), **close)
    torch.testing.assert_close(shares.double().sum(dim=-1), torch.ones(B, H, L, dtype=torch.float64), **close)


@pytest.mark.parametrize("how", HOW.values(), ids=HOW.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_times_values_are_what_the_kernel_gave(how: dict[str, Any], dtype: torch.dtype) -> None:
    kernel = seen(how, dtype, width=12)  # values may be wider than keys
    weights = kernel.weights()
    torch.testing.assert_close(weights.double(), explicit_softmax(kernel.q, kernel.k, **kernel.how), rtol=0, atol=1e-6)
    atol = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(kernel.output(weights), kernel.out.float(), rtol=0, atol=atol)
    again = explicit_softmax(kernel.q, kernel.k, **kernel.how) @ for_each_head(kernel.v.double(), H)
    torch.testing.assert_close(again, kernel.out.double(), rtol=0, atol=atol)


def test_a_query_that_may_read_nothing_has_no_weights() -> None:
    mask = random_mask(B, 1, L, S)
    mask[0, 0, 2] = False
    weights = seen({"attn_mask": mask}).weights()
    assert (weights[0, :, 2] == 0).all()
    torch.testing.assert_close(weights[1].sum(dim=-1), torch.ones(H, L))


def test_weights_computed_in_slices_are_those_of_all_heads() -> None:
    q, k = torch.randn(B, H, L, E), torch.randn(B, H, S, E)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(E)).flatten(0, 1)
    for size in (1, 3, B * H):
        found: list[Tensor] = []
        with Watch(lambda kernel: None, found.append):
            for part in scores.split(size):
                part.softmax(dim=-1)
        kernel, groups = in_slices(found, rows=B), one_hot(5)
        assert kernel.shape == (B, L, S) and len(found) == math.ceil(B * H / size)
        torch.testing.assert_close(kernel.weights().double(), explicit_softmax(q, k), rtol=0, atol=1e-6)
        torch.testing.assert_close(
            kernel.shares(groups).double(), explicit_softmax(q, k) @ groups.double(), rtol=0, atol=1e-6
        )


def test_a_softmax_is_seen_however_it_is_called() -> None:
    x = torch.randn(2, L, S)
    found: list[Tensor] = []
    with Watch(lambda kernel: None, found.append):
        given = [x.softmax(-1), torch.softmax(x, dim=-1), F.softmax(x, dim=-1), torch.nn.Softmax(dim=-1)(x)]
    assert all(any(out is one for one in given) for out in found)
    assert len(found) >= len(given)


def test_a_kernel_is_reported_as_it_was_called_and_its_output_is_handed_on() -> None:
    q, k, v, mask = torch.randn(B, H, L, E), torch.randn(B, H, S, E), torch.randn(B, H, S, E), random_mask(B, 1, 1, S)
    plain = F.scaled_dot_product_attention(q, k, v, mask, scale=0.5)
    found: list[Fused] = []
    with Watch(found.append, lambda out: None):
        by_place = F.scaled_dot_product_attention(q, k, v, mask, 0.0, False, scale=0.5)
        by_name = F.scaled_dot_product_attention(value=v, key=k, query=q, attn_mask=mask, scale=0.5)
    for kernel, out in zip(found, (by_place, by_name), strict=True):
        assert kernel.q is q and kernel.k is k and kernel.v is v and kernel.out is out
        assert kernel.shape == (B, L, S) and kernel.how["attn_mask"] is mask and kernel.how["scale"] == 0.5
        assert torch.equal(out, plain)


def test_computing_shares_while_watching_is_not_reported() -> None:
    found: list[Tensor] = []
    q = torch.randn(1, 1, 4, E)
    with Watch(lambda kernel: found.append(kernel.shares(torch.eye(4)[None, None])), lambda out: None):
        F.scaled_dot_product_attention(q, q, q)
    assert len(found) == 1


def test_nothing_is_reported_outside_the_block_or_in_another_thread() -> None:
    found: list[Any] = []

    def attend() -> None:
        q = torch.randn(1, 1, 4, E)
        F.scaled_dot_product_attention(q, q, q)
        q.softmax(dim=-1)

    def attend_beside() -> None:
        thread = Thread(target=attend)
        thread.start()
        thread.join()

    attend()
    with Watch(found.append, found.append):
        attend_beside()
        assert found == []
        attend()
    assert len(found) == 2
    with pytest.raises(KeyError), Watch(found.append, found.append):
        raise KeyError
    attend()
    assert len(found) == 2


def test_explicit_weights_are_the_models_own() -> None:
    weights = torch.rand(B, H, L, S).softmax(dim=-1).half()
    kernel = Explicit(weights)
    assert torch.equal(kernel.weights(), weights.float())
    assert torch.equal(kernel.shares(torch.eye(S)[None, None]), weights)
