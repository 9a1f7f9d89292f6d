"""The data of the Inspect tab's diagram, and its API. Shapes: H heads, N queries, T tokens, E width of a head."""

import base64
import copy
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from transformers import PreTrainedTokenizerFast

from pipelines import TextToImagePipeline
from pipelines.tracing.follow import follow_picture, follow_text
from ui.app import launch
from ui.inspect_tab import MAX_STEPS, first_layer, layers, look_at_picture, look_at_text, numbers, record_inputs
from ui.query import query_diagram
from ui.translate_tab import translator
from unet_xattn import Transformer

PROMPT = "a red circle left of a blue square"
HOSTILE = ["<img src=x onerror=alert(1)>", "${alert(1)}", "{{7*7}}"]


@pytest.fixture(scope="module")
def both(tiny_pipe: TextToImagePipeline, tokenizer: PreTrainedTokenizerFast) -> TextToImagePipeline:
    """An untrained pipeline with both readers of the memory."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Transformer(len(tokenizer), width=32, heads=2, encoder_layers=1, decoder_layers=2).eval()
    parts = copy.deepcopy({name: tiny_pipe.components[name] for name in ("tokenizer", "unet", "scheduler")})
    parts["tokenizer"].model_max_length = 32
    pipe = TextToImagePipeline(text_encoder=network, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def client(both: TextToImagePipeline) -> Iterator[Client]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    page = launch(both, port=port, block=False)
    client = Client(page.local_url, verbose=False)
    yield client
    client.close()
    page.close()


def sent(props: dict[str, Any], name: str) -> np.ndarray:
    """An array of a payload, as the browser reads it."""
    heads, positions, tokens, width, memory_width = props["shape"]
    shape = {"q": (heads, positions, width), "memory": (tokens, memory_width)}.get(name, (heads, tokens, width))
    return np.frombuffer(base64.b64decode(props[name]), "<f4").reshape(shape)


# The data of the diagram


def test_the_diagram_gets_the_outputs_of_the_projections(both: TextToImagePipeline) -> None:
    drawing = record_inputs(both, PROMPT, "4", steps=3)
    for _, layer in layers(both, "picture"):
        props = json.loads(json.dumps(look_at_picture(both, drawing, 1, layer)))
        reading = follow_picture(both, drawing, 1, layer)
        for name in ("q", "k", "v", "memory"):
            assert (sent(props, name) == getattr(reading, name).numpy()).all()
        assert props["tokens"] == list(reading.tokens) and props["text"] == PROMPT
        assert (props["step"], props["steps"], tuple(props["grid"])) == (2, 3, reading.grid)
        assert props["noise"] == pytest.approx(2 / 3)


def test_the_diagram_gets_a_translation(both: TextToImagePipeline) -> None:
    props = look_at_text(both, PROMPT, "decoder.1")
    reading = follow_text(translator(both), PROMPT, "decoder.1")
    assert props["written"] == list(reading.written) and "picture" not in props
    assert (sent(props, "q") == reading.q.numpy()).all()


def test_a_payload_is_small(both: TextToImagePipeline) -> None:
    assert len(json.dumps(look_at_picture(both, record_inputs(both, PROMPT, "0", steps=1), 0, "down.0.0"))) < 100_000


def test_it_opens_with_the_head_of_the_largest_calibrated_weight(both: TextToImagePipeline) -> None:
    calibrated = TextToImagePipeline(**both.components, calibration={"down.0.0": [0.1, 0.4], "up.0.0": [0.3, 0.2]})
    calibrated.set_progress_bar_config(disable=True)
    assert first_layer(calibrated, "picture") == "down.0.0"
    assert look_at_picture(calibrated, record_inputs(calibrated, PROMPT, 0, 1), 0, "down.0.0")["head"] == 1
    assert first_layer(both, "picture") == both.unet.attention_layers[-1]  # it has no calibration
    assert first_layer(both, "translation") == "decoder.1"


def test_layers_are_named_with_their_grids(both: TextToImagePipeline) -> None:
    assert layers(both, "picture")[0] == ("down.0.0 · 8×8", "down.0.0")
    assert layers(both, "translation") == [("Decoder layer 1", "decoder.0"), ("Decoder layer 2", "decoder.1")]


def test_a_model_without_a_decoder_says_so(tiny_pipe: TextToImagePipeline) -> None:
    with pytest.raises(ValueError, match=r"^this model has no decoder, so it cannot translate.*$"):
        look_at_text(tiny_pipe, PROMPT, "decoder.0")


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "a" * 100_000}, "100,000 characters"),
        ({"prompt": "circle " * 200}, "tokens"),
        ({"seed": "-1"}, "seed"),
        ({"steps": 0}, "steps"),
        ({"steps": MAX_STEPS + 1}, "steps must be at most 100, got 101"),
        ({"guidance": float("nan")}, "guidance"),
    ],
)
def test_bad_input_is_a_value_error_of_one_line(both: TextToImagePipeline, wrong: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as error:
        record_inputs(both, **({"prompt": PROMPT, "seed": "0", "steps": 2, "guidance": 3.0} | wrong))
    assert "\n" not in str(error.value)


def test_templates_hold_nothing_that_gradio_would_run() -> None:
    component = query_diagram()
    for template in (component.html_template, component.css_template):
        assert not any(mark in template for mark in ("${", "{{", "`", "\\"))


def test_the_diagram_says_what_the_model_does_not_know(both: TextToImagePipeline) -> None:
    for prompt, note in (
        ("a red zebra", 'Words unknown to the model: "zebra".'),
        ("!!!", "The text has no words."),
        (PROMPT, ""),
    ):
        drawing = record_inputs(both, prompt, "0", steps=1)
        assert look_at_picture(both, drawing, 0, "down.0.0")["note"] == note
        assert look_at_text(both, prompt, "decoder.0")["note"] == note


# The page's API


WRONG = {
    "/generate": {"prompt": PROMPT, "num_inference_steps": 1, "guidance_scale": "x"},
    "/translate": {"text": PROMPT, "num_beams": [1]},
    "/follow": {"prompt": PROMPT, "x": "left", "y": 1},
    "/follow_translation": {"text": PROMPT, "position": {}},
    "/train": {"name": "x", "steps": "many"},
    "/stop": {"name": True},
    "/resume": {"name": []},
}


def test_a_value_of_another_type_is_one_line_of_every_endpoint(client: Client) -> None:
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert {name for name, about in endpoints.items() if about["parameters"]} == {*WRONG, "/attribute"}
    for name, arguments in WRONG.items():
        with pytest.raises(AppError, match=r"^\w+ must be (a|a whole) (number|text), got '[^\n]*'$"):
            client.predict(**arguments, api_name=name)


def test_an_upload_that_cannot_be_opened_is_one_line(client: Client, tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    (tmp_path / "drawing.svg").write_text("<svg/>")
    for name in ("cut.jpg", "drawing.svg"):
        with pytest.raises(AppError, match=r"^the picture cannot be used, or its file is damaged: [^\n]*$"):
            client.predict(handle_file(tmp_path / name), PROMPT, "", api_name="/attribute")


def test_an_upload_of_any_shape_is_read_with_notes(client: Client, tmp_path: Path) -> None:
    Image.new("RGB", (1280, 64)).save(tmp_path / "strip.png")
    found = client.predict(handle_file(tmp_path / "strip.png"), "a zebra", "", api_name="/attribute")
    assert 'Words unknown to the model: "zebra". 80% of the picture is cut off' in found["note"]
    assert found["pictures"][0]["layers"]["down.0.0"] == [8, 32]


@pytest.mark.parametrize("prompt", [PROMPT, *HOSTILE])
def test_a_client_gets_the_numbers_of_its_query(client: Client, both: TextToImagePipeline, prompt: str) -> None:
    found = client.predict(prompt, 9, 30, "2", 2, 3.0, 1, "down.0.0", 1, api_name="/follow")
    reading = follow_picture(both, record_inputs(both, prompt, "2", steps=2), 1, "down.0.0")
    expected = numbers(reading.query(7 * 8 + 2, head=1))
    assert (found["row"], found["column"], found["grid"]) == (7, 2, [8, 8])
    assert found["tokens"] == expected["tokens"]
    for name in ("q", "k", "products", "scaled", "weights", "v", "out"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6)
    assert sum(found["weights"]) == pytest.approx(1, abs=1e-5)


def test_a_client_follows_a_token_of_a_translation(client: Client, both: TextToImagePipeline) -> None:
    found = client.predict(PROMPT, 2, "decoder.1", 0, api_name="/follow_translation")
    reading = follow_text(translator(both), PROMPT, "decoder.1")
    np.testing.assert_allclose(found["weights"], reading.query(2, 0).weights, rtol=1e-4, atol=1e-6)
    assert found["written"] == list(reading.written)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"x": 32}, r"pixel \(32, 5\) lies outside the picture of 32×32"),
        ({"step": 2}, "step 2 does not exist: choose 0 to 1"),
        ({"layer": "up.9.9"}, "layer 'up.9.9' does not exist: choose one of"),
        ({"head": 2}, "head 2 does not exist: choose 0 to 1"),
        ({"num_inference_steps": 1000}, "num_inference_steps must be at most 100, got 1000"),
    ],
)
def test_a_client_gets_errors_of_one_line(client: Client, arguments: dict, expected: str) -> None:
    good = {"prompt": PROMPT, "x": 5, "y": 5, "seed": "0", "num_inference_steps": 2, "step": 1}
    with pytest.raises(AppError, match=expected) as error:
        client.predict(**(good | arguments), api_name="/follow")
    assert "\n" not in str(error.value)


def test_a_position_that_does_not_exist_is_an_error(client: Client) -> None:
    with pytest.raises(AppError, match="position 99 does not exist"):
        client.predict(PROMPT, 99, api_name="/follow_translation")
