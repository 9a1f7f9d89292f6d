"""Shapes: L decoder layers, H heads, S source tokens, T target tokens."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from pipelines import TextToImagePipeline, TranslationPipeline
from pipelines.data.batches import Collator
from pipelines.scenes import shapes as scenes
from pipelines.scenes.captions import LANGUAGES, is_chinese, meaning
from pipelines.training.objective import text_loss
from unet_xattn import Transformer

TEXTS = ["a red circle", "一个红色的圆在蓝色正方形的左边"]


@pytest.fixture(scope="module")
def pipe(tokenizer: PreTrainedTokenizerFast) -> TranslationPipeline:
    """Untrained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TranslationPipeline(tokenizer, Transformer(len(tokenizer), width=32, heads=2, decoder_layers=2).eval())


def test_a_translation_holds_its_tokens_and_their_attention(pipe: TranslationPipeline) -> None:
    for text, translation in zip(TEXTS, pipe(TEXTS, max_tokens=5), strict=True):
        assert translation.text == pipe.tokenizer.decode(
            pipe.tokenizer.convert_tokens_to_ids(translation.tokens), skip_special_tokens=True
        )
        assert translation.source_tokens == pipe.tokenizer.convert_ids_to_tokens(pipe.tokenizer(text)["input_ids"])
        assert translation.tokens[-1] == "[END]" and len(translation.tokens) <= 6
        shape = (2, 2, len(translation.tokens), len(translation.source_tokens))
        assert translation.attention.shape == shape
        torch.testing.assert_close(translation.attention.sum(-1), torch.ones(shape[:-1]))


def test_a_text_has_the_same_translation_alone_and_in_a_batch(pipe: TranslationPipeline) -> None:
    together = pipe(TEXTS, max_tokens=8)
    for text, expected in zip(TEXTS, together, strict=True):
        (alone,) = pipe(text, max_tokens=8)
        assert alone.text == expected.text
        torch.testing.assert_close(alone.attention, expected.attention, rtol=1e-4, atol=1e-5)


def test_a_translation_holds_the_probability_of_each_token(pipe: TranslationPipeline) -> None:
    source = torch.tensor([pipe.tokenizer(TEXTS[0])["input_ids"]])
    given = torch.tensor([pipe.tokenizer(TEXTS[1])["input_ids"]])  # [START] ... [END]
    chances = pipe.text_encoder(source, given[:, :-1])[0].softmax(dim=-1).detach()  # (T, V)
    read = pipe.read(TEXTS[0], TEXTS[1])
    assert read.text == TEXTS[1]
    assert read.tokens == pipe.tokenizer.convert_ids_to_tokens(given[0, 1:].tolist())
    expected = chances.gather(1, given[0, 1:, None]).squeeze(1)
    torch.testing.assert_close(read.probabilities, expected)
    torch.testing.assert_close(read.likeliest_probabilities, chances.amax(dim=-1))
    assert read.likeliest == pipe.tokenizer.convert_ids_to_tokens(chances.argmax(dim=-1).tolist())
    torch.testing.assert_close(read.attention.sum(-1), torch.ones(2, 2, len(expected)))


def test_reading_a_translation_it_wrote_gives_the_same() -> None:
    """With a trained model: an untrained one writes token sequences that no text is tokenized to."""
    pipe = TranslationPipeline.from_pretrained("shapes")
    for text in TEXTS:
        (written,) = pipe(text, beams=1)
        read = pipe.read(text, written.text)
        assert read.tokens == written.tokens == read.likeliest
        torch.testing.assert_close(read.attention, written.attention)
        torch.testing.assert_close(read.probabilities, written.likeliest_probabilities)


def test_a_stream_grows_by_a_token_into_the_greedy_translation(pipe: TranslationPipeline) -> None:
    *growing, whole = pipe.stream(TEXTS[0], max_tokens=6)
    (expected,) = pipe(TEXTS[0], beams=1, max_tokens=6)
    assert whole.text == expected.text and whole.tokens == expected.tokens
    torch.testing.assert_close(whole.attention, expected.attention)
    for count, part in enumerate(growing, 1):
        assert part.tokens == part.likeliest == whole.tokens[:count]
        torch.testing.assert_close(part.attention, whole.attention[:, :, :count])
        torch.testing.assert_close(part.probabilities, whole.probabilities[:count])


def test_the_text_side_of_a_text_to_image_model_translates(
    pipe: TranslationPipeline, tiny_pipe: TextToImagePipeline, tmp_path: Path
) -> None:
    both = TextToImagePipeline(pipe.tokenizer, pipe.text_encoder, tiny_pipe.unet, tiny_pipe.scheduler)
    both.save_pretrained(tmp_path)
    loaded = TranslationPipeline.from_pretrained(tmp_path)
    assert [t.text for t in loaded(TEXTS)] == [t.text for t in pipe(TEXTS)]


def test_a_model_without_a_decoder_is_refused(tiny_pipe: TextToImagePipeline, tmp_path: Path) -> None:
    tiny_pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no decoder, so it cannot translate"):
        TranslationPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model 'nope' not found"):
        TranslationPipeline.from_pretrained("nope")


def test_weights_that_are_not_numbers_are_refused(pipe: TranslationPipeline, tmp_path: Path) -> None:
    broken = copy.deepcopy(pipe.text_encoder)
    with torch.no_grad():
        broken.embedding.weight[0, 0] = torch.nan
    TranslationPipeline(pipe.tokenizer, broken).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"missing or not numbers: embedding\.weight"):
        TranslationPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", "  ", [], ["a", ""]])
def test_an_empty_text_is_refused(pipe: TranslationPipeline, text: str | list[str]) -> None:
    with pytest.raises(ValueError, match="nothing to translate"):
        pipe(text)


def test_a_text_longer_than_the_model_reads_is_refused(pipe: TranslationPipeline) -> None:
    with pytest.raises(ValueError, match="the text has 102 tokens, this model reads 64"):
        pipe("red " * 100)
    with pytest.raises(ValueError, match="the translation has 102 tokens, this model reads 64"):
        pipe.read("red", "red " * 100)
    with pytest.raises(ValueError, match="the translation is empty"):
        pipe.read("red", " ")


def test_translation_of_captions_can_be_learnt(tokenizer: PreTrainedTokenizerFast) -> None:
    """Training and decoding in both directions on captions of single objects; a translation must mean the same."""

    def captions(seed: int, places: range, language: str) -> list[str]:
        return [scenes.scene(seed, place, "one", language=language).caption for place in places]

    torch.manual_seed(0)
    text_encoder = Transformer(len(tokenizer), width=64, heads=4, encoder_layers=1, decoder_layers=1)
    optimizer = torch.optim.Adam(text_encoder.parameters(), 3e-3)
    collator = Collator(tokenizer, 0, 0.0, cell=4)
    for step in range(300):
        source, target = ("en", "zh") if step % 2 else ("zh", "en")
        places = range(32 * step, 32 * step + 32)
        ids, token_mask, _ = collator.read(captions(5, places, source), [()] * 32, (32, 32))
        memory = text_encoder.encode(ids, token_mask)
        loss = text_loss(text_encoder, memory, token_mask, *collator.write(captions(5, places, target)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    translate = TranslationPipeline(tokenizer, text_encoder.eval())
    for language in LANGUAGES:
        texts = captions(6, range(40), language)
        translations = [translation.text for translation in translate(texts)]
        right = [
            meaning(a) == meaning(b) and is_chinese(a) != is_chinese(b)
            for a, b in zip(translations, texts, strict=True)
        ]
        assert sum(right) >= 30, list(zip(texts, translations, strict=True))
