"""Resuming a run: its checkpoint, its settings, and whether its data and processes are the same."""

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from pipelines.runs.checkpoint import find_checkpoint, load_state
from pipelines.runs.folder import CHECKPOINTS

Settings = TypeVar("Settings")

PHRASES = {
    "first_batch": "a first batch that is drawn or decoded otherwise from the same data,",
    "text_encoder": "a text encoder of the fingerprint",
    "vae": "a VAE of the fingerprint",
}
"""How messages name what has a fingerprint."""


@dataclass(frozen=True)
class Resumed(Generic[Settings]):
    """The checkpoint that a run resumes from, its state, and the settings from there on.

    changed: names of the settings that are not those of the checkpoint.
    messages: lines to print.
    """

    checkpoint: Path
    state: dict
    config: Settings
    changed: frozenset[str]
    messages: list[str]


def resume_run(
    kind: type[Settings], out: Path, changes: Mapping[str, Any] | None = None, fixed: tuple[str, ...] = ()
) -> Resumed[Settings]:
    """The newest intact checkpoint of the run in `out`, and the run's settings, of the dataclass `kind`.

    Args:
        changes: new values of settings.
        fixed: settings that cannot change.

    Raises:
        ValueError: there is no intact checkpoint, the run was started by a version with other settings, a fixed setting
            would change, or the run is beyond its new end.
    """
    checkpoint, messages = find_checkpoint(out / CHECKPOINTS)
    state = load_state(checkpoint)
    started = replace(settings_of(kind, state, out), out=str(out))  # type: ignore[type-var]
    changed = {name: new for name, new in (changes or {}).items() if getattr(started, name) != new}
    flags = {setting.name: flag_of(setting) for setting in fields(kind)}  # type: ignore[arg-type]
    if refused := [f"{flags[name]} ({getattr(started, name)!r})" for name in changed if name in fixed]:
        raise ValueError(
            f"{' and '.join(refused)} cannot change on resume: leave out that option, or start a run in another --out"
        )
    if changed.get("steps", state["step"]) < state["step"]:
        raise ValueError(f"the run has already taken {state['step']:,} steps: it cannot end after {changed['steps']:,}")
    for name, new in changed.items():
        messages.append(f"from step {state['step']:,} on: {_words(name)} {new} instead of {getattr(started, name)}")
        if name == "steps":
            messages[-1] += ", and the learning rate falls towards the new end"
    config = replace(started, **changed)  # type: ignore[type-var]
    return Resumed(checkpoint, state, config, frozenset(changed), messages)


def settings_of(kind: type[Settings], state: dict, folder: Path) -> Settings:
    """The settings that a run was started with, of the dataclass `kind`.

    Raises:
        ValueError: the run was started by a version with other settings.
    """
    stored, known = set(state["config"]), {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unmatched := sorted(stored ^ known):
        raise ValueError(
            f"the run in {folder} was started by another version, which differs in {', '.join(unmatched)}: "
            "resume it with that version, or start a run in another --out"
        )
    return kind(**state["config"])


def flag_of(setting: Field) -> str:
    """The option of a setting on the command line, or the setting's own name if it has no option."""
    return setting.metadata.get("flag", f"--{setting.name.replace('_', '-')}") if setting.metadata else setting.name


def check_unchanged(state: dict, now: Mapping[str, Any], allowed: bool) -> list[str]:
    """Messages about what no option changes but has changed since `state` was saved: the data, the processes.

    What an older version did not save is not compared.

    Raises:
        ValueError: something has changed, and that is not `allowed`.
    """
    different = [
        f"{PHRASES.get(name, _words(name))} {new} instead of {state[name]}"
        for name, new in now.items()
        if state.get(name, new) != new
    ]
    if different and not allowed:
        raise ValueError(
            f"the run would resume with {' and '.join(different)}: "
            "undo that change, or add --allow-changes to resume anyway"
        )
    return [f"from step {state['step']:,} on: {line}" for line in different]


def _words(name: str) -> str:
    return name.replace("_", " ")
