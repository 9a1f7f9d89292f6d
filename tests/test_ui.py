"""The page's API."""

import base64
import copy
import io
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError, AuthenticationError
from PIL import Image

from pipelines import TextToImagePipeline
from ui.app import launch
from ui.kept import Kept
from ui.models import Models
from ui.picture_tab import look

PROMPT = "a red circle left of a blue square"


@pytest.fixture(scope="module")
def pipe(tiny_pipe: TextToImagePipeline) -> TextToImagePipeline:
    """A copy of the shared pipeline, because the page moves its pipeline to a GPU."""
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


def test_a_client_gets_the_picture_it_asked_for(client: Client, pipe: TextToImagePipeline) -> None:
    answer = client.predict(PROMPT, seed="5", num_inference_steps=2, num_images_per_prompt=2, api_name="/generate")
    again = client.predict(PROMPT, seed="6", num_inference_steps=2, api_name="/generate")
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    expected = pipe([PROMPT] * 2, num_inference_steps=2, generator=generators).images
    for shown, picture in zip([*answer["pictures"], *again["pictures"]], [*expected, expected[1]], strict=True):
        png = base64.b64decode(shown["picture"].partition(",")[2])
        apart = np.asarray(Image.open(io.BytesIO(png))).astype(int) - np.asarray(picture).astype(int)
        assert abs(apart).max() <= 1
    assert [shown["settings"]["seed"] for shown in answer["pictures"]] == ["5", "6"]
    assert answer["note"].startswith("Model this pipeline, seed 5, 2 steps, guidance scale 3:")


def test_clients_at_the_same_time_each_get_their_own(client: Client) -> None:
    jobs = {
        seed: client.submit(f"{PROMPT} {seed}", seed=str(seed), num_inference_steps=2, api_name="/generate")
        for seed in range(6)
    }
    for seed, job in jobs.items():
        (shown,) = job.result()["pictures"]
        assert (shown["prompt"], shown["settings"]["seed"]) == (f"{PROMPT} {seed}", str(seed))


def test_a_client_gets_errors_of_one_line(client: Client) -> None:
    for wrong, expected in (
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "a" * 100_000}, "the prompt has 100,000 characters"),
        ({"seed": "-1"}, "the seed is a whole number"),
        ({"num_inference_steps": 0}, "num_inference_steps must be"),
        ({"num_inference_steps": 101}, "num_inference_steps must be"),
        ({"sampler": "DDIM"}, "the sampler is one of"),
        ({"num_images_per_prompt": 9}, "num_images_per_prompt must be"),
        ({"model": "../../etc"}, "model '../../etc' not found"),
    ):
        with pytest.raises(AppError, match=expected) as error:
            client.predict(**{"prompt": PROMPT, "num_inference_steps": 2} | wrong, api_name="/generate")
        assert "\n" not in str(error.value)


def test_a_client_uploads_a_picture(client: Client, tmp_path: Path) -> None:
    Image.fromarray(np.full((50, 40, 3), 200, np.uint8)).save(tmp_path / "mine.png")
    answer = client.predict(handle_file(tmp_path / "mine.png"), "a red circle", "", api_name="/attribute")
    (shown,) = answer["pictures"]
    assert shown["prompt"] == "a red circle" and shown["steps"] == 3
    for caption, expected in (("", "caption is empty"), ("circle " * 300, "prompt has")):
        with pytest.raises(AppError, match=expected):
            client.predict(handle_file(tmp_path / "mine.png"), caption, "", api_name="/attribute")


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
def test_a_picture_that_cannot_be_read_is_refused_in_a_line(pipe: TextToImagePipeline, tmp_path: Path) -> None:
    models, kept = Models(pipe), Kept()
    (tmp_path / "text.png").write_bytes(b"a text")
    (tmp_path / "vector.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.new("L", (9000, 9000)).save(tmp_path / "bomb.png")
    complete = io.BytesIO()
    Image.new("RGB", (64, 64)).save(complete, "PNG")
    (tmp_path / "cut.png").write_bytes(complete.getvalue()[:60])
    for name, expected in (
        ("text.png", "is damaged"),
        ("vector.eps", "is damaged"),
        ("cut.png", "is damaged"),
        ("bomb.png", "9000×9000"),
    ):
        with pytest.raises(ValueError, match=expected):
            look(models, kept, str(tmp_path / name), "a red circle", "")
    with pytest.raises(ValueError, match="no picture: drop one"):
        look(models, kept, None, "a red circle", "")


def test_the_api_has_these_endpoints_and_parameters(client: Client) -> None:
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    seen = {"/generate", "/models", "/attribute", "/translate", "/follow", "/follow_translation"}
    assert set(endpoints) == seen | {"/runs", "/train", "/stop", "/resume"}
    assert client.predict(api_name="/models")[:4] == ["this pipeline", "emoji", "everyday", "everyday-fast"]
    asked = {
        p["parameter_name"]: [either["type"] for either in p["type"].get("oneOf", [p["type"]])]
        for p in endpoints["/generate"]["parameters"]
    }
    assert asked["prompt"] == ["string"]
    own = "num_inference_steps", "guidance_scale"  # null: the model's own
    assert [asked[name] for name in own] == [["null", "integer"], ["null", "number"]]


def test_every_endpoint_says_what_it_takes_and_what_it_returns(client: Client) -> None:
    for name, about in client.view_api(return_format="dict", print_info=False)["named_endpoints"].items():
        (answer,) = about["returns"]
        assert re.fullmatch("[a-z]+", answer["label"]), name
        if name == "/attribute":  # Gradio describes its upload
            continue
        assert len(answer["python_type"]["description"]) > 10, name
        for parameter in about["parameters"]:
            assert parameter["label"] == parameter["parameter_name"], name
            assert len(parameter["python_type"]["description"]) > 10, (name, parameter["label"])


def test_a_port_in_use_is_an_error_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=rf"^127.0.0.1:{port} is in use.*--port"):
            launch("no such model", port=port)
    with pytest.raises(ValueError, match="port must be a number from 1 to 65535, got 0"):
        launch("no such model", port=0)


@pytest.mark.parametrize("auth", ["", "ada", "ada:", ":enigma"])
def test_an_incomplete_login_is_refused_before_anything_is_served(auth: str) -> None:
    with pytest.raises(ValueError, match=r"^--auth must be user:password"):
        launch("no such model", port=free_port(), auth=auth)


def test_a_page_with_a_login_refuses_everybody_else(pipe: TextToImagePipeline) -> None:
    page = launch(pipe, port=free_port(), auth="ada:enigma", block=False)
    try:
        with pytest.raises((AuthenticationError, ValueError)):
            Client(page.local_url, verbose=False)
        client = Client(page.local_url, verbose=False, auth=("ada", "enigma"))
        assert client.predict(api_name="/models")
        client.close()
    finally:
        page.close()


def test_language_models_are_offered_the_api(pipe: TextToImagePipeline) -> None:
    page = launch(pipe, port=free_port(), mcp=True, block=False)
    try:
        with urlopen(f"{page.local_url}gradio_api/mcp/schema") as answer:
            tools = {tool["name"]: tool for tool in json.load(answer)}
        assert {"generate", "attribute", "list_models"} <= set(tools)
        assert all(tool["description"] for tool in tools.values())
    finally:
        page.close()
