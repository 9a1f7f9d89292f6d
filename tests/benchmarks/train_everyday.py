"""The training of a model of the everyday things, from `emoji`.

What `emoji` knows of layout, number, size and of its 66 things is kept. A token that both vocabularies have keeps its
vector; a new one starts at random. Then the text encoder alone is taught, in minutes, what each word's thing looks
like. So what the UNet learns of one thing helps it with all that look alike, and it need not find the picture behind
each word's random vector. Results: README.md, "Everyday things"; LOG.md, 2026-11-30.

For 128×128 pixels each value of a patch of `emoji` becomes 2×2 equal ones, so that the new UNet draws what the old one
draws, enlarged.

    python tests/benchmarks/train_everyday.py runs/everyday [--size 64] [--steps N] [--batch-size N] [--resume]
"""

import argparse
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from pipelines import TextToImagePipeline
from pipelines.data.scenes import SceneExamples
from pipelines.scenes.everyday import thing_glyph
from pipelines.scenes.everyday_words import EMOJI_THINGS
from pipelines.scenes.scene import COLOURS
from pipelines.scenes.shapes import SHAPES
from pipelines.scenes.worlds import WORLDS
from pipelines.tokenizer import train_tokenizer
from pipelines.training.config import TrainConfig
from pipelines.training.train import train
from unet_xattn import CrossAttentionUNet, Transformer
from unet_xattn.words import tokens_of

SIDE = 24
"""Side of the glyphs, in pixels, that words are taught."""

COMPONENTS = 96
"""How many principal components of the glyphs: they have nine tenths of their variance."""

LESSONS = 1_500
"""Steps in which the text encoder is taught."""


def enlarged(unet: CrossAttentionUNet) -> CrossAttentionUNet:
    """A UNet of twice the side and twice the patch that sees the mean of 2×2 pixels and draws each value four times."""
    new = CrossAttentionUNet(**{**unet.config, "sample_size": 128, "patch_size": 2 * unet.config.patch_size})
    weights = unet.state_dict()
    pixels, c, p = weights["conv_in.weight"][:, :-2], unet.config.in_channels, unet.config.patch_size
    wide = pixels.unflatten(1, (c, p, p)).repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    weights["conv_in.weight"] = torch.cat([wide.flatten(1, 3), weights["conv_in.weight"][:, -2:]], dim=1)
    for name in ("conv_out.weight", "conv_out.bias"):
        wide = weights[name].unflatten(0, (c, p, p)).repeat_interleave(2, 1).repeat_interleave(2, 2)
        weights[name] = wide.flatten(0, 2)
    new.load_state_dict(weights)
    return new


def with_vocabulary(old: TextToImagePipeline, tokenizer: PreTrainedTokenizerFast) -> Transformer:
    """The text encoder of `old` for another vocabulary; vectors of tokens that only this one has are random."""
    encoder = Transformer(**{**old.text_encoder.config, "vocab_size": len(tokenizer)})
    vectors, known = encoder.state_dict(), old.tokenizer.get_vocab()
    for name, value in old.text_encoder.state_dict().items():
        if value.shape == vectors[name].shape:
            vectors[name] = value
            continue
        for token, row in tokenizer.get_vocab().items():  # the embedding, and whatever else has a row for each token
            if token in known:
                vectors[name][row] = value[known[token]]
    encoder.load_state_dict(vectors)
    print(f"{len(set(known) & set(tokenizer.get_vocab()))} of {len(tokenizer)} tokens were known", flush=True)
    return encoder


def looks() -> dict[tuple[str, str], Tensor]:
    """(Thing, colour) -> the principal components (COMPONENTS,) of its glyph, together of variance COMPONENTS."""
    things = [(name, "") for name in EMOJI_THINGS] + [(shape, colour) for shape in SHAPES for colour in COLOURS]
    pictures = np.zeros((len(things), SIDE, SIDE, 4), np.float32)
    for picture, (thing, colour) in zip(pictures, things, strict=True):
        premultiplied, alpha = thing_glyph(thing, colour, SIDE)
        height, width = alpha.shape
        top, left = (SIDE - height) // 2, (SIDE - width) // 2
        colours = premultiplied / 127.5 - alpha[..., None]
        picture[top : top + height, left : left + width] = np.concatenate([colours, alpha[..., None]], axis=2)
    flat = pictures.reshape(len(things), -1)
    u, s, _ = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    found = torch.from_numpy((u * s)[:, :COMPONENTS])
    return dict(zip(things, found * (COMPONENTS / found.square().sum(dim=1).mean()).sqrt(), strict=True))


