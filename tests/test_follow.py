"""Shapes: H heads, N queries, T tokens of memory, E width of one head."""

import copy
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipelines import TextToImagePipeline, TranslationPipeline, trace
from pipelines.tracing.follow import Reading, decoder_layers, draw_states, follow_picture, follow_text
from unet_xattn import MultiHeadAttention, Transformer, attention_weights

PROMPT = "a red circle left of a blue square"


@pytest.fixture(scope="module")
def translator(tokenizer: PreTrainedTokenizerFast) -> TranslationPipeline:
    """Untrained, so that a sentence ends only at the limit, which is short here."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Transformer(len(tokenizer), width=32, heads=2, encoder_layers=1, decoder_layers=2).eval()
    short = copy.deepcopy(tokenizer)
    short.model_max_length = 20
    return TranslationPipeline(short, network)


def outputs(module: MultiHeadAttention, run: Callable[[], object]) -> Tensor:
    """The output of a module's output projection during `run`."""
    seen: list[Tensor] = []
    handle = module.to_out.register_forward_hook(lambda _, inputs, out: seen.append(out))
    run()
    handle.remove()
    return seen[0][0]


def answers(reading: Reading) -> Tensor:
    """`out` of every query and head, heads side by side: (N, D)."""
    heads, positions, _ = reading.q.shape
    return torch.stack([torch.cat([reading.query(n, head).out for head in range(heads)]) for n in range(positions)])


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_followed_query_has_the_weights_that_are_recorded(tiny_pipe: TextToImagePipeline, guidance: float) -> None:
    """Those of the prompt, not of the negative prompt that guidance adds."""
    trajectory = draw_states(tiny_pipe, PROMPT, seed=3, steps=3, guidance=guidance)
    with trace(tiny_pipe, keep="full") as attention:
        generator = torch.Generator().manual_seed(3)
        tiny_pipe(PROMPT, num_inference_steps=3, guidance_scale=guidance, generator=generator)
    assert (trajectory.picture.int() - attention.pictures[0].int()).abs().max() <= 1
    for layer in tiny_pipe.unet.attention_layers:
        for step in range(3):
            reading = follow_picture(tiny_pipe, trajectory, step, layer)
            assert reading.grid == attention.recording.grids[layer]
            for head in range(2):
                recorded = attention.maps(layer, step=step, head=head).flatten(1).squeeze()  # (T, N)
                for position in (0, 1, reading.q.shape[1] - 1):
                    found = reading.query(position, head).weights
                    torch.testing.assert_close(found, recorded[:, position], rtol=1e-3, atol=1e-5)


def test_a_followed_token_has_the_weights_of_the_translation(translator: TranslationPipeline) -> None:
    (translation,) = translator(PROMPT)
    for i, layer in enumerate(decoder_layers(translator)):
        reading = follow_text(translator, PROMPT, layer)
        assert list(reading.written) == translation.tokens and list(reading.tokens) == translation.source_tokens
        for head in range(2):
            found = torch.stack([reading.query(n, head).weights for n in range(len(reading.written))])
            torch.testing.assert_close(found, translation.attention[i, head], rtol=1e-4, atol=1e-6)


