"""Shapes: B batch, T tokens, h×w pixels."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines import TextToImagePipeline
from pipelines.dataset import Batch, Collator, SceneExamples
from pipelines.distill import SUBSTEPS, straightened
from pipelines.objective import TextToImageModel
from pipelines.text_to_image import read_prompts
from pipelines.train import TrainConfig, train
from unet_xattn import flow


@pytest.fixture
def teacher(tiny_pipe: TextToImagePipeline) -> TextToImageModel:
    return TextToImageModel(tiny_pipe.text_encoder, tiny_pipe.unet)


@pytest.fixture
def batch(tiny_pipe: TextToImagePipeline) -> Batch:
    examples = SceneExamples(32, 0)
    return Collator(tiny_pipe.tokenizer, 0, 0.1, 8)([(i, examples.example(i)) for i in range(8)])


def test_a_straightened_line_starts_at_the_noisy_picture_of_its_windows_beginning(
    teacher: TextToImageModel, batch: Batch
) -> None:
    found = straightened(batch, teacher, 4)
    assert set((found.times * 4).tolist()) <= {1, 2, 3, 4}
    assert ((found.times >= batch.times) & (found.times - batch.times < 1 / 4)).all()
    start = flow.interpolate(batch.pictures, batch.noise, found.times)
    assert torch.allclose(flow.interpolate(found.pictures, found.noise, found.times), start, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_straightened_line_ends_where_the_teachers_own_sampling_comes_by(
    tiny_pipe: TextToImagePipeline, teacher: TextToImageModel, batch: Batch, steps: int
) -> None:
    prompts = ["a red circle", "a blue square and a green star"]
    ids, token_mask = read_prompts(tiny_pipe.tokenizer, prompts)
    noise, times = batch.noise[:2], torch.ones(2)  # pure noise: where sampling starts
    found = straightened(
        replace(batch, ids=ids, token_mask=token_mask, noise=noise, pictures=noise, times=times), teacher, steps
    )
    passed: list[torch.Tensor] = []

    def note(pipe: object, step: int, time: object, tensors: dict) -> dict:
        passed.append(tensors["latents"])
        return {}

    tiny_pipe(prompts, None, None, steps * SUBSTEPS, 1.0, latents=noise, callback_on_step_end=note)
    end = flow.interpolate(found.pictures, found.noise, times - 1 / steps)
    assert torch.allclose(end, passed[SUBSTEPS - 1], atol=1e-3)


def test_a_straightened_batch_asks_the_same_of_the_words(teacher: TextToImageModel, batch: Batch) -> None:
    found = straightened(batch, teacher, 4)
    for name in ("ids", "token_mask", "masks", "target_ids", "target_mask"):
        assert getattr(found, name) is getattr(batch, name)


def test_a_run_learns_from_its_teacher_alone(tiny_pipe: TextToImagePipeline, tmp_path: Path) -> None:
    tiny_pipe.save_pretrained(tmp_path / "teacher")
    out = train(
        TrainConfig(
            distill=str(tmp_path / "teacher"),
            out=str(tmp_path / "run"),
            few_steps=2,
            steps=1,
            batch_size=2,
            size=32,
            warmup=1,
            learning_rate=1e-9,
        )
    )
    student = TextToImagePipeline.from_pretrained(out)
    assert (student.config.num_inference_steps, student.config.guidance_scale) == (2, 1.0)
    assert not student.scheduler.config.stochastic_sampling  # it goes where the teacher's paths lead
    for name, weight in student.unet.state_dict().items():
        assert torch.allclose(weight, tiny_pipe.unet.state_dict()[name], atol=1e-6), name
    with pytest.raises(ValueError, match="leave out --from"):
        TrainConfig(distill="shapes", begin_from="shapes")
