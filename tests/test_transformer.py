"""Shapes: B batch, T tokens, D model width."""

from pathlib import Path

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from unet_xattn import MultiHeadAttention, Transformer
from unet_xattn.transformer import DecoderCache, DecoderLayer, sinusoidal_positions

VOCABULARY, D = 50, 32
IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 9, 8, 7, 3]])
ALL = torch.ones_like(IDS, dtype=torch.bool)


TARGET = torch.tensor([[2, 11, 12, 13, 14, 3], [2, 13, 12, 11, 3, 0]])
REAL = torch.tensor([[True] * 5, [True, True, True, False, False]])
TARGET_REAL = TARGET != 0


def model(**settings: object) -> Transformer:
    torch.manual_seed(0)
    return Transformer(VOCABULARY, **({"width": D, "heads": 4, "encoder_layers": 2} | settings)).eval()


def awake(transformer: Transformer) -> Transformer:
    """Norms with gains and biases that matter."""
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return transformer


def reference(ours: Transformer, norm_first: bool) -> nn.Transformer:
    """torch's own Transformer with the same weights."""
    theirs = nn.Transformer(
        D, 4, 2, 2, 4 * D, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
    ).eval()

    def copy_attention(to: nn.MultiheadAttention, attention: MultiHeadAttention) -> None:
        projections = (attention.to_q, attention.to_k, attention.to_v)
        with torch.no_grad():
            to.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
            to.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        to.out_proj.load_state_dict(attention.to_out.state_dict())

    for to, layer in zip([*theirs.encoder.layers, *theirs.decoder.layers], [*ours.encoder, *ours.decoder], strict=True):
        copy_attention(to.self_attn, layer.self_attention)
        if isinstance(layer, DecoderLayer):
            copy_attention(to.multihead_attn, layer.cross_attention)
            to.norm3.load_state_dict(layer.norm3.state_dict())
        to.norm1.load_state_dict(layer.norm1.state_dict())
        to.norm2.load_state_dict(layer.norm2.state_dict())
        to.linear1.load_state_dict(layer.feed_forward[0].state_dict())
        to.linear2.load_state_dict(layer.feed_forward[2].state_dict())
    theirs.encoder.norm.load_state_dict(ours.norm.state_dict())
    theirs.decoder.norm.load_state_dict(ours.decoder_norm.state_dict())
    return theirs


# Parity.


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.filterwarnings("ignore:.*enable_nested_tensor is True.*:UserWarning")  # torch's own encoder says so
def test_same_memory_and_logits_as_torchs_transformer(norm_first: bool, masked: bool) -> None:
    ours = awake(model(decoder_layers=2, norm_first=norm_first))
    theirs = reference(ours, norm_first)
    source_mask, target_mask = (REAL, TARGET_REAL) if masked else (None, None)
    padding = None if source_mask is None else ~source_mask
    memory = theirs.encoder(ours.embed(IDS), src_key_padding_mask=padding)
    expected = theirs.decoder(
        ours.embed(TARGET),
        memory,
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(TARGET.shape[1]) < 0,
        tgt_key_padding_mask=None if target_mask is None else ~target_mask,
        memory_key_padding_mask=padding,
    )
    real = torch.ones_like(IDS, dtype=torch.bool) if source_mask is None else source_mask
    torch.testing.assert_close(ours.encode(IDS, source_mask)[real], memory[real], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        ours(IDS, TARGET, source_mask, target_mask), expected @ ours.embedding.weight.T, rtol=1e-4, atol=1e-4
    )


def test_positions_are_the_papers_sinusoids() -> None:
    positions = torch.tensor([0.0, 1.0, 37.0, 999.5])
    expected = get_timestep_embedding(positions, D, flip_sin_to_cos=False, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoidal_positions(positions, D), expected)
    assert sinusoidal_positions(positions.view(2, 2), D).shape == (2, 2, D)


@pytest.mark.parametrize("padding", [1, 20])
def test_padding_never_changes_the_memory_of_real_tokens(padding: int) -> None:
    transformer = model()
    alone = transformer.encode(IDS, ALL)
    filler = torch.randint(VOCABULARY, (2, padding))
    mask = torch.cat([ALL, torch.zeros(2, padding, dtype=torch.bool)], dim=1)
    padded = transformer.encode(torch.cat([IDS, filler], dim=1), mask)
    torch.testing.assert_close(padded[:, :5], alone, rtol=1e-5, atol=1e-6)


