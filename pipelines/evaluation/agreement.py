"""How often do a pipeline's pictures show what their prompts describe? Agreement by GenEval's tags and in atoms.

The prompts are captions of fixed test scenes that no training sees, equally many of every kind; the rules of `judge`
check the pictures. Two figures of the judge itself on the same scenes are reported too: its ceiling, on exact renders,
and its floor, on renders with the captions exchanged.

Shapes: B pictures in a batch, h×w pixels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from pipelines.evaluation.atoms import atoms_table, count_atoms
from pipelines.evaluation.statistics import share_of
from pipelines.scenes.captions import LANGUAGES, is_chinese
from pipelines.scenes.judge import GENEVAL, Verdict, judge
from pipelines.scenes.scene import Scene
from pipelines.scenes.worlds import WORLDS, render
from pipelines.text_to_text import TranslationPipeline

TEST_SEED = 2_718_281_828
"""The seed of the test scenes: neither training nor validation may use it."""

SPLITS = {"seen": False, "held_out": True}
"""Name of a split -> whether each of its scenes shows a pair that no training scene shows, such as shape and colour."""


def evaluate(
    pipe: Callable[..., Any],
    count_per_kind: int = 50,
    seeds: Sequence[int] = (0, 1),
    num_inference_steps: int = 20,
    guidance_scale: float = 3.0,
    batch_size: int = 50,
    language: str = "en",
    data: str = "shapes",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Draw the test prompts with `pipe`, judge the pictures, and count the correct ones.

    Args:
        pipe: called like diffusers' pipelines; the `.images` it returns are floats (B, h, w, 3) in [0, 1].
        count_per_kind: number of prompts of each kind in each split, 2 or more.
        seeds: each prompt is drawn once per seed; two prompts of a kind never share their noise.
        language: language of the prompts, one of `captions.LANGUAGES`; the scenes are the same in all.
        data: the world of the scenes, one of `worlds.WORLDS`; `worlds.world_of` finds the world of a model.
        progress: called with (pictures done, pictures in all) after each batch.

    Returns:
        {"settings": {...}, "seen": {...}, "held_out": {...}}, ready for JSON. A split holds "model", "ceiling" and
        "floor". Each of them has an entry for every tag of `GENEVAL` (emoji: except those of colours), one for
        "all_correct", and under "kinds" all-correct for each kind of prompt. An entry is {"k", "n", "share", "low",
        "high"}: k correct out of n, and the Wilson interval. The interval treats all n as independent, so with several
        seeds it is a little too narrow. "atoms" counts the facts that prompts state, see `atoms.count_atoms`.

    Raises:
        ValueError: too few prompts or seeds.
    """
    if count_per_kind < 2:
        raise ValueError(
            f"count_per_kind must be 2 or more, because the floor exchanges captions; got {count_per_kind}"
        )
    if not seeds or batch_size < 1:
        raise ValueError(f"needs 1 or more seeds and a batch size of 1 or more; got {len(seeds)} and {batch_size}")
    prompts = len(SPLITS) * len(WORLDS[data].kinds) * count_per_kind
    report: dict[str, Any] = {
        "settings": {
            "test_seed": TEST_SEED,
            "language": language,
            "data": data,
            "count_per_kind": count_per_kind,
            "prompts": prompts,
            "seeds": list(seeds),
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
        }
    }
    done = 0

    def count_done(pictures: int) -> None:
        nonlocal done
        done += pictures
        if progress is not None:
            progress(done, prompts * len(seeds))

    for split, held_out in SPLITS.items():
        scenes = fixed_scenes(count_per_kind, held_out, language, data)
        jobs = [(s, seed * count_per_kind + i % count_per_kind) for seed in seeds for i, s in enumerate(scenes)]
        verdicts, size = draw_and_judge(
            pipe, jobs, batch_size, count_done, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale
        )
        renders = [render(s, size)[0] for s in scenes]
        # The caption of another scene of the same kind: the score of a model that understands only the kind.
        others = np.roll(np.arange(len(scenes)).reshape(-1, count_per_kind), 1, axis=1).ravel()
        report[split] = {
            "model": _count(verdicts),
            "ceiling": _count([judge(s, picture) for s, picture in zip(scenes, renders, strict=True)]),
            "floor": _count([judge(scenes[other], picture) for other, picture in zip(others, renders, strict=True)]),
        }
    return report


def draw_and_judge(
    pipe: Callable[..., Any],
    jobs: Sequence[tuple[Scene, int]],
    batch_size: int,
    progress: Callable[[int], None] | None = None,
    **settings: Any,
) -> tuple[list[Verdict], tuple[int, int]]:
    """Draw the caption of each (scene, seed of the noise) with these settings of `pipe`, and judge the picture.

    `progress` is called with the size of each finished batch. Returns the verdicts, and the pictures' (h, w).
    """
    verdicts: list[Verdict] = []
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        images = pipe(
            [scene.caption for scene, _ in batch],
            generator=[torch.Generator().manual_seed(noise) for _, noise in batch],
            output_type="np",
            **settings,
        ).images
        pictures = (images * 255).round().astype(np.uint8)  # (B, h, w, 3)
        verdicts += [judge(scene, picture) for (scene, _), picture in zip(batch, pictures, strict=True)]
        if progress is not None:
            progress(len(batch))
    return verdicts, pictures.shape[1:3]


