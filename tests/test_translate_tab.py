"""The Translate tab: its input, the data of its alignment, and its API.

Shapes: L decoder layers, H heads, S source tokens, T target tokens.
"""

import base64
import copy
import json
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from pipelines import TextToImagePipeline, TranslationPipeline
from pipelines.checks import MAX_PROMPT
from pipelines.drawing import readable
from ui.alignment import ONE, alignment, payload
from ui.app import launch
from ui.translate_tab import MAX_BEAMS, translate, translator

TEXT = "a red circle left of a blue square"
REFERENCE = "一个红色的圆在蓝色正方形的左边"


@pytest.fixture(scope="module")
def pipe(tiny_bilingual_pipe: TextToImagePipeline) -> TranslationPipeline:
    return TranslationPipeline(tiny_bilingual_pipe.tokenizer, tiny_bilingual_pipe.text_encoder)


@pytest.fixture(scope="module")
def client(tiny_bilingual_pipe: TextToImagePipeline) -> Iterator[Client]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    page = launch(TextToImagePipeline(**copy.deepcopy(tiny_bilingual_pipe.components)), port=port, block=False)
    client = Client(page.local_url, verbose=False)
    yield client
    client.close()
    page.close()


def weights(reading: dict[str, Any]) -> np.ndarray:
    """(L, H, T, S), as the browser reads them."""
    levels = np.frombuffer(base64.b64decode(reading["weights"]), "<u2")
    return levels.reshape(reading["layers"], reading["heads"], len(reading["tokens"]), -1) / ONE


def texts(tokens: list[tuple[str, bool]]) -> list[str]:
    return [text for text, _ in tokens]


# The data of the alignment


def test_the_alignment_and_the_pipeline_give_the_same_numbers(pipe: TranslationPipeline) -> None:
    written, read = pipe(TEXT, max_tokens=9)[0], pipe.read(TEXT, REFERENCE)
    props = payload(written, read)
    for reading, translation in ((props["written"], written), (props["reference"], read)):
        np.testing.assert_allclose(weights(reading), translation.attention, rtol=0, atol=0.51 / ONE)
        np.testing.assert_allclose(weights(reading).sum(axis=-1), 1, rtol=0, atol=len(props["source"]) / ONE)
        assert reading["probabilities"] == translation.probabilities.tolist()
        assert texts(reading["tokens"]) == [readable(token) for token in translation.tokens]
        assert texts(reading["likeliest"]) == [readable(token) for token in translation.likeliest]
    assert texts(props["source"]) == ["[START]", *TEXT.split(), "[END]"]
    assert payload(written)["reference"] is None


def test_special_tokens_are_marked(pipe: TranslationPipeline) -> None:
    props = payload(pipe(TEXT, max_tokens=3)[0], special=["[START]", "[END]"])
    assert [text for text, special in props["source"] if special] == ["[START]", "[END]"]
    assert props["written"]["tokens"][-1] == ("[END]", True)


def test_the_payload_is_small_and_json(pipe: TranslationPipeline) -> None:
    *_, whole = translate(pipe, "red " * 62, "red " * 62)
    assert len(json.dumps(whole)) < 200_000


def test_templates_hold_nothing_that_gradio_would_run() -> None:
    component = alignment()
    for template in (component.html_template, component.css_template):
        assert not any(mark in template for mark in ("${", "{{", "`", "\\"))


# The input


def test_the_translation_grows_into_the_greedy_one(pipe: TranslationPipeline) -> None:
    *growing, whole = translate(pipe, TEXT, REFERENCE)
    (expected,) = pipe(TEXT, beams=1)
    assert whole["text"] == expected.text
    assert texts(whole["written"]["tokens"]) == [readable(token) for token in expected.tokens]
    assert [len(shown["written"]["tokens"]) for shown in growing] == list(range(1, len(expected.tokens)))
    assert all(shown["reference"] == whole["reference"] for shown in growing)


def test_beams_give_the_translation_of_the_pipeline(pipe: TranslationPipeline) -> None:
    (whole,) = translate(pipe, TEXT, beams=3.0)  # sliders give floats
    assert whole["text"] == pipe(TEXT, beams=3)[0].text
    assert whole["reference"] is None


def test_a_text_without_words_is_told(pipe: TranslationPipeline) -> None:
    assert next(translate(pipe, "!!!"))["note"] == "The text has no words."


def test_unknown_words_are_named(pipe: TranslationPipeline) -> None:
    assert next(translate(pipe, "a red elephant"))["note"] == 'Words unknown to the model: "elephant".'
    assert next(translate(pipe, TEXT))["note"] == ""


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"text": ""}, "nothing to translate"),
        ({"text": " \n"}, "nothing to translate"),
        ({"text": "a" * (MAX_PROMPT + 1)}, "text has 10,001 characters"),
        ({"text": "red " * 100}, "text has 102 tokens"),
        ({"text": None}, "not NoneType"),
        ({"reference": "a" * (MAX_PROMPT + 1)}, "your translation: .* 10,001 characters"),
        ({"reference": "red " * 100}, "translation has 102 tokens"),
        ({"reference": "half \ud83d a smile"}, "your translation: character 6"),
        ({"beams": 0}, "from 1 to 8, got 0"),
        ({"beams": MAX_BEAMS + 1}, "from 1 to 8"),
        ({"beams": 1.5}, "from 1 to 8"),
        ({"beams": float("nan")}, "from 1 to 8"),
    ],
)
def test_bad_input_is_a_value_error_of_one_line(pipe: TranslationPipeline, wrong: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^.*{expected}.*$") as error:
        next(translate(pipe, **({"text": TEXT, "reference": REFERENCE, "beams": 1} | wrong)))
    assert "\n" not in str(error.value)


def test_a_model_without_a_decoder_is_an_error(tiny_pipe: TextToImagePipeline) -> None:
    with pytest.raises(ValueError, match=r"^this model has no decoder, so it cannot translate.*$"):
        translator(tiny_pipe)


# The page


def test_a_client_gets_the_translation_it_asked_for(client: Client, pipe: TranslationPipeline) -> None:
    *_, expected = translate(pipe, TEXT, REFERENCE)
    got = client.predict(TEXT, REFERENCE, api_name="/translate")
    assert got["text"] == expected["text"]
    np.testing.assert_allclose(weights(got["reference"]), weights(expected["reference"]), rtol=0, atol=1e-3)
    assert client.predict(TEXT, "", 4, api_name="/translate")["text"] == pipe(TEXT, beams=4)[0].text


def test_a_client_gets_errors_of_one_line(client: Client) -> None:
    for arguments in (("",), (TEXT, "red " * 100), (TEXT, "", 9), (TEXT, "", 2.5), (TEXT, "", 1, "/etc"), (7,)):
        with pytest.raises(AppError, match=r"translate|translation|beams|model|text") as error:
            client.predict(*arguments, api_name="/translate")
        assert "\n" not in str(error.value)
