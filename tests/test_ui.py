"""What a person types, what the viewer is told, and the page's API."""

import base64
import copy
import io
import json
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from pipelines import TextToImagePipeline, trace
from ui import viewer
from ui.app import launch
from ui.checks import MAX_PROMPT, MAX_SEED, check_prompt, parse_seed
from ui.generate_tab import generate, new_seed
from unet_xattn import AttentionTrace

PROMPT = "a red circle left of a blue square"
HOSTILE = ["<img src=x onerror=alert(1)>", "${alert(1)}", "{{7*7}}", "`; alert(1)"]


@pytest.fixture(scope="module")
def pipe(tiny_pipe: TextToImagePipeline) -> TextToImagePipeline:
    """A copy of the shared pipeline, for the page moves its pipeline to a GPU."""
    return TextToImagePipeline(**copy.deepcopy(tiny_pipe.components))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def client(pipe: TextToImagePipeline) -> Iterator[Client]:
    page = launch(pipe, port=free_port(), block=False)
    client = Client(page.local_url, verbose=False)
    yield client
    client.close()
    page.close()


def record(pipe: TextToImagePipeline, prompt: str, **settings: Any) -> AttentionTrace:
    with trace(pipe) as attention:
        pipe(prompt, num_inference_steps=2, **settings)
    return attention


def shares(props: dict) -> np.ndarray:
    """(words, rows, columns), as the browser reads them."""
    levels = np.frombuffer(base64.b64decode(props["maps"]), np.uint8).reshape(-1, *props["grid"])
    return levels / 255 * np.array(props["peaks"])[:, None, None]


# What a person types


@pytest.mark.parametrize("text", ["0", " 42 ", str(MAX_SEED), 7])
def test_a_seed_is_any_integer_of_64_bits(text: str | int) -> None:
    assert parse_seed(text) == int(text)


@pytest.mark.parametrize("text", ["", "-1", str(MAX_SEED + 1), "1.5", "1e3", "seed", "9" * 10_000, 1.0, True])
def test_anything_else_is_no_seed(text: str) -> None:
    with pytest.raises(ValueError, match=r"^the seed is a whole number from 0 to 18446744073709551615 .*$"):
        parse_seed(text)


def test_a_new_seed_is_a_seed() -> None:
    assert parse_seed(new_seed()) >= 0


