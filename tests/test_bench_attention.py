import math

import pytest
import torch

from pipelines.bench.attention import TorchTransformer, behaviour, cost, decoding, scaling, trained_heads
from pipelines.text_to_image import TextToImagePipeline
from unet_xattn import Transformer


def test_the_scale_keeps_variance_at_one_and_softmax_alive() -> None:
    for width in (16, 256):
        found = scaling(width)
        assert found["variance, plain"] == pytest.approx(width, rel=0.2)
        assert found["variance, scaled"] == pytest.approx(1, rel=0.2)
        assert found["gradient, scaled"] > found["gradient, plain"]
    assert scaling(256)["gradient, plain"] < 0.2 < 0.9 < scaling(256)["gradient, scaled"]


def test_explicit_weights_are_kept_in_the_square_of_the_length_and_for_every_head() -> None:
    short, long, many = cost(128, 2, repeats=1), cost(512, 2, repeats=1), cost(512, 8, repeats=1)
    assert long["MB, explicit"] - long["MB, fused"] > 10 * (short["MB, explicit"] - short["MB, fused"])
    assert long["MB, fused"] < 5 * short["MB, fused"]
    weights = 4 * 512 * 512 * 4 / 1e6  # of one head
    assert many["MB, explicit"] - long["MB, explicit"] >= 6 * weights
    assert many["MB, fused"] == pytest.approx(long["MB, fused"], rel=0.1)


def test_heads_that_attend_everywhere_and_heads_that_attend_to_one_token() -> None:
    everywhere = behaviour(torch.full((2, 3, 4), 0.25), self_attention=False)
    assert everywhere == pytest.approx({"entropy": 1, "overlap": 1})
    here = torch.eye(4)
    behind = here.roll(1, dims=1)
    found = behaviour(torch.stack([here, behind]), self_attention=True)
    # The second head reads its neighbour, and the last of four tokens the first, which is three away.
    assert found == pytest.approx({"entropy": 0, "overlap": 0, "distance": (0 + (1 + 1 + 1 + 3) / 4) / 2}, abs=1e-6)


def test_every_attention_of_a_model_is_measured(tiny_pipe: TextToImagePipeline) -> None:
    found = trained_heads(tiny_pipe, prompts=4)
    encoder = {f"encoder.{i}.self" for i in range(len(tiny_pipe.text_encoder.encoder))}
    assert encoder | {f"unet.{layer}" for layer in tiny_pipe.unet.attention_layers} <= found.keys()
    assert all(0 <= figures["entropy"] <= 1 + 1e-6 for figures in found.values())
    assert all(math.isfinite(x) for figures in found.values() for x in figures.values())


def test_with_the_cache_memory_is_projected_once() -> None:
    found = decoding(6, repeats=1)
    assert found["projections of memory, cached"] == 1
    assert found["projections of memory, not cached"] == 6


def test_torchs_transformer_is_as_large_as_ours_and_sees_no_padding() -> None:
    ours = Transformer(vocab_size=50, width=32, heads=2, encoder_layers=1, decoder_layers=1)
    theirs = TorchTransformer(ours).eval()
    sizes = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
    source, target = torch.randint(4, 50, (2, 2, 7))
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    logits = theirs(source, target, mask, mask)
    assert logits.shape == (2, 7, 50)
    source[1, 4:] = 3
    torch.testing.assert_close(theirs(source, target, mask, mask)[mask], logits[mask])
