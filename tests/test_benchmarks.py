"""The benchmarks in tests/benchmarks patch training, so they must stay compatible with it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipelines import TextToImagePipeline
from pipelines.scenes.judge import judge
from pipelines.scenes.scene import parse_caption
from pipelines.scenes.worlds import WORLDS, world_of
from pipelines.tokenizer import train_tokenizer
from unet_xattn import Transformer
from unet_xattn.words import unknown_words

BENCHMARKS = Path(__file__).parent / "benchmarks"
sys.path.append(str(BENCHMARKS))
import gpu  # noqa: E402
from recipe_variants import VARIANTS  # noqa: E402
from told_apart import share, told_apart  # noqa: E402
from train_everyday import COMPONENTS, enlarged, lessons, looks, teach, with_vocabulary  # noqa: E402

BASE = "as it is"
QUICK = "masks below noise 0.5"


def _run(variant: str, draw: int, folder: Path) -> dict:
    answer = folder / "answer.json"
    command = [sys.executable, str(BENCHMARKS / "recipe.py"), "--one", variant, "--seeds", "0", "--steps", "2"]
    subprocess.run([*command, "--draw", str(draw), "--run", str(folder / "run"), "--out", str(answer)], check=True)
    return json.loads(answer.read_text())


def _weights(variant: str, folder: Path) -> bytes:
    _run(variant, 0, folder)
    return (folder / "run/unet/diffusion_pytorch_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return _weights(BASE, tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("variant", [pytest.param(v, marks=[] if v == QUICK else pytest.mark.long) for v in VARIANTS])
def test_each_variant_of_the_recipe_changes_training_and_the_base_does_not(
    variant: str, unchanged: bytes, tmp_path: Path
) -> None:
    assert (_weights(variant, tmp_path) == unchanged) == (variant == BASE)


@pytest.mark.long
def test_the_unchanged_recipe_reports_other_ways_of_drawing(tmp_path: Path) -> None:
    found = _run(BASE, 2, tmp_path)
    for drawn in (found, *found["drawn otherwise"].values()):
        assert {"all_correct", "position", "counting", "three"} <= set(drawn["seen"]) & set(drawn["held_out"])
    assert found["ceiling"] == {"seen": 1.0, "held_out": 1.0}
    assert {"autoguided by 2", "not averaged", "EMA ×2"} <= set(found["drawn otherwise"])


@pytest.mark.parametrize(("right", "wrong", "expected"), [(0.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.5, 0.5, 0.0)])
def test_captions_are_told_apart_by_the_smaller_error(right: float, wrong: float, expected: float) -> None:
    def errors(pictures: Tensor, noise: Tensor, level: float, captions: list[str]) -> Tensor:
        pixels = ((pictures.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        true = [judge(parse_caption(c), picture).all_correct for c, picture in zip(captions, pixels, strict=True)]
        return torch.tensor([right if t else wrong for t in true]) + 1

    found = told_apart(errors, 64, 4)
    assert {share(found, swap) for swap in ("colours", "relation")} == {expected}


def test_the_parts_for_a_gpu_know_a_prompt_for_every_bundled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in gpu.bundled_models():
        tokenizer = TextToImagePipeline.from_pretrained(name).tokenizer
        assert not unknown_words(gpu.PROMPTS[world_of(tokenizer)], tokenizer)
    monkeypatch.setattr(gpu, "bundled_models", lambda: ["shapes-fast"])
    report = gpu.draw()["shapes-fast"]
    assert report["largest difference of a map"] == 0 and report["translation"]


def test_things_that_look_alike_have_looks_that_are_near() -> None:
    known = looks()
    assert torch.stack(list(known.values())).square().sum(dim=1).mean() == pytest.approx(COMPONENTS, rel=1e-3)
    distance = {
        other: (known["circle", "red"] - known[other]).norm() for other in [("circle", "orange"), ("cross", "blue")]
    }
    assert distance["circle", "orange"] < distance["cross", "blue"]


def test_a_text_encoder_for_another_vocabulary_reads_words_of_both_as_before() -> None:
    pipe = TextToImagePipeline.from_pretrained("emoji")
    tokenizer = train_tokenizer(["a cat and a skateboard", "a dog"])
    encoder = with_vocabulary(pipe, tokenizer)
    with torch.no_grad():
        old, new = (
            reader.encode(torch.tensor([words("a cat and a dog")["input_ids"]]))
            for reader, words in ((pipe.text_encoder, pipe.tokenizer), (encoder, tokenizer))
        )
    torch.testing.assert_close(new, old)
    assert len(tokenizer) == encoder.config.vocab_size != len(pipe.tokenizer)


def test_a_taught_text_encoder_knows_looks_in_captions_that_it_has_not_read() -> None:
    torch.manual_seed(0)
    captions = [WORLDS["everyday"].scene(0, i, language=lang).caption for i in range(2000) for lang in ("en", "zh")]
    tokenizer = train_tokenizer(captions)
    encoder = Transformer(len(tokenizer), width=128, encoder_layers=1, decoder_layers=0)
    lesson = next(lessons(tokenizer, "everyday", 9, looks(), 64))
    read_off = teach(encoder, tokenizer, 80)
    with torch.no_grad():
        seen = read_off(encoder.encode(lesson.ids, lesson.mask)[lesson.row, lesson.token])
    assert (seen - lesson.looks).square().mean() < 0.9 * lesson.looks.square().mean()


def test_an_enlarged_unet_draws_enlarged_what_it_drew() -> None:
    torch.manual_seed(0)
    unet = TextToImagePipeline.from_pretrained("emoji").unet
    small, memory = torch.randn(1, 3, 64, 64), torch.randn(1, 5, 128)
    with torch.no_grad():
        velocity = unet(small, 500.0, memory).sample
        large = enlarged(unet)(small.repeat_interleave(2, 2).repeat_interleave(2, 3), 500.0, memory).sample
    torch.testing.assert_close(large, velocity.repeat_interleave(2, 2).repeat_interleave(2, 3), atol=1e-4, rtol=1e-4)