@pytest.mark.parametrize("prompt", ["a" * (MAX_PROMPT + 1), "a" * 100_000, "half \ud83d a smile"])
def test_a_prompt_no_tokenizer_should_see_is_refused_in_a_line(prompt: str) -> None:
    with pytest.raises(ValueError, match=r"^.{20,120}$"):
        check_prompt(prompt)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "a" * 100_000}, "100,000 characters"),
        ({"prompt": "circle " * 200}, "tokens"),
        ({"seed": "-1"}, "seed"),
        ({"seed": str(2**64)}, "seed"),
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "steps"),
        ({"guidance": -1.0}, "guidance"),
        ({"guidance": float("nan")}, "guidance"),
    ],
)
def test_bad_input_is_a_value_error_of_one_line(pipe: TextToImagePipeline, wrong: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as error:
        generate(pipe, **({"prompt": PROMPT, "seed": "0", "steps": 2, "guidance": 3.0} | wrong))
    assert "\n" not in str(error.value)


def test_a_seed_names_a_picture(pipe: TextToImagePipeline) -> None:
    first, again, other = (generate(pipe, PROMPT, seed, 2, 3.0)[0].pictures for seed in ("1", "1", str(MAX_SEED)))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_words_the_model_never_read_are_named_once(pipe: TextToImagePipeline) -> None:
    attention, message = generate(pipe, "a red elephant and an elephant", "0", 2, 3.0)
    assert message.endswith('The model has never read: "elephant".')
    assert str(attention.words[2]) == "elephant"
    assert "never" not in generate(pipe, PROMPT, "0", 2, 3.0)[1]


# What the viewer is told


@pytest.mark.parametrize("prompt", [PROMPT, "A red circle, left of a blue square.", "...", "红色 🟥 circle", *HOSTILE])
def test_pieces_are_the_prompt_and_its_words(pipe: TextToImagePipeline, prompt: str) -> None:
    attention = record(pipe, prompt)
    props = viewer.payload(attention)
    assert "".join(text for text, _ in props["pieces"]) == prompt == props["prompt"]
    assert [text for text, word in props["pieces"] if word >= 0] == [str(word) for word in attention.words]


@pytest.mark.parametrize("size", [{}, {"height": 16, "width": 32}])
def test_the_viewer_and_words_at_give_the_same_numbers(pipe: TextToImagePipeline, size: dict) -> None:
    attention = record(pipe, PROMPT, **size)
    props = viewer.payload(attention)
    rows, columns = props["grid"]
    height, width = attention.size
    assert rows / columns == height / width
    maps, cell = shares(props), height // rows
    for row, column in [(0, 0), (rows - 1, 1), (1, columns - 1)]:
        box = (column * cell, row * cell, (column + 1) * cell, (row + 1) * cell)
        expected = {word.start: share for word, share in attention.words_at(box)}
        for i, word in enumerate(attention.words):
            assert maps[i, row, column] == pytest.approx(expected[word.start], abs=props["peaks"][i] / 255)


def test_the_payload_speaks_of_the_image_asked_for(pipe: TextToImagePipeline) -> None:
    with trace(pipe) as attention:
        pictures = pipe([PROMPT, "a green star"], num_inference_steps=2).images
    props = viewer.payload(attention, image=1)
    assert props["prompt"] == "a green star"
    png = base64.b64decode(props["picture"].partition(",")[2])
    assert (np.asarray(Image.open(io.BytesIO(png))) == np.asarray(pictures[1])).all()


def test_the_payload_is_small_and_json(pipe: TextToImagePipeline) -> None:
    assert len(json.dumps(viewer.payload(record(pipe, PROMPT)))) < 300_000


def test_templates_hold_nothing_that_gradio_would_run() -> None:
    component = viewer.attention_viewer()
    for template in (component.html_template, component.css_template):
        assert not any(mark in template for mark in ("${", "{{", "`", "\\"))


# The page


def test_a_client_gets_the_picture_it_asked_for(client: Client, pipe: TextToImagePipeline) -> None:
    props = client.predict(PROMPT, "5", 2, 3.0, api_name="/generate")
    attention, _ = generate(pipe, PROMPT, "5", 2, 3.0)
    expected = viewer.payload(attention)
    assert props["picture"] == expected["picture"]
    assert props["maps"] == expected["maps"]
    assert props["note"].startswith("Seed 5, 2 steps, guidance 3:")


def test_clients_at_the_same_time_each_get_their_own(client: Client) -> None:
    jobs = {seed: client.submit(PROMPT, str(seed), 2, 3.0, api_name="/generate") for seed in range(6)}
    assert all(job.result()["note"].startswith(f"Seed {seed},") for seed, job in jobs.items())


def test_a_client_hears_in_a_line_what_is_wrong(client: Client) -> None:
    for arguments in (("", "0", 2, 3.0), (PROMPT, "-1", 2, 3.0), (PROMPT, "0", 0, 3.0), ("a" * 100_000, "0", 2, 3.0)):
        with pytest.raises(AppError, match=r"prompt|seed|steps") as error:
            client.predict(*arguments, api_name="/generate")
        assert "\n" not in str(error.value)


def test_the_api_is_what_a_program_asks_for_and_no_event_of_the_page(client: Client) -> None:
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert list(endpoints) == ["/generate", "/runs", "/train", "/stop", "/resume"]


def test_a_port_that_cannot_be_had_is_said_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=rf"^127.0.0.1:{port} is taken.*--port"):
            launch("no such model", port=port)
    with pytest.raises(ValueError, match="port is a number from 1 to 65535"):
        launch("no such model", port=0)
