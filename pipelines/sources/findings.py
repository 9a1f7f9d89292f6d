"""Findings: what is wrong with, or notable about, the data somebody gave, one line each."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

ERROR, WARNING, NOTE = "error", "warning", "note"
"""Severities. Error: the row cannot be used. Warning: it can, but deserves a look. Note: how the row is handled."""

SHOWN = 20
"""Findings printed of one kind of warning or note. Errors are all printed."""


class DataError(ValueError):
    """The data somebody gave cannot be used."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding: severity, kind in a word or two, the picture's name, the place of its caption, and details."""

    severity: str
    kind: str
    name: str
    where: str
    what: str

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where and self.where != self.name else ""
        return printable(f"{self.severity}: {self.name}{place}: {self.kind}: {self.what}")


def printable(text: str) -> str:
    """A text on one line, safe for any terminal: unprintable and control characters are escaped."""
    shown = (c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return "".join(shown)


def of_severity(findings: Iterable[Finding], severity: str) -> list[Finding]:
    """The findings of one severity, in order."""
    return [finding for finding in findings if finding.severity == severity]


def lines(findings: Iterable[Finding]) -> list[str]:
    """One line per finding, errors first. Of each kind of warning or note, `SHOWN` lines and a count of the rest."""
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.severity, finding.kind), []).append(finding)
    printed: list[str] = []
    for severity in (ERROR, WARNING, NOTE):
        for (_, kind), alike in ((key, found) for key, found in kinds.items() if key[0] == severity):
            shown = alike if severity == ERROR else alike[:SHOWN]
            printed += map(str, shown)
            if len(alike) > len(shown):
                printed.append(f"{severity}: {kind}: {len(alike) - len(shown):,} more findings of this kind")
    return printed


def as_json(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """Findings for JSON. Names with unpaired surrogates, which UTF-8 cannot encode, are escaped."""
    return [{key: printable(value) for key, value in asdict(finding).items()} for finding in findings]


def check_on_bad(on_bad: str) -> None:
    """Raise DataError unless `on_bad` is "fail" or "skip"."""
    if on_bad not in ("fail", "skip"):
        raise DataError(f"--on-bad must be fail or skip, got {on_bad!r}")
