"""Drawing a file of prompts into a folder, by one process or several, with a row for each picture.

A run can be stopped at any moment; the same call resumes it.
"""

import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from pipelines.checks import (
    check_guidance,
    check_number,
    check_prompt,
    check_seed,
    check_steps,
    check_text,
    check_tokens,
)
from pipelines.runs.processes import this_process
from pipelines.runs.rows import append_row, read_rows
from pipelines.runs.signals import StoppedError, StopSignals
from pipelines.sources.findings import DataError
from pipelines.text_to_image import TextToImagePipeline
from unet_xattn.words import shown

RESULTS, PLAN, PICTURES = "results.jsonl", "plan.json", "pictures"

BATCH = 16
"""The most pictures drawn at a time; those of a batch share their settings."""


@dataclass(frozen=True)
class Prompt:
    """One picture to draw. `index` counts the prompts of a file from 0; `id` is an optional name for the picture."""

    index: int
    id: str
    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance: float

    @property
    def file(self) -> str:
        return f"{PICTURES}/{self.id or f'{self.index:06d}'}.png"


class StoppedDrawingError(StoppedError):
    """A signal stopped the drawing; the pictures drawn so far are on disk."""

    def __init__(self, received: int, drawn: int, count: int):
        Exception.__init__(self, f"stopped with {drawn:,} of {count:,} pictures drawn: the same command draws the rest")
        self.received = received


def draw_prompts(
    pipe: TextToImagePipeline,
    file: str | Path,
    out: str | Path,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    model: str = "",
) -> Path:
    """Draw every prompt of a file and return the path of `results.jsonl` in `out`, which has a row for each in order.

    A row has the prompt's `index`, `id`, `prompt`, `negative_prompt`, `seed`, `steps` and `guidance`, the `model`, the
    `file` in `out` and the `sha256` of its content. Prompts with the same settings are drawn in batches. Several
    processes, as `accelerate launch` starts them, share the batches.

    SIGINT or SIGTERM stops the drawing after the current batch; a second one stops it at once.

    Args:
        seed, steps, guidance: for lines without their own, see `read_prompt_file`; by default the model's own.
        model: the model's name in the rows; by default the name it was loaded by.

    Raises:
        DataError: lines cannot be used (the message lists all of them), or `out` holds something else.
        StoppedDrawingError: one of these signals came.
    """
    process, file, out = this_process(), Path(file), Path(out)
    if process.num_processes > 1:
        pipe.to(process.device)
    steps = pipe.config.num_inference_steps if steps is None else steps
    guidance = pipe.config.guidance_scale if guidance is None else guidance
    check_seed(seed)
    check_steps(steps)
    check_number(guidance, "guidance scale", 0, 100)
    seed, steps, guidance = int(seed), int(steps), float(guidance)  # not numpy's: they are written as JSON
    prompts = read_prompt_file(file, pipe.tokenizer, seed, steps, guidance, pipe.config.guidable)
    model = model or pipe.config.get("_name_or_path") or ""
    plan: dict[str, Any] = {"prompts": hashlib.sha256(file.read_bytes()).hexdigest(), "model": model}
    plan |= {"seed": seed, "steps": steps, "guidance": guidance}
    _check_folder(out, plan, file)
    process.wait_for_everyone()
    if process.is_main_process:
        (out / PICTURES).mkdir(parents=True, exist_ok=True)
        (out / PLAN).write_text(json.dumps(plan, indent=1) + "\n")
        _join(out)
    process.wait_for_everyone()
    done = {row["index"] for row in read_rows(out / RESULTS) if _is_drawn(out, row)}
    process.wait_for_everyone()  # before any process adds rows

    batches = _batches(prompt for prompt in prompts if prompt.index not in done)
    mine = batches[process.process_index :: process.num_processes]
    rows = out / (RESULTS if process.is_main_process else f"part-{process.process_index}-{RESULTS}")
    drawn, total = 0, sum(map(len, mine))
    progress = tqdm(total=total, unit="picture", disable=not process.is_main_process, file=sys.stderr)
    with StopSignals() as stop, progress:
        for batch in mine:
            if stop.received is not None:
                raise StoppedDrawingError(stop.received, drawn, total)
            images = pipe(
                [prompt.prompt for prompt in batch],
                negative_prompt=[prompt.negative_prompt for prompt in batch],
                num_inference_steps=batch[0].steps,
                guidance_scale=batch[0].guidance,
                generator=[torch.Generator().manual_seed(prompt.seed) for prompt in batch],
            ).images
            for prompt, image in zip(batch, images, strict=True):
                unfinished = out / f"{prompt.file}.new"
                image.save(unfinished, "PNG")
                made = {"file": prompt.file, "model": model, "sha256": _sha256(unfinished)}
                unfinished.replace(out / prompt.file)
                append_row(rows, asdict(prompt) | made)
            drawn += len(batch)
            progress.update(len(batch))
    process.wait_for_everyone()
    if process.is_main_process:
        _join(out)
    process.wait_for_everyone()
    return out / RESULTS


