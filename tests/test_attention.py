"""Shapes: B batch, H heads, N queries, T keys, D width, M width of the memory."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unet_xattn import MultiHeadAttention, attention_weights
from unet_xattn.attention import padding_mask

B, H, N, T, D, M = 3, 4, 6, 5, 32, 20
LENGTHS = torch.tensor([5, 3, 1])
PADDED = padding_mask(torch.arange(T) < LENGTHS[:, None])  # (B, 1, 1, T)
CAUSAL = torch.ones(N, N, dtype=torch.bool).tril()


def inputs(memory_width: int | None = M) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, N, D, generator=generator)
    return x, None if memory_width is None else torch.randn(B, T, memory_width, generator=generator)


def module(memory_width: int | None = M, **settings: bool) -> MultiHeadAttention:
    torch.manual_seed(0)
    return MultiHeadAttention(D, H, memory_width, **settings)


def recorded(attention: MultiHeadAttention, *args: Tensor | None) -> tuple[Tensor, Tensor]:
    """(out, weights) of one recorded call."""
    seen: list[Tensor] = []
    out = attention(*args, record=seen.append)
    (weights,) = seen
    return out, weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("memory_width", "mask"),
    [(None, None), (None, CAUSAL), (D, PADDED), (M, None), (M, PADDED)],
    ids=["self", "causal self", "cross", "cross other width", "cross other width padded"],
)
def test_recorded_and_fused_path_agree_to_the_rounding_of_the_dtype(
    dtype: torch.dtype, memory_width: int | None, mask: Tensor | None
) -> None:
    x, memory = inputs(memory_width)
    attention = module(memory_width)
    exact = attention.double()(x.double(), None if memory is None else memory.double(), mask)
    attention, x, memory = attention.to(dtype), x.to(dtype), None if memory is None else memory.to(dtype)
    fused = attention(x, memory, mask)
    explicit, weights = recorded(attention, x, memory, mask)
    assert explicit.dtype == fused.dtype == weights.dtype == dtype
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(explicit.double(), fused.double(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(explicit.double(), exact, rtol=tolerance, atol=tolerance)


def test_what_record_returns_is_used_instead_of_the_weights() -> None:
    x, memory = inputs(M)
    attention = module(M)
    uniform = attention(x, memory, record=lambda weights: torch.full_like(weights, 1 / T))
    value = attention.to_out(attention.to_v(memory).mean(dim=1, keepdim=True))
    torch.testing.assert_close(uniform, value.expand_as(uniform))


@pytest.mark.parametrize("memory_width", [None, M], ids=["self", "cross"])
def test_same_output_and_weights_as_torchs_multi_head_attention(memory_width: int | None) -> None:
    x, memory = inputs(memory_width)
    source = x if memory is None else memory
    ours = module(memory_width)
    theirs = nn.MultiheadAttention(D, H, kdim=memory_width, vdim=memory_width, batch_first=True)
    with torch.no_grad():
        if memory_width is None:
            theirs.in_proj_weight.copy_(torch.cat([ours.to_q.weight, ours.to_k.weight, ours.to_v.weight]))
        else:
            theirs.q_proj_weight.copy_(ours.to_q.weight)
            theirs.k_proj_weight.copy_(ours.to_k.weight)
            theirs.v_proj_weight.copy_(ours.to_v.weight)
        theirs.in_proj_bias.copy_(torch.cat([ours.to_q.bias, ours.to_k.bias, ours.to_v.bias]))
        theirs.out_proj.load_state_dict(ours.to_out.state_dict())
    real = torch.arange(source.shape[1]) < LENGTHS[:, None]
    out, weights = recorded(ours, x, memory, padding_mask(real))
    # There True means "leave out".
    expected, expected_weights = theirs(x, source, source, key_padding_mask=~real, average_attn_weights=False)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(weights, expected_weights)


@pytest.mark.parametrize("mask", [None, PADDED], ids=["no mask", "padded"])
def test_weights_times_values_is_scaled_dot_product_attention(mask: Tensor | None) -> None:
    q, k, v = torch.randn(B, H, N, 8), torch.randn(B, H, T, 8), torch.randn(B, H, T, 8)
    out = attention_weights(q, k, mask) @ v
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_of_a_query_are_a_distribution_over_the_keys_it_may_read(dtype: torch.dtype) -> None:
    # Scores in the hundreds: a softmax in fp16 would be off, one without the maximum taken out would overflow.
    q, k = 30 * torch.randn(B, H, N, 8).to(dtype), 30 * torch.randn(B, H, T, 8).to(dtype)
    weights = attention_weights(q, k, PADDED)  # (B, H, N, T)
    torch.testing.assert_close(weights.double().sum(-1), torch.ones(B, H, N).double(), rtol=0, atol=T * 2**-9)
    assert (weights >= 0).all()
    assert (weights.masked_select(~PADDED) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recording", [True, False], ids=["recorded", "fused"])
def test_a_query_with_nothing_to_read_gives_zeros_and_finite_gradients(dtype: torch.dtype, recording: bool) -> None:
    x, memory = (tensor.to(dtype).requires_grad_() for tensor in inputs())
    attention = module().to(dtype)
    mask = PADDED.clone()
    mask[1] = False
    weights: list[Tensor] = []
    out = attention(x, memory, mask, weights.append if recording else None)
    out.square().sum().backward()
    # Nothing was read, so only the output projection's bias is left.
    torch.testing.assert_close(out[1], attention.to_out.bias.expand(N, D))
    assert all((w[1] == 0).all() for w in weights)
    for tensor in (x, memory, *attention.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


@pytest.mark.parametrize("recording", [True, False], ids=["recorded", "fused"])
def test_each_query_reads_what_its_own_row_of_a_mask_allows(recording: bool) -> None:
    """Also the one that may read nothing, between others that may."""
    x, memory = inputs()
    assert memory is not None
    attention, mask = module(), torch.rand(N, T) < 0.5
    mask[2] = False
    record = (lambda weights: None) if recording else None
    together = attention(x, memory, mask, record)
    for query, row in enumerate(mask):
        nothing = attention.to_out.bias.expand(B, 1, D)
        alone = attention(x[:, query : query + 1], memory[:, row]) if row.any() else nothing
        torch.testing.assert_close(together[:, query : query + 1], alone)


@pytest.mark.parametrize("recording", [True, False], ids=["recorded", "fused"])
def test_what_stands_in_the_padding_changes_nothing(recording: bool) -> None:
    x, memory = inputs()
    attention = module()
    record = (lambda weights: None) if recording else None
    out = attention(x, memory, PADDED, record)
    memory[~PADDED[:, 0, 0]] = 1e4
    torch.testing.assert_close(attention(x, memory, PADDED, record), out, rtol=0, atol=1e-6)


def test_a_causal_mask_hides_what_comes_later() -> None:
    x, _ = inputs(None)
    attention = module(None)
    out = attention(x, mask=CAUSAL)
    x[:, 3:] = torch.randn(B, N - 3, D)
    later = attention(x, mask=CAUSAL)
    torch.testing.assert_close(later[:, :3], out[:, :3])
    assert not torch.allclose(later[:, 3:], out[:, 3:])


def test_recorded_weights_can_be_trained_on() -> None:
    attention = module()
    _, weights = recorded(attention, *inputs())
    weights[..., 0].sum().backward()
    assert attention.to_q.weight.grad is not None and attention.to_q.weight.grad.abs().max() > 0


def test_a_call_within_a_call_records_its_own_weights() -> None:
    x, memory = inputs()
    assert memory is not None
    attention = module()
    before = dict(vars(attention))
    inner: list[Tensor] = []
    outer: list[Tensor] = []

    def record(weights: Tensor) -> None:
        attention(x[:1], memory[:1], record=inner.append)
        outer.append(weights)

    out = attention(x, memory, record=record)
    torch.testing.assert_close(out, attention(x, memory))
    assert [w.shape for w in outer] == [(B, H, N, T)]
    torch.testing.assert_close(inner[0], outer[0][:1])
    assert len(inner) == 1
    assert vars(attention) == before  # nothing is left behind on the module


def test_calls_from_many_threads_record_their_own_weights() -> None:
    attention = module().eval()
    memories = [torch.randn(1, length, M) for length in range(1, 25)]
    x = torch.randn(1, 64, D)
    expected = [recorded(attention, x, memory)[1] for memory in memories]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda memory: recorded(attention, x, memory)[1], memories))
    torch.testing.assert_close(found, expected)


def test_an_output_projection_of_zeros_makes_a_residual_the_identity() -> None:
    x, memory = inputs()
    assert (module(zero_init=True)(x, memory) == 0).all()
    assert (module(zero_init=True, bias=False)(x, memory) == 0).all()
    assert (module()(x, memory) != 0).any()


def test_without_bias_there_is_none() -> None:
    assert [name for name, _ in module(bias=False).named_parameters() if "bias" in name] == []


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"width 32 .* 5 heads"):
        MultiHeadAttention(32, 5)