def test_a_sentence_alone_has_the_memory_it_has_in_a_batch() -> None:
    transformer = model()
    torch.testing.assert_close(transformer.encode(IDS[1:], ALL[1:]), transformer.encode(IDS, ALL)[1:])


def test_the_order_of_words_matters() -> None:
    memory = model().encode(IDS, ALL)
    # The second sentence is the first with two words exchanged; each word is compared with itself. Were the encoder
    # to read a bag of words, the two would be equal within rounding.
    first, second = memory[0], memory[1, [0, 3, 2, 1, 4]]
    assert ((first - second).abs().amax(dim=-1) > 1e-3).all()


def test_every_word_is_in_the_memory_of_every_other() -> None:
    other = IDS.clone()
    other[:, 2] = 11
    transformer = model()
    difference = (transformer.encode(other, ALL) - transformer.encode(IDS, ALL)).abs().amax(dim=-1)  # (B, T)
    assert (difference > 1e-3).all()


def test_every_parameter_learns() -> None:
    transformer = model(decoder_layers=2, max_positions=8)
    transformer(IDS, TARGET)[:, :, 5].square().sum().backward()
    for name, parameter in transformer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_dropout_is_only_for_training() -> None:
    transformer = model(decoder_layers=1, dropout=0.5)
    torch.testing.assert_close(transformer(IDS, TARGET), transformer(IDS, TARGET), rtol=0, atol=0)
    transformer.train()
    assert not torch.equal(transformer(IDS, TARGET), transformer(IDS, TARGET))


def test_a_saved_transformer_says_the_same(tmp_path: Path) -> None:
    transformer = model(decoder_layers=1)
    transformer.save_pretrained(tmp_path)
    loaded = Transformer.from_pretrained(tmp_path)
    assert torch.equal(loaded(IDS, TARGET), transformer(IDS, TARGET))
    assert dict(loaded.config)["encoder_layers"] == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype: torch.dtype) -> None:
    def memory(transformer: Transformer) -> Tensor:
        return transformer.encode(IDS, ALL).float()

    exact = memory(model())
    assert (memory(model().to(dtype)) - exact).abs().max() < 20 * torch.finfo(dtype).eps * exact.abs().max()


# The decoder.


def test_a_target_token_sees_itself_and_those_before_it() -> None:
    transformer = model(decoder_layers=2)
    memory = transformer.encode(IDS)
    changed = TARGET.clone()
    changed[:, 3] = 20
    difference = (transformer.decode(changed, memory) - transformer.decode(TARGET, memory)).abs().amax(dim=-1)  # (B, T)
    assert (difference[:, :3] == 0).all() and (difference[:, 3:] > 1e-3).all()


@pytest.mark.parametrize("padding", [1, 20])
def test_padding_of_source_or_target_changes_nothing_that_is_said(padding: int) -> None:
    transformer = model(decoder_layers=2)
    expected = transformer(IDS, TARGET, REAL, TARGET_REAL)
    more = torch.randint(VOCABULARY, (2, padding))
    none = torch.zeros(2, padding, dtype=torch.bool)
    source = torch.cat([torch.where(REAL, IDS, 40), more], dim=1)
    target = torch.cat([torch.where(TARGET_REAL, TARGET, 41), more], dim=1)
    found = transformer(source, target, torch.cat([REAL, none], 1), torch.cat([TARGET_REAL, none], 1))
    torch.testing.assert_close(found[:, :6][TARGET_REAL], expected[TARGET_REAL], rtol=1e-4, atol=1e-5)


def test_padding_before_a_target_is_never_looked_at() -> None:
    transformer = model(decoder_layers=1)
    memory = transformer.encode(IDS)
    mask = torch.ones_like(TARGET, dtype=torch.bool)
    mask[:, 1] = False
    other = TARGET.clone()
    other[:, 1] = 30
    found, expected = (transformer.decode(ids, memory, token_mask=mask) for ids in (other, TARGET))
    torch.testing.assert_close(found[:, 2:], expected[:, 2:], rtol=0, atol=0)
    assert not torch.allclose(transformer.decode(other, memory)[:, 2:], transformer.decode(TARGET, memory)[:, 2:])


