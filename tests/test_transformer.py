"""Shapes: B batch, T tokens, D model width."""

from pathlib import Path

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from unet_xattn import Transformer
from unet_xattn.transformer import EncoderLayer, sinusoidal_positions

VOCABULARY, D = 50, 32
IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 9, 8, 7, 3]])
ALL = torch.ones_like(IDS, dtype=torch.bool)


def model(dropout: float = 0.0, encoder_layers: int = 2) -> Transformer:
    torch.manual_seed(0)
    return Transformer(VOCABULARY, width=D, heads=4, encoder_layers=encoder_layers, dropout=dropout).eval()


def reference(transformer: Transformer) -> nn.TransformerEncoder:
    """torch's own encoder with the same weights."""
    layer = nn.TransformerEncoderLayer(D, 4, 4 * D, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(D), enable_nested_tensor=False)

    def copy(theirs: nn.TransformerEncoderLayer, ours: EncoderLayer) -> None:
        attention = ours.self_attention
        with torch.no_grad():
            projections = (attention.to_q, attention.to_k, attention.to_v)
            theirs.self_attn.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
            theirs.self_attn.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        theirs.self_attn.out_proj.load_state_dict(attention.to_out.state_dict())
        theirs.norm1.load_state_dict(ours.norm1.state_dict())
        theirs.norm2.load_state_dict(ours.norm2.state_dict())
        theirs.linear1.load_state_dict(ours.feed_forward[0].state_dict())
        theirs.linear2.load_state_dict(ours.feed_forward[2].state_dict())

    for theirs, ours in zip(encoder.layers, transformer.encoder, strict=True):
        copy(theirs, ours)
    encoder.norm.load_state_dict(transformer.norm.state_dict())
    return encoder


def awake(transformer: Transformer) -> Transformer:
    """Norms with gains and biases that matter."""
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return transformer


def test_same_memory_as_torchs_transformer_encoder() -> None:
    ours = awake(model())
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    expected = reference(ours)(ours.embed(IDS), src_key_padding_mask=~mask)
    torch.testing.assert_close(ours.encode(IDS, mask)[mask], expected[mask], rtol=1e-4, atol=1e-5)


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
    transformer = model()
    transformer.encode(IDS, ALL)[:, :, 0].square().sum().backward()
    for name, parameter in transformer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_dropout_is_only_for_training() -> None:
    transformer = model(dropout=0.5)
    torch.testing.assert_close(transformer(IDS, ALL), transformer(IDS, ALL), rtol=0, atol=0)
    transformer.train()
    assert not torch.equal(transformer(IDS, ALL), transformer(IDS, ALL))


def test_a_saved_encoder_gives_the_same_memory(tmp_path: Path) -> None:
    transformer = model()
    transformer.save_pretrained(tmp_path)
    loaded = Transformer.from_pretrained(tmp_path)
    assert torch.equal(loaded(IDS, ALL), transformer(IDS, ALL))
    assert dict(loaded.config)["encoder_layers"] == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype: torch.dtype) -> None:
    def memory(transformer: Transformer) -> Tensor:
        return transformer(IDS, ALL).float()

    exact = memory(model())
    assert (memory(model().to(dtype)) - exact).abs().max() < 20 * torch.finfo(dtype).eps * exact.abs().max()
