"""What the page sends of a large recording: little at first, in the layers' grids, with the numbers of whole maps."""

import json

import pytest
from large_trace import large_trace

from ui.viewer import all_heads, payload, view
from unet_xattn import AttentionTrace


@pytest.fixture(scope="module")
def attention() -> AttentionTrace:
    return large_trace()


def test_the_first_payload_is_small(attention: AttentionTrace) -> None:
    shown = payload(attention)
    assert len(attention.recording.texts["prompt"][0].tokens) == 302 and len(shown["layers"]) == 30
    assert len(json.dumps(shown)) < 500_000 and shown["picture"].startswith("data:image/webp") and not shown["pixels"]
    # Each word and the special tokens have one map; the parts of a word are not sent.
    assert shown["words"] == [[i] for i in range(75)] and shown["tokens"][75:] == ["[special]"]


def test_maps_have_the_numbers_of_the_whole_ones(attention: AttentionTrace) -> None:
    shown = payload(attention)["views"]["mean||"]
    assert shown["tops"][0][40] == pytest.approx(float(attention.heatmap("word40").max()), rel=1e-4)
    assert shown["grid"] == [32, 32]  # 76 maps of 64×64 would be too much at first
    for layer, grid in (("blocks.0.attn", [32, 32]), ("blocks.1.attn", [64, 64])):
        assert view(attention, 0, f"mean|{layer}|")["grid"] == grid


def test_a_short_prompt_keeps_its_tokens_and_the_finest_grid() -> None:
    shown = payload(large_trace(words=8))
    assert len(shown["tokens"]) == 34 and shown["words"][1] == [2, 12, 13, 14]
    assert shown["views"]["mean||"]["grid"] == [64, 64] and len(json.dumps(shown)) < 500_000


def test_heads_are_refused_where_they_were_averaged(attention: AttentionTrace) -> None:
    with pytest.raises(ValueError, match="heads of this picture were not recorded separately"):
        all_heads(attention, 0, [0])
