"""Going on with a run: from which checkpoint, with which settings, and whether all else is as it was."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from pipelines.runs.checkpoint import find_checkpoint, load_state
from pipelines.runs.folder import CHECKPOINTS

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Resumed(Generic[Settings]):
    """Where a run goes on: the checkpoint, its state, the settings from here on, and what a person should be told."""

    checkpoint: Path
    state: dict
    config: Settings
    said: list[str]


def resume_run(
    kind: type[Settings], out: Path, changes: Mapping[str, Any] | None = None, fixed: tuple[str, ...] = ()
) -> Resumed[Settings]:
    """The newest whole checkpoint of the run in `out`, and its settings, of the dataclass `kind`.

    Args:
        changes: settings the run shall have from here on.
        fixed: those it keeps to its end.

    Raises:
        ValueError: there is nothing whole to resume, the run was begun by a version that had other settings, a fixed
            one would change, or the run is beyond its new end.
    """
    checkpoint, said = find_checkpoint(out / CHECKPOINTS)
    state = load_state(checkpoint)
    begun = replace(settings_of(kind, state, out), out=str(out))  # type: ignore[type-var]
    changed = {name: new for name, new in (changes or {}).items() if getattr(begun, name) != new}
    if bound := [f"{_words(name)} ({getattr(begun, name)})" for name in changed if name in fixed]:
        raise ValueError(
            f"a run keeps its {', '.join(bound)} to the end: leave that out, or begin anew in another --out"
        )
    if changed.get("steps", state["step"]) < state["step"]:
        raise ValueError(f"the run has taken {state['step']:,} steps already: it cannot end after {changed['steps']:,}")
    for name, new in changed.items():
        said.append(f"from step {state['step']:,} on: {_words(name)} {new} instead of {getattr(begun, name)}")
        if name == "steps":
            said[-1] += ", and the learning rate falls towards the new end"
    return Resumed(checkpoint, state, replace(begun, **changed), said)  # type: ignore[type-var]


def settings_of(kind: type[Settings], state: dict, folder: Path) -> Settings:
    """The settings a run was begun with, of the dataclass `kind`.

    Raises:
        ValueError: the run was begun by a version that had other settings.
    """
    there, known = set(state["config"]), {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if odd := sorted(there ^ known):
        raise ValueError(
            f"the run in {folder} was begun by another version, which differs in {', '.join(odd)}: "
            "resume it with that one, or begin anew in another --out"
        )
    return kind(**state["config"])


def check_unchanged(state: dict, now: Mapping[str, Any], allowed: bool) -> list[str]:
    """What is not as it was when `state` was saved, though no option says so: a line each.

    Raises:
        ValueError: something is not, and it is not `allowed`.
    """
    different = [f"{_words(name)} {new} instead of {state[name]}" for name, new in now.items() if state[name] != new]
    if different and not allowed:
        raise ValueError(
            f"the run was trained with something else: it would go on with {' and '.join(different)}. "
            "Put that back, or add --allow-changes to go on all the same"
        )
    return [f"from step {state['step']:,} on: {line}" for line in different]


def _words(name: str) -> str:
    return name.replace("_", " ")