class Lesson(NamedTuple):
    """Captions, ids and mask (B, T), and what N of their tokens look like: row, token (N,), looks (N, COMPONENTS)."""

    ids: Tensor
    mask: Tensor
    row: Tensor
    token: Tensor
    looks: Tensor


def lessons(
    tokenizer: PreTrainedTokenizerFast, world: str, seed: int, known: dict[tuple[str, str], Tensor], size: int
) -> Iterator[Lesson]:
    """Endless batches of a world's captions, every other one Chinese. A word of several things has no look."""
    place = 0
    while True:
        places, place = range(place, place + size), place + size
        scenes = [WORLDS[world].scene(seed, i, language=("en", "zh")[i % 2]) for i in places]
        captions = [scene.caption for scene in scenes]
        read = tokenizer(captions, padding=True, truncation=True, return_offsets_mapping=True, return_tensors="pt")
        row, token, seen = [], [], [torch.empty(0, COMPONENTS)]
        for i, (scene, offsets) in enumerate(zip(scenes, read["offset_mapping"].tolist(), strict=True)):
            for word in scene.words:
                things = {(scene.objects[o].shape, scene.objects[o].colour) for o in word.objects}
                if len(things) == 1 and (look := known.get(things.pop())) is not None:
                    for j in tokens_of(word.start, word.end, offsets):
                        row.append(i)
                        token.append(j)
                        seen.append(look[None])
        yield Lesson(
            read["input_ids"], read["attention_mask"].bool(), torch.tensor(row), torch.tensor(token), torch.cat(seen)
        )


def teach(encoder: Transformer, tokenizer: PreTrainedTokenizerFast, steps: int) -> nn.Linear:
    """Train a text encoder so that what a word looks like can be read off its vector by one linear map, the answer.

    What it says of the captions that the UNet was trained with stays, so that the UNet can read it.
    """
    before = deepcopy(encoder).eval().requires_grad_(False)
    read_off = nn.Linear(encoder.config.width, COMPONENTS)
    parameters = [*encoder.parameters(), *read_off.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01)
    known = looks()
    new = lessons(tokenizer, "everyday", 0, known, 64)
    old = [lessons(tokenizer, world, 1, known, 32) for world in ("emoji", "shapes")]
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 50, (steps - step) / steps * 2)
        lesson, review = next(new), next(old[step % 2])
        seen = read_off(encoder.encode(lesson.ids, lesson.mask)[lesson.row, lesson.token])
        wrong = (seen - lesson.looks).square().mean()
        meant = before.encode(review.ids, review.mask)[review.mask]
        forgotten = (encoder.encode(review.ids, review.mask)[review.mask] - meant).square().mean() / meant.var()
        (wrong + forgotten).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            print(
                f"lesson {step + 1}: {wrong:.3f} of the looks' variance unknown, {forgotten:.3f} forgotten", flush=True
            )
    return read_off


def begin(size: int, out: Path) -> None:
    """Save the model that the training begins from."""
    torch.manual_seed(0)
    pipe = TextToImagePipeline.from_pretrained("emoji")
    tokenizer = train_tokenizer(SceneExamples(size, 0, "everyday").captions())
    encoder = with_vocabulary(pipe, tokenizer)
    teach(encoder, tokenizer, LESSONS)
    unet = enlarged(pipe.unet) if size == 128 else pipe.unet
    pipe.register_modules(tokenizer=tokenizer, text_encoder=encoder, unet=unet)
    pipe.save_pretrained(out)


def main() -> None:
    """Make the model to begin from, unless it is there, and train it or resume its training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, choices=(64, 128), default=64, help="side of its pictures in pixels")
    parser.add_argument("--steps", type=int, help="training steps (default 12,000, or those of the resumed run)")
    parser.add_argument("--batch-size", type=int, help="pictures per step (default 32, likewise)")
    parser.add_argument("--resume", action="store_true", help="resume the training")
    arguments = parser.parse_args()
    given = {name: value for name in ("steps", "batch_size") if (value := getattr(arguments, name)) is not None}
    start = arguments.out.with_name(f"{arguments.out.name}-start")
    if not start.exists():
        begin(arguments.size, start)
    settings = {"steps": 12_000, "batch_size": 32} | given
    config = TrainConfig(
        data="everyday",
        out=str(arguments.out),
        begin_from=str(start),
        size=arguments.size,
        learning_rate=3e-3,
        time_shift=1.5 * arguments.size / 64,
        save_minutes=8,
        **settings,
    )
    train(config, resume=arguments.resume, changes=given if arguments.resume else None)


if __name__ == "__main__":
    main()
