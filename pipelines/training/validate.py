"""Validation of a run on the way: comparable losses, and pictures of the same prompts every time.

Shapes: B batch, T tokens, h×w pixels.
"""

from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipelines.components import can_translate, to_tensor
from pipelines.data.batches import Batch, Collator
from pipelines.data.stream import Example, seed_of
from pipelines.scenes.judge import judge
from pipelines.text_to_image import TextToImagePipeline
from pipelines.tracing.capture import trace
from pipelines.tracing.overlay import word_sheet
from pipelines.training.frozen import Frozen
from pipelines.training.objective import TextToImageModel, text_loss
from unet_xattn import flow, grounding

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Noise levels of the validation loss."""

SHEET_COLUMNS = 8
"""The most sample pictures in a row of a sheet."""


@torch.no_grad()
def validate(
    model: TextToImageModel,
    collator: Collator,
    examples: list[Example],
    device: torch.device,
    frozen: Frozen | None = None,
) -> dict[str, float]:
    """Losses on fixed pictures at fixed noise levels and seeds, with their own captions and with each other's.

    If the loss is no higher with shuffled captions, the model does not read the text. Pictures of one shape are batched
    together, whatever their order. `frozen` has the frozen encoders of the run, if any.

    Returns:
        `loss LEVEL` and `loss LEVEL shuffled`. If the data has masks, measures of the words' maps at noise 0.3, means
        over all layers: `pointing`, the share of maps that peak in their mask, and `iou`, of map and mask where each is
        at least half its peak. If the model translates, `text loss`, as in training.
    """
    model.eval()
    captions = [e.caption for e in examples]
    regions = [e.regions for e in examples]
    order = range(len(examples))
    shuffled = [(i + 1) % len(examples) for i in order]
    by_shape = sorted(order, key=lambda i: examples[i].picture.shape)
    alike = [list(places) for _, places in groupby(by_shape, lambda i: examples[i].picture.shape)]
    chunks = [places[i : i + 64] for places in alike for i in range(0, len(places), 64)]
    report = {}
    for level in LEVELS:
        for name, places in (("", order), (" shuffled", shuffled)):
            losses, hits, overlaps, text_losses = [], [], [], []
            for chunk in chunks:
                pictures = to_tensor(np.stack([examples[i].picture for i in chunk]))
                rows = [places[i] for i in chunk]
                read = collator.read([captions[i] for i in rows], [regions[i] for i in chunk], pictures.shape[2:])
                target = collator.write([examples[i].translation for i in rows])
                noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(seed_of(chunk[0])))
                times = torch.full((len(pictures),), level)
                batch, memory = Batch(pictures, noise, times, *read, *target).to(device), None
                if frozen is not None:
                    batch, memory = frozen(batch)
                memory = model.memory(batch) if memory is None else memory
                maps: list[Tensor] = []
                prediction = model.unet(
                    flow.interpolate(batch.pictures, batch.noise, batch.times),
                    batch.times * flow.TRAIN_TIMESTEPS,
                    memory,
                    batch.token_mask,
                    record=lambda layer, weights, grid, maps=maps, shape=batch.masks.shape[2:]: maps.append(
                        _upsampled(weights, grid, shape)
                    ),
                ).sample
                losses.append(flow.loss(prediction, flow.velocity(batch.pictures, batch.noise), batch.times))
                if level == 0.3 and not name:
                    heat, visible = torch.stack(maps).mean(dim=0), batch.masks.flatten(2).amax(dim=-1) >= 0.5
                    hits.append(grounding.points_inside(heat, batch.masks)[visible])
                    overlaps.append(grounding.iou(heat, batch.masks)[visible])
                writer = model.text_encoder
                if level == LEVELS[0] and not name and writer is not None and can_translate(writer):
                    text_losses.append(text_loss(writer, memory, batch.token_mask, batch.target_ids, batch.target_mask))
            report[f"loss {level}{name}"] = torch.cat(losses).mean().item()
            if hits and len(torch.cat(hits)):
                report["pointing"] = torch.cat(hits).float().mean().item()
                report["iou"] = torch.cat(overlaps).mean().item()
            if text_losses:
                report["text loss"] = torch.stack(text_losses).mean().item()
    model.train()
    return report


def _upsampled(weights: Tensor, grid: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    maps = weights.mean(dim=1).transpose(1, 2).unflatten(-1, grid)  # (B, T, h, w)
    return F.interpolate(maps, shape, mode="bilinear")


def draw_samples(pipe: TextToImagePipeline, examples: Sequence[Example], folder: Path, step: int) -> dict[str, float]:
    """Draw pictures of the examples' captions, from the same noise every time, and judge them if they are scenes.

    Writes `step-NNNNNN.png`, a sheet of the pictures, and `words-NNNNNN.png`, the maps of the first caption's words
    (`overlay.word_sheet`). Without examples it does nothing.

    Returns:
        If every caption describes a scene: `agreement`, the share of pictures that show everything in their caption by
        the judge's rules, and `judged`, the number of pictures. Otherwise nothing.
    """
    if not examples:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    trained = [network for network in (pipe.unet, pipe.text_encoder) if network.training]  # frozen ones stay so
    for network in trained:
        network.eval()
    seeds = [torch.Generator().manual_seed(i) for i in range(len(examples))]
    images = pipe([e.caption for e in examples], generator=seeds, output_type="np").images
    with trace(pipe) as attention:
        pipe(examples[0].caption, generator=torch.Generator().manual_seed(0))
    for network in trained:
        network.train()
    pictures = (images * 255).round().astype(np.uint8)  # (B, h, w, 3)
    sheet_of(pictures).save(folder / f"step-{step:06d}.png")
    with suppress(ValueError):  # no font with Chinese was found: training goes on
        word_sheet(attention, tile=112).save(folder / f"words-{step:06d}.png")
    described = [e.scene for e in examples if e.scene is not None]
    if len(described) < len(examples):
        return {}
    right = [judge(scene, picture).all_correct for scene, picture in zip(described, pictures, strict=True)]
    return {"agreement": sum(right) / len(right), "judged": len(right)}


def sheet_of(pictures: np.ndarray) -> Image.Image:
    """Pictures (B, h, w, 3) uint8 side by side, in rows of `SHEET_COLUMNS`; the rest of the last row is black."""
    columns = min(SHEET_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    black = np.zeros((rows * columns - len(pictures), *pictures.shape[1:]), np.uint8)
    grid = np.concatenate([pictures, black]).reshape(rows, columns, *pictures.shape[1:])
    return Image.fromarray(np.concatenate(np.concatenate(grid, axis=1), axis=1))
