"""What is found in the data somebody gave, a line each."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

ERROR, WARNING, NOTE = "error", "warning", "note"
"""The row cannot be used; it can, but look at it; nothing to do: said is how it is handled."""

SHOWN = 20
"""Of one kind of warning or note. Errors are all shown."""


class DataError(ValueError):
    """What is wrong with the data somebody gave."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found: how grave it is, its kind in a word or two, the picture, where that was said, and what it is."""

    severity: str
    kind: str
    name: str
    where: str
    what: str

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where and self.where != self.name else ""
        return printable(f"{self.severity}: {self.name}{place}: {self.kind}: {self.what}")


def printable(text: str) -> str:
    """A text on one line of any terminal: what cannot be printed, or drives a terminal, is spelt out."""
    shown = (c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return "".join(shown)


def of_severity(findings: Iterable[Finding], severity: str) -> list[Finding]:
    """Those of one severity, in order."""
    return [finding for finding in findings if finding.severity == severity]


def lines(findings: Iterable[Finding]) -> list[str]:
    """A line for each finding, the gravest first; warnings and notes of a kind that comes often are cut short."""
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.severity, finding.kind), []).append(finding)
    said: list[str] = []
    for severity in (ERROR, WARNING, NOTE):
        for (_, kind), alike in ((key, found) for key, found in kinds.items() if key[0] == severity):
            shown = alike if severity == ERROR else alike[:SHOWN]
            said += map(str, shown)
            if len(alike) > len(shown):
                said.append(f"{severity}: {kind}: {len(alike) - len(shown):,} more")
    return said


def as_json(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """Findings as JSON can hold them, whatever their names are made of."""
    return [{key: printable(value) for key, value in asdict(finding).items()} for finding in findings]


def check_on_bad(on_bad: str) -> None:
    """Raise DataError if this is no answer to what becomes of rows with errors."""
    if on_bad not in ("fail", "skip"):
        raise DataError(f"on-bad must be fail or skip, got {on_bad!r}")