def read_prompt_file(
    path: Path,
    tokenizer: PreTrainedTokenizerFast,
    seed: int = 0,
    steps: int = 20,
    guidance: float = 3.0,
    guidable: bool = True,
) -> list[Prompt]:
    """The prompts of a file in UTF-8: a .txt with one prompt per line, or a .jsonl of objects.

    An object has `prompt` and optionally `seed`, `steps`, `guidance`, `negative_prompt` and `id`, the name of its
    picture's file. The arguments are the defaults of a line. Empty lines are skipped. `guidable` says whether the
    model was trained with caption dropout.

    Raises:
        DataError: the file is not found, has no prompt, or has lines that cannot be used (the message lists all).
    """
    if not path.is_file():
        raise DataError(f"file {path} not found: give a .txt with one prompt per line, or a .jsonl")
    if path.suffix not in (".txt", ".jsonl"):
        raise DataError(f"{path} is neither .txt nor .jsonl: its name must end in one of them")
    defaults = {"id": "", "negative_prompt": "", "seed": seed, "steps": steps, "guidance": guidance}
    prompts: list[Prompt] = []
    lines: dict[str, int] = {}  # name of a picture's file -> its line
    bad: list[str] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.removeprefix(b"\xef\xbb\xbf").strip():
            continue
        try:
            given = _object(line) if path.suffix == ".jsonl" else {"prompt": _text(line).strip()}
            prompt = Prompt(index=len(prompts) + len(bad), **(defaults | given))
            _check(prompt, tokenizer, guidable)
            if (first := lines.setdefault(prompt.file.lower(), number)) != number:
                raise ValueError(f"its picture would have the same file name as that of line {first}: give another id")
            prompts.append(prompt)
        except ValueError as error:
            bad.append(f"line {number}: {error}")
    if bad:
        raise DataError(f"{path}: {len(bad)} lines cannot be used: {'; '.join(bad)}")
    if not prompts:
        raise DataError(f"{path} holds no prompts")
    return prompts


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None


def _object(line: bytes) -> dict[str, Any]:
    text = _text(line)
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):  # ValueError too for a number of more than 4,300 digits
        raise ValueError("not JSON") from None
    if not isinstance(given, dict) or "prompt" not in given:
        raise ValueError('not an object with a "prompt"')
    known = {"prompt", "seed", "steps", "guidance", "negative_prompt", "id"}
    if odd := sorted(given.keys() - known):
        raise ValueError(f"unknown field {shown(', '.join(odd), 80)}: use {', '.join(sorted(known))}")
    return given


def _check(prompt: Prompt, tokenizer: PreTrainedTokenizerFast, guidable: bool) -> None:
    check_prompt(prompt.prompt)
    check_text(prompt.negative_prompt, "negative prompt")
    for text, name in ((prompt.prompt, "prompt"), (prompt.negative_prompt, "negative prompt")):
        check_tokens(tokenizer(text, verbose=False)["input_ids"], tokenizer, name)
    check_seed(prompt.seed)
    check_steps(prompt.steps)
    check_guidance(prompt.guidance, [prompt.negative_prompt], guidable)
    if not isinstance(prompt.id, str) or not re.fullmatch(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]{0,99})?", prompt.id):
        raise ValueError(f"the id is up to 100 letters, digits, '-', '_' and '.', not {shown(prompt.id)!r}")


def _check_folder(out: Path, plan: dict[str, Any], file: Path) -> None:
    """Raise DataError unless `out` is empty, or holds pictures drawn by the same plan."""
    if (out / PLAN).is_file():
        earlier = json.loads((out / PLAN).read_text())
        if changed := [str(file) if name == "prompts" else name for name in plan if earlier.get(name) != plan[name]]:
            raise DataError(f"{out} was drawn with another {' and '.join(changed)}: choose another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty: choose another --out")


def _batches(prompts: Iterable[Prompt]) -> list[list[Prompt]]:
    """Batches of prompts with the same settings."""
    alike: dict[tuple[int, float], list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        alike[prompt.steps, prompt.guidance].append(prompt)
    return [group[i : i + BATCH] for group in alike.values() for i in range(0, len(group), BATCH)]


def _join(out: Path) -> None:
    """Merge the rows of all processes into one file, in order, without any row that a stop left incomplete."""
    parts = sorted(out.glob(f"part-*-{RESULTS}"))
    rows = {row["index"]: row for part in [out / RESULTS, *parts] for row in read_rows(part)}
    new = out / f"{RESULTS}.new"
    new.write_text("".join(json.dumps(rows[index]) + "\n" for index in sorted(rows)))
    new.replace(out / RESULTS)
    for part in parts:
        part.unlink()


def _is_drawn(out: Path, row: dict[str, Any]) -> bool:
    file = out / row["file"]
    return file.is_file() and _sha256(file) == row["sha256"]


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