def fixed_scenes(count_per_kind: int, held_out: bool, language: str = "en", data: str = "shapes") -> list[Scene]:
    """The scenes of a split, kind by kind; a larger count starts each kind with the same scenes."""
    kinds = WORLDS[data].kinds
    return [
        WORLDS[data].scene(TEST_SEED, index * len(kinds) + offset, kind, held_out, language)
        for offset, kind in enumerate(kinds)
        for index in range(count_per_kind)
    ]


def evaluate_translation(
    pipe: TranslationPipeline, count_per_kind: int = 50, batch_size: int = 50, data: str = "shapes"
) -> dict[str, Any]:
    """Translate the captions of the test scenes and count the translations that keep the meaning (`captions.meaning`).

    Returns:
        {"seen": {"en → zh": entry, "zh → en": entry}, "held_out": {...}}, with entries as in `evaluate`.
    """
    report: dict[str, Any] = {}
    meaning = WORLDS[data].meaning
    for split, held_out in SPLITS.items():
        report[split] = {}
        for source, target in (("en", "zh"), ("zh", "en")):
            texts = [s.caption for s in fixed_scenes(count_per_kind, held_out, source, data)]
            batches = [texts[i : i + batch_size] for i in range(0, len(texts), batch_size)]
            translated = [translation.text for batch in batches for translation in pipe(batch)]
            correct = [
                meaning(text) == meaning(other) and is_chinese(other) == (target == "zh")
                for text, other in zip(texts, translated, strict=True)
            ]
            report[split][f"{source} → {target}"] = share_of(correct)
    return report


def _count(verdicts: list[Verdict]) -> dict[str, Any]:
    measured = set().union(*(v.tags for v in verdicts))
    tags = {tag: share_of([v.tags[tag] for v in verdicts if tag in v.tags]) for tag in GENEVAL if tag in measured}
    kinds = {
        kind: share_of([v.all_correct for v in verdicts if v.kind == kind])
        for kind in dict.fromkeys(v.kind for v in verdicts)
    }
    correct = share_of([v.all_correct for v in verdicts])
    return {**tags, "all_correct": correct, "kinds": kinds, "atoms": count_atoms(verdicts)}


def agreement_table(report: dict[str, Any]) -> str:
    """The report of `evaluate` as two Markdown tables of percentages, at most 100 columns wide.

    `report["pairs"]` may hold the report of `evaluate_pairs` with the same settings.
    """
    settings = report["settings"]
    lines = [
        f"{settings['prompts']} prompts of {settings['data']} in {LANGUAGES[settings['language']]}, "
        f"seeds {', '.join(map(str, settings['seeds']))}, "
        f"{settings['num_inference_steps']} steps, guidance {settings['guidance_scale']:g}; % correct (95 % interval).",
        "Ceiling: the judge on exact renders; floor: on renders with exchanged captions (seen / held-out).",
        "",
        f"| {'':18} | {'n':>4} | {'seen pairs':>15} | {'held-out pairs':>15} | {'ceiling':>13} | {'floor':>13} |",
        f"|:{'-' * 19}|{'-' * 5}:|{'-' * 16}:|{'-' * 16}:|{'-' * 14}:|{'-' * 14}:|",
    ]
    entries = {
        (split, source): _rows(report[split][source], report["pairs"][split][source] if "pairs" in report else {})
        for split in SPLITS
        for source in ("model", "ceiling", "floor")
    }
    if "pairs" in report:
        lines.insert(2, "Pairs: two prompts that differ in one fact, drawn from the same noise, both correct.")
    for name, entry in entries["seen", "model"].items():
        drawn = [_cell(entries[split, "model"].get(name)) for split in SPLITS]
        judged = [
            " / ".join(_percent(entries[split, source].get(name)) for split in SPLITS)
            for source in ("ceiling", "floor")
        ]
        lines.append(
            f"| {name:18} | {entry['n']:4} | {drawn[0]:>15} | {drawn[1]:>15} | {judged[0]:>13} | {judged[1]:>13} |"
        )
    return "\n".join([*lines, "", atoms_table(report)])


def _percent(entry: dict[str, float] | None) -> str:
    """A share in percent; a tag that no prompt of a split has is "–"."""
    return "–" if entry is None else f"{100 * entry['share']:.1f}"


def _cell(entry: dict[str, float] | None) -> str:
    return _percent(entry) + ("" if entry is None else f" ({100 * entry['low']:.0f}–{100 * entry['high']:.0f})")


def _rows(counted: dict[str, Any], pairs: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Name of a line of the table -> its entry; the kinds follow the all-correct that they are parts of."""
    tags = {name.replace("_", " "): entry for name, entry in counted.items() if name not in ("kinds", "atoms")}
    kinds = {f"· {kind}": entry for kind, entry in counted["kinds"].items()}
    return tags | kinds | {f"pairs: {swap}": entry for swap, entry in pairs.items()}
