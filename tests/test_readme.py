"""The README is short, and what it and the other documents say of files, folders and commands is true."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from ui.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()

_LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True
).stdout.split("\0")
FILES = [ROOT / name for name in _LISTED if name and (ROOT / name).is_file()]
DOCUMENTS = [file for file in FILES if file.suffix == ".md"]

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"\s#\s.*")


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", document.read_text()), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


def commands(text: str) -> Iterator[list[str]]:
    """The shell commands of a document, in blocks or in the text, in words."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [COMMENT.sub("", line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`((?:unet-xattn|python)\s[^`]*)`", FENCE.sub("", text))
    for line in lines + inline:
        for part in line.split("&&"):
            if words := shlex.split(part, comments=True):
                yield words


def ours(words: list[str]) -> list[str] | None:
    """What a shell command passes to `unet-xattn`, or None."""
    for place, word in enumerate(words):
        if Path(word).name == "unet-xattn" or word == "ui.cli":
            return words[place + 1 :]
    return None


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 180
    assert len(README.encode()) <= 16_384


@pytest.mark.parametrize(("mark", "end"), [("main", "unet-xattn ui"), ("test", "pytest -q -n 2 --dist loadfile")])
def test_readme_has_the_line_to_copy(mark: str, end: str) -> None:
    (line,) = re.findall(rf"^<!-- the {mark} line -->\n```sh\n(.*)\n```$", README, re.MULTILINE)
    assert line.startswith("python3 -m venv .venv && ") and line.endswith(end)


def test_readme_lists_the_folders() -> None:
    listed, parent = set(), ""
    for indent, entry in re.findall(r"^( {4}(?: {2})?)(\S.*)$", README.partition("## What is where")[2], re.MULTILINE):
        names = re.match(r"(?:\S+/ )*\S+/", entry)
        assert names, f"{entry!r} names no folder"
        folders = names.group().split()
        if indent == "    ":
            (parent,) = folders
        listed |= {folder if indent == "    " else parent + folder for folder in folders}
    missing = [folder for folder in listed if not (ROOT / folder).is_dir()]
    assert not missing
    packages = {f"{name(file.parent)}/" for file in FILES if file.name == "__init__.py"}
    top = {f"{file.relative_to(ROOT).parts[0]}/" for file in FILES if file.parent != ROOT}
    assert packages | {folder for folder in top if not folder.startswith(".")} <= listed


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_resolve(document: Path) -> None:
    prose = re.sub(r"`[^`]*`", "", FENCE.sub("", document.read_text()))
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (document.parent / path).resolve() if path else document
        found = target.is_dir() or target in FILES
        if not found or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_commands_exist_with_their_options(document: Path) -> None:
    for words in commands(document.read_text()):
        arguments = ours(words)
        if arguments is not None:
            command = get_command(app)
            while hasattr(command, "commands"):
                if not arguments or arguments[0].startswith("-"):
                    break  # unet-xattn itself
                assert arguments[0] in command.commands, f"{shlex.join(words)}: no command {arguments[0]}"
                command = command.commands[arguments.pop(0)]
            known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        elif len(words) > 1 and words[0] == "python" and words[1].endswith(".py"):
            arguments, source = words[2:], (ROOT / words[1]).read_text()
            known = set(re.findall(r'"(--[a-z-]+)"', source))
        else:
            continue
        unknown = {word.partition("=")[0] for word in arguments if word.startswith("--")} - known
        assert not unknown, f"{shlex.join(words)}: no option {', '.join(unknown)}"
