"""Small real models and small real data for all tests."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from inspect import signature
from itertools import count, islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny: threads would only wait for each other
os.environ["HF_HUB_OFFLINE"] = "1"  # everything bundled or local works without a network

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import nn
from transformers import PreTrainedTokenizerFast

import pipelines.training.train
from pipelines import TextToImagePipeline
from pipelines.data.scenes import SceneExamples
from pipelines.tokenizer import train_tokenizer
from pipelines.training.objective import Losses
from unet_xattn import CrossAttentionUNet, Transformer

pytest.register_assert_rewrite("properties_of_families")


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random tensors in every run of a test."""
    torch.manual_seed(0)


def _awake(model: nn.Module) -> nn.Module:
    """A model with a little noise on every weight, because the outputs of zero-initialised layers ignore the input."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.eval()


@pytest.fixture(scope="session")
def make_unet() -> Callable[..., CrossAttentionUNet]:
    """A function of settings -> a tiny UNet of a fixed seed; `awake=False` leaves its initial weights."""

    def make(awake: bool = True, **settings: object) -> CrossAttentionUNet:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            defaults = {
                "sample_size": 32,
                "patch_size": 4,
                "block_out_channels": (16, 32),
                "layers_per_block": 1,
                "cross_attention": (True, True),
                "self_attention": (False, True),
                "heads": 2,
                "memory_width": 32,
            }
            unet = CrossAttentionUNet(**(defaults | settings))
            return _awake(unet) if awake else unet.eval()

    return make


@pytest.fixture(scope="module")
def small_networks() -> Iterator[None]:
    """New networks are small unless their sizes are given, so that runs train them in little time."""
    text = {"width": 32, "heads": 2, "encoder_layers": 1}
    unet = {"block_out_channels": (16, 16, 32, 32), "layers_per_block": 1, "heads": 2}
    with pytest.MonkeyPatch.context() as patch:
        for kind, sizes in ((Transformer, text), (CrossAttentionUNet, unet)):
            patch.setattr(kind, "__init__", _with_defaults(kind.__init__, sizes))  # type: ignore[misc]
        yield


def _with_defaults(function: Callable[..., None], defaults: dict[str, Any]) -> Callable[..., None]:
    names = list(signature(function).parameters)

    @wraps(function)
    def changed(*arguments: Any, **named: Any) -> None:
        given = {*names[: len(arguments)], *named}
        function(*arguments, **{name: value for name, value in defaults.items() if name not in given}, **named)

    return changed


@pytest.fixture
def default_sigint() -> Iterator[None]:
    """Python's own handler of SIGINT, which is missing where SIGINT is ignored: under nohup, in a script's jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the scenes' captions."""
    return train_tokenizer(islice(SceneExamples(32, 0).captions(), 1000))


@pytest.fixture(scope="session")
def tiny_pipe(tokenizer: PreTrainedTokenizerFast, make_unet: Callable[..., CrossAttentionUNet]) -> TextToImagePipeline:
    """An untrained pipeline whose pictures depend on the prompt and the noise. Shared: do not change it."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        text_encoder = _awake(Transformer(len(tokenizer), width=32, heads=2, encoder_layers=1))
    pipe = TextToImagePipeline(tokenizer, text_encoder, make_unet(), FlowMatchEulerDiscreteScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def tiny_bilingual_pipe(tiny_pipe: TextToImagePipeline) -> TextToImagePipeline:
    """The same pipeline with an untrained text decoder. Shared: do not change it."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        text_encoder = _awake(
            Transformer(len(tiny_pipe.tokenizer), width=32, heads=2, encoder_layers=1, decoder_layers=2)
        )
    return TextToImagePipeline(tiny_pipe.tokenizer, text_encoder, tiny_pipe.unet, tiny_pipe.scheduler)


@pytest.fixture
def make_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function of (name, captions, rows) -> a folder with a small picture for each caption, and their metadata."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()

    def make(name: str, captions: Sequence[str], rows: Sequence[dict] | None = None) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for i in range(len(captions)):
            # Each picture has a grey level of its own, so that a test can tell them apart.
            Image.fromarray(np.full((32, 32, 3), 8 * i, np.uint8)).save(folder / f"{i}.png")
        rows = [{"file_name": f"{i}.png", "text": text} for i, text in enumerate(captions)] if rows is None else rows
        (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        return folder

    return make


@pytest.fixture
def stop_in_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function of n that makes a signal stop the training in its n-th step from here."""
    forward_backward, steps = pipelines.training.train.forward_backward, count(1)

    def arrange(wanted: int) -> None:
        def stopping(*arguments: object) -> Losses:
            if next(steps) == wanted:
                os.kill(os.getpid(), signal.SIGTERM)
            return forward_backward(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(pipelines.training.train, "forward_backward", stopping)

    return arrange