def test_the_steps_lead_from_q_to_the_weights(tiny_pipe: TextToImagePipeline) -> None:
    reading = follow_picture(tiny_pipe, draw_states(tiny_pipe, PROMPT, steps=2), 1, "up.0.0")
    module = tiny_pipe.unet.get_submodule("up.0.0.attention.cross_attention")
    found = reading.query(5, head=1)
    assert found.q.shape == (16,) and found.k.shape == found.v.shape == (len(found.tokens), 16)
    torch.testing.assert_close(found.q, module.to_q(reading.x[5])[16:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.k, module.to_k(reading.memory)[:, 16:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.v, module.to_v(reading.memory)[:, 16:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.products, (found.k * found.q).sum(dim=1))
    torch.testing.assert_close(found.scaled, found.products / 4)
    torch.testing.assert_close(found.weights, attention_weights(found.q[None], found.k)[0])
    torch.testing.assert_close(found.out, (found.weights[:, None] * found.v).sum(dim=0))


@pytest.mark.parametrize("layer", ["down.0.0", "mid"])
def test_the_heads_side_by_side_give_the_layers_output(tiny_pipe: TextToImagePipeline, layer: str) -> None:
    trajectory = draw_states(tiny_pipe, PROMPT, steps=2)
    module = tiny_pipe.unet.get_submodule(f"{layer}.attention.cross_attention")
    expected = outputs(module, lambda: follow_picture(tiny_pipe, trajectory, 1, layer))
    reading = follow_picture(tiny_pipe, trajectory, 1, layer)
    torch.testing.assert_close(module.to_out(answers(reading)), expected, rtol=1e-4, atol=1e-5)


def test_the_decoders_heads_side_by_side_give_its_layers_output(translator: TranslationPipeline) -> None:
    reading = follow_text(translator, PROMPT, "decoder.1")
    ids = translator.tokenizer.convert_tokens_to_ids
    target = torch.tensor([[translator.tokenizer.bos_token_id, *ids(list(reading.written[:-1]))]])
    memory = translator.text_encoder.encode(torch.tensor([ids(list(reading.tokens))]))
    module = translator.text_encoder.decoder[1].cross_attention
    expected = outputs(module, lambda: translator.text_encoder.decode(target, memory))
    torch.testing.assert_close(module.to_out(answers(reading)), expected, rtol=1e-4, atol=1e-5)


def test_both_readers_read_one_memory(translator: TranslationPipeline, tiny_pipe: TextToImagePipeline) -> None:
    both = TextToImagePipeline(translator.tokenizer, translator.text_encoder, tiny_pipe.unet, tiny_pipe.scheduler)
    both.set_progress_bar_config(disable=True)
    picture = follow_picture(both, draw_states(both, PROMPT, steps=1), 0, "mid")
    text = follow_text(translator, PROMPT, "decoder.0")
    assert picture.tokens == text.tokens
    torch.testing.assert_close(picture.memory, text.memory, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(picture.k[0, :, :16], text.k[0], atol=1e-2)  # memory is not K yet


def test_a_masked_token_gets_no_attention(tiny_pipe: TextToImagePipeline) -> None:
    reading = follow_picture(tiny_pipe, draw_states(tiny_pipe, PROMPT, steps=1), 0, "mid")
    assert reading.mask.all()  # alone in its batch, a prompt has no padding
    mask = torch.tensor([i != 2 for i in range(len(reading.tokens))])
    weights, before = replace(reading, mask=mask).query(0, 0).weights, reading.query(0, 0).weights
    assert weights[2] == 0
    torch.testing.assert_close(weights[mask], before[mask] / before[mask].sum())


def test_pixels_lie_in_the_cells_of_the_grid(tiny_pipe: TextToImagePipeline) -> None:
    reading = follow_picture(tiny_pipe, draw_states(tiny_pipe, PROMPT, steps=1), 0, "down.0.0")
    assert reading.grid == (8, 8)
    assert [reading.place(x, y) for x, y in ((0, 0), (3, 3), (4, 0), (0, 4), (31, 31))] == [0, 0, 1, 8, 63]
    for x, y in ((-1, 0), (0, 32), (32, 0)):
        with pytest.raises(ValueError, match=rf"^pixel \({x}, {y}\) lies outside the picture of 32×32$"):
            reading.place(x, y)


def test_no_hook_stays_behind(tiny_pipe: TextToImagePipeline) -> None:
    trajectory = draw_states(tiny_pipe, PROMPT, steps=1)
    follow_picture(tiny_pipe, trajectory, 0, "mid")
    broken = replace(trajectory, states=(trajectory.states[0][:, :1],))
    with pytest.raises(RuntimeError):  # a pass that fails removes its hooks, too
        follow_picture(tiny_pipe, broken, 0, "mid")
    assert not any(module._forward_hooks for module in tiny_pipe.unet.modules())


def test_a_pass_in_another_thread_is_ignored(tiny_pipe: TextToImagePipeline) -> None:
    trajectory, other = (draw_states(tiny_pipe, prompt, steps=1) for prompt in (PROMPT, "a star"))
    expected = follow_picture(tiny_pipe, trajectory, 0, "mid")

    def disturb(*_: object) -> None:
        """After the followed layer, while the pass continues, another pass runs through that layer."""
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=follow_picture, args=(tiny_pipe, other, 0, "up.0.0"))
            thread.start()
            thread.join()

    handle = tiny_pipe.unet.norm_out.register_forward_hook(disturb)
    found = follow_picture(tiny_pipe, trajectory, 0, "mid")
    handle.remove()
    assert torch.equal(found.q, expected.q) and torch.equal(found.k, expected.k)


@pytest.mark.parametrize(
    ("step", "layer", "message"),
    [
        (2, "mid", "step 2 does not exist: choose 0 to 1"),
        (-1, "mid", "step -1 does not exist"),
        (0, "up.9.9", "layer 'up.9.9' does not exist: choose one of down.0.0, "),
    ],
)
def test_a_missing_step_or_layer_is_an_error_of_one_line(
    tiny_pipe: TextToImagePipeline, step: int, layer: str, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}.*$"):
        follow_picture(tiny_pipe, draw_states(tiny_pipe, PROMPT, steps=2), step, layer)


def test_a_missing_query_is_an_error_of_one_line(
    tiny_pipe: TextToImagePipeline, translator: TranslationPipeline
) -> None:
    reading = follow_picture(tiny_pipe, draw_states(tiny_pipe, PROMPT, steps=1), 0, "mid")
    for position, head in ((16, 0), (-1, 0), (0, 2), (0, -1)):
        with pytest.raises(ValueError, match=r"^(head|position) -?\d+ does not exist: choose 0 to \d+$"):
            reading.query(position, head)
    with pytest.raises(ValueError, match=r"^layer 'decoder.2' does not exist: choose one of decoder.0, decoder.1$"):
        follow_text(translator, PROMPT, "decoder.2")
    with pytest.raises(ValueError, match=r"^there is nothing to translate"):
        follow_text(translator, " ", "decoder.0")
