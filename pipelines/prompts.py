"""Pictures of a whole file of prompts, by one process or several, in a folder that says what each is.

A run can be stopped at any moment: the same call goes on where it was.
"""

import hashlib
import json
import math
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

from pipelines.runs.processes import this_process
from pipelines.runs.rows import append_row, read_rows
from pipelines.runs.signals import StoppedError, StopSignals
from pipelines.sources.read import DataError
from pipelines.text_to_image import TextToImagePipeline, check_guided

RESULTS, PLAN, PICTURES = "results.jsonl", "plan.json", "pictures"

BATCH = 16
"""Pictures drawn at a time, where so many have the same settings."""

LONGEST = 10_000
"""Characters. A longer prompt is refused before a tokenizer has to read it."""


@dataclass(frozen=True)
class Prompt:
    """One picture that is asked for: `index` counts the prompts of a file from 0, `id` is its owner's name for it."""

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
    """The drawing was asked to stop by a signal; what is drawn is on disk."""

    def __init__(self, received: int, drawn: int, count: int):
        Exception.__init__(self, f"stopped with {drawn:,} of {count:,} pictures drawn: the same command goes on there")
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
    """Draw every prompt of a file and return `results.jsonl` in `out`, a row for each in their order.

    A row has the prompt's `index`, `id`, `prompt`, `negative_prompt`, `seed`, `steps` and `guidance`, the `model`, the
    `file` in `out` and the `sha256` of what that holds. Prompts of the same settings are drawn in batches. Several
    processes, as `accelerate launch` starts them, share the batches.

    Args:
        seed, steps, guidance: for lines that do not say theirs, see `read_prompt_file`; by default the model's own.
        model: what the rows call the model; the name it was loaded by if none is given.

    SIGINT or SIGTERM let it finish the batch; a second one ends it at once.

    Raises:
        DataError: lines that cannot be used (all of them listed), or `out` holds something else.
        StoppedDrawingError: one of these signals came.
    """
    process, file, out = this_process(), Path(file), Path(out)
    if process.num_processes > 1:
        pipe.to(process.device)
    steps = pipe.config.num_inference_steps if steps is None else steps
    guidance = pipe.config.guidance_scale if guidance is None else guidance
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
    process.wait_for_everyone()  # before anybody writes more of them

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
    """The prompts of a file, in UTF-8: a .txt with one a line, or a .jsonl of objects.

    An object has `prompt` and, if it wants, `seed`, `steps`, `guidance`, `negative_prompt` and `id`, which names its
    picture's file. What a line does not say is as given here. Empty lines are left out. `guidable`: whether the
    model they are for can be guided away from the empty caption.

    Raises:
        DataError: there is no such file, no prompt in it, or there are lines that cannot be used (all of them listed).
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}: give a .txt with a prompt a line, or a .jsonl")
    if path.suffix not in (".txt", ".jsonl"):
        raise DataError(f"{path} is neither .txt nor .jsonl: the name says how its lines are to be read")
    defaults = {"id": "", "negative_prompt": "", "seed": seed, "steps": steps, "guidance": guidance}
    prompts: list[Prompt] = []
    names: dict[str, int] = {}  # of files, and the line each comes from
    bad: list[str] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.removeprefix(b"\xef\xbb\xbf").strip():
            continue
        try:
            given = _object(line) if path.suffix == ".jsonl" else {"prompt": _text(line).strip()}
            prompt = Prompt(index=len(prompts) + len(bad), **(defaults | given))
            _check(prompt, tokenizer)
            check_guided(guidable, prompt.guidance, [prompt.negative_prompt])
            if (before := names.setdefault(prompt.file.lower(), number)) != number:
                raise ValueError(f"its picture would have the name of line {before}'s: give another id")
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
    try:
        given = json.loads(_text(line))
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(given, dict) or "prompt" not in given:
        raise ValueError('no object with a "prompt"')
    known = {"prompt", "seed", "steps", "guidance", "negative_prompt", "id"}
    if odd := sorted(given.keys() - known):
        raise ValueError(f"{', '.join(odd)[:80]} is not known, only {', '.join(sorted(known))}")
    return given


def _check(prompt: Prompt, tokenizer: PreTrainedTokenizerFast) -> None:
    for name in ("prompt", "negative_prompt"):
        text = getattr(prompt, name)
        if not isinstance(text, str) or (name == "prompt" and not text.strip()):
            raise ValueError(f"the {name} is {'empty' if isinstance(text, str) else 'no text'}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"the {name} has half a character") from None
        if len(text) > LONGEST:
            raise ValueError(f"the {name} has {len(text):,} characters, the limit is {LONGEST:,}")
        if (count := len(tokenizer(text, verbose=False)["input_ids"])) > tokenizer.model_max_length:
            raise ValueError(f"the {name} has {count} tokens, this model reads {tokenizer.model_max_length}")
    for name, least, most in (("seed", 0, 2**64 - 1), ("steps", 1, 1000)):
        value = getattr(prompt, name)
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{name} is a whole number from {least} to {most}, not {str(value)[:40]}")
    guidance = prompt.guidance
    if type(guidance) not in (int, float) or not (math.isfinite(guidance) and 0 <= guidance <= 100):
        raise ValueError(f"guidance is a number from 0 to 100, not {str(guidance)[:40]}")
    if not isinstance(prompt.id, str) or not re.fullmatch(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]{0,99})?", prompt.id):
        raise ValueError(f"id is up to 100 letters, digits, '-', '_' and '.', not {str(prompt.id)[:40]!r}")


def _check_folder(out: Path, plan: dict[str, Any], file: Path) -> None:
    """Raise DataError unless `out` is free, or holds what was drawn by this very plan."""
    if (out / PLAN).is_file():
        there = json.loads((out / PLAN).read_text())
        if changed := [name for name in plan if there.get(name) != plan[name]]:
            what = [str(file) if name == "prompts" else name for name in changed]
            raise DataError(f"{out} was drawn with another {' and '.join(what)}: choose another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty: choose another --out")


def _batches(prompts: Iterable[Prompt]) -> list[list[Prompt]]:
    """Prompts that can be drawn together, together."""
    alike: dict[tuple[int, float], list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        alike[prompt.steps, prompt.guidance].append(prompt)
    return [group[i : i + BATCH] for group in alike.values() for i in range(0, len(group), BATCH)]


def _join(out: Path) -> None:
    """Bring all rows into one file, in order, and leave out what a stop left half written."""
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
