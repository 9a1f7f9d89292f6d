"""Edits of pictures that exist: exact renders of test scenes, edited and judged as in `evaluate --editing`.

    python tests/benchmarks/edit_pictures.py shapes --scenes 24

Prints a Markdown table. Scenes without room for an edit do not count.
"""

import argparse

import numpy as np
import torch
from PIL import Image

from pipelines import TextToImagePipeline
from pipelines.evaluation.edit_tasks import SIDE, make_task, scenes_to_edit
from pipelines.evaluation.editing import judge_edit
from pipelines.evaluation.statistics import share_of
from pipelines.scenes.worlds import WORLDS, render, world_of

KINDS = ("recolour", "reshape", "remove", "move", "add")
NAMES = ("success", "locality", "both")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--scenes", type=int, default=24, help="Scenes of each kind.")
    args = parser.parse_args()
    pipe = TextToImagePipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    data = world_of(pipe.tokenizer)
    print(f"| {args.model} | n | success | locality | both | difference outside |\n|:--|--:|--:|--:|--:|--:|")
    for kind in KINDS:
        if kind == "recolour" and not WORLDS[data].lexicon.colours:
            continue
        numbers = range(args.scenes)
        pictures = [(scene, render(scene, SIDE)[0]) for scene in scenes_to_edit(kind, numbers, data)]
        tasks = [
            (make_task(kind, scene, WORLDS[data].see(picture), number), picture)
            for number, (scene, picture) in zip(numbers, pictures, strict=True)
        ]
        rows = []
        for number, (task, picture) in zip(numbers, tasks, strict=True):
            if task is None:
                continue
            after = pipe(
                task.scene.caption,
                image=Image.fromarray(picture),
                edits=list(task.edits),
                generator=torch.Generator().manual_seed(number),
            ).images[0]
            rows.append(judge_edit(task, picture, np.asarray(after)))
        shares = [share_of([row[name] for row in rows]) for name in NAMES]
        cells = [f"{100 * s['share']:.0f} ({100 * s['low']:.0f}–{100 * s['high']:.0f})" for s in shares]
        outside = np.mean([row["outside"] for row in rows])
        print(f"| {kind} | {len(rows)} | " + " | ".join(cells) + f" | {outside:.3f} |", flush=True)


if __name__ == "__main__":
    main()