def test_a_target_reads_the_memory_and_only_its_real_tokens() -> None:
    transformer = model(decoder_layers=1)
    memory = transformer.encode(IDS, REAL)
    other = torch.where(REAL[..., None], memory, memory + 1)
    expected = transformer.decode(TARGET, memory, REAL)
    torch.testing.assert_close(transformer.decode(TARGET, other, REAL), expected, rtol=0, atol=0)
    assert (transformer.decode(TARGET, other + 1, REAL) - expected).abs().amax() > 1e-3


def test_a_memory_of_other_width_can_be_read() -> None:
    transformer = model(decoder_layers=1, memory_width=20)
    assert transformer.decode(TARGET, torch.randn(2, 9, 20)).shape == (2, 6, VOCABULARY)


def test_every_attention_is_handed_over_by_name_and_nothing_else_changes() -> None:
    transformer = model(decoder_layers=2)
    seen: dict[str, Tensor] = {}
    memory = transformer.encode(IDS, REAL, record=seen.__setitem__)
    logits = transformer.decode(TARGET, memory, REAL, record=seen.__setitem__)
    assert set(seen) == {
        *("encoder.0", "encoder.1"),
        *(f"decoder.{i}.{kind}" for i in range(2) for kind in ("self", "cross")),
    }
    for name, weights in seen.items():
        sides = {"encoder": (5, 5), "self": (6, 6), "cross": (6, 5)}
        assert weights.shape == (2, 4, *next(side for key, side in sides.items() if key in name))
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert (seen["decoder.0.cross"][1, :, :, 3:] == 0).all()
    assert (seen["decoder.1.self"].triu(1) == 0).all()
    torch.testing.assert_close(logits, transformer.decode(TARGET, memory, REAL), rtol=1e-4, atol=1e-5)


# The cache.


@pytest.mark.parametrize("pieces", [(1, 1, 1, 1, 1, 1), (2, 3, 1), (6,)], ids=str)
@pytest.mark.parametrize("max_positions", [None, 6])
def test_token_by_token_with_a_cache_gives_the_logits_of_teacher_forcing(
    pieces: tuple[int, ...], max_positions: int | None
) -> None:
    transformer = model(decoder_layers=2, max_positions=max_positions)
    memory = transformer.encode(IDS, REAL)
    cache = DecoderCache(2)
    steps = [transformer.decode(ids, memory, REAL, cache=cache) for ids in TARGET.split(pieces, dim=1)]
    assert cache.length == 6
    torch.testing.assert_close(torch.cat(steps, dim=1), transformer(IDS, TARGET, REAL), rtol=1e-4, atol=1e-5)


def test_the_cache_projects_the_memory_once_and_each_token_once() -> None:
    transformer = model(decoder_layers=1)
    rows: dict[str, list[int]] = {"cross": [], "self": []}
    layer = transformer.decoder[0]
    layer.cross_attention.to_k.register_forward_hook(lambda m, args, out: rows["cross"].append(args[0].shape[1]))
    layer.self_attention.to_k.register_forward_hook(lambda m, args, out: rows["self"].append(args[0].shape[1]))
    memory, cache = transformer.encode(IDS), DecoderCache(1)
    for ids in TARGET.split(1, dim=1):
        transformer.decode(ids, memory, cache=cache)
    assert rows == {"cross": [5], "self": [1] * 6}


def test_a_cache_goes_on_with_the_rows_that_are_selected() -> None:
    """As a beam search needs it: a sentence twice, another one once, in another order."""
    transformer = model(decoder_layers=2)
    memory, rows = transformer.encode(IDS, REAL), torch.tensor([1, 0, 1])
    cache = DecoderCache(2)
    cache.select(rows[:2])  # with nothing in it yet there is nothing to select
    transformer.decode(TARGET[:, :3], memory, REAL, cache=cache)
    cache.select(rows)
    assert cache.length == 3
    found = transformer.decode(TARGET[rows, 3:], memory[rows] * 0, REAL[rows], cache=cache)  # it has the memory's keys
    expected = transformer.decode(TARGET[rows], memory[rows], REAL[rows])
    torch.testing.assert_close(found, expected[:, 3:], rtol=1e-4, atol=1e-5)


# What is refused.


def test_more_tokens_than_learned_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="5 tokens, but this model has 4 positions"):
        model(max_positions=4).encode(IDS)


def test_an_encoder_alone_refuses_to_write() -> None:
    with pytest.raises(ValueError, match="no decoder"):
        model()(IDS, TARGET)
