"""How many of the facts that prompts state do pictures show? Agreement in atoms, as GenEval 2 (arXiv 2512.16853).

An atom is a fact that a prompt states in words: a thing, a colour, a size, a number, a relation or place, the ground
(`judge.Verdict.atoms`). The more atoms, the harder the prompt: figures are given by their number.
"""

from collections.abc import Sequence
from typing import Any

from pipelines.evaluation.statistics import share_of
from pipelines.scenes.judge import Verdict

MOST = 8
"""Prompts with this many atoms or more are counted together."""


COLUMNS = ("seen: atoms", "all right", "held-out atoms", "all right")


def count_atoms(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Right atoms, and pictures with all atoms right: of all prompts, by number of atoms, and atoms by fact.

    Returns:
        {"atoms": entry, "all": entry, "by_number": {"1": {"atoms": entry, "all": entry}, …}, "by_fact": {fact: entry}},
        entries as in `agreement.evaluate`. The intervals treat the atoms of a picture as independent.
    """
    by_number: dict[int, list[Verdict]] = {}
    for verdict in verdicts:
        by_number.setdefault(min(len(verdict.atoms), MOST), []).append(verdict)
    facts = dict.fromkeys(atom.fact for verdict in verdicts for atom in verdict.atoms)
    atoms = [atom for verdict in verdicts for atom in verdict.atoms]
    return {
        **_both(verdicts),
        "by_number": {str(number): _both(by_number[number]) for number in sorted(by_number)},
        "by_fact": {fact: share_of([atom.ok for atom in atoms if atom.fact == fact]) for fact in facts},
    }


def _both(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    return {
        "atoms": share_of([atom.ok for verdict in verdicts for atom in verdict.atoms]),
        "all": share_of([all(atom.ok for atom in verdict.atoms) for verdict in verdicts]),
    }


def atoms_table(report: dict[str, Any]) -> str:
    """The atoms in the report of `agreement.evaluate` as a Markdown table of percentages."""
    splits = [report[split]["model"]["atoms"] for split in ("seen", "held_out")]
    numbers = dict.fromkeys(number for counted in splits for number in counted["by_number"])
    rows: list[tuple[str, list[dict[str, Any]]]] = [("all prompts", splits)]
    for number in sorted(numbers, key=int):
        label = f"{MOST} or more atoms" if int(number) == MOST else f"{number} atom{'s' * (number != '1')}"
        rows.append((label, [counted["by_number"].get(number, {}) for counted in splits]))
    for fact in dict.fromkeys(fact for counted in splits for fact in counted["by_fact"]):
        rows.append((f"· {fact}", [{"atoms": counted["by_fact"].get(fact)} for counted in splits]))
    lines = [
        "Atoms are the facts that a prompt states; % of atoms right, and of pictures with all of them right.",
        "",
        f"| {'':18} | {'n':>4} | " + " | ".join(f"{name:>14}" for name in COLUMNS) + " |",
        f"|:{'-' * 19}|{'-' * 5}:|{'-' * 15}:|{'-' * 15}:|{'-' * 15}:|{'-' * 15}:|",
    ]
    for label, counted in rows:
        entries = [split.get(name) for split in counted for name in ("atoms", "all")]
        n = next((entry["n"] for entry in (entries[1], entries[0]) if entry), 0)
        lines.append(f"| {label:18} | {n:4} | " + " | ".join(f"{_cell(entry):>14}" for entry in entries) + " |")
    return "\n".join(lines)


def _cell(entry: dict[str, float] | None) -> str:
    return "" if entry is None else f"{100 * entry['share']:.1f} ({100 * entry['low']:.0f}–{100 * entry['high']:.0f})"
