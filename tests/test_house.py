"""The layout of the packages: imports only go down, and without a circle."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent

FLOORS = (
    "ui",
    "pipelines.bench",
    "pipelines.training",
    "pipelines.evaluation",
    "pipelines.tracing",
    "pipelines",
    "pipelines.data",
    "pipelines.sources",
    "pipelines: parts",
    "pipelines.scenes",
    "pipelines.runs",
    "unet_xattn",
)
"""Packages from the top down. Modules directly in pipelines/ are pipelines or, on a lower floor, their parts."""

PARTS = {
    "pipelines.components",
    "pipelines.drawing",
    "pipelines.picture_files",
    "pipelines.pictures",
    "pipelines.pixels",
    "pipelines.profiles",
    "pipelines.tokenizer",
}

PUBLIC = {"pipelines", "unet_xattn"}
"""Their __init__ offers names of many modules, but imports a module only when a name of it is used."""


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_of(file): file
    for package in ("ui", "pipelines", "unet_xattn")
    for file in sorted((ROOT / package).rglob("*.py"))
}


def imports_of(module: str) -> set[str]:
    """The project's modules that a module imports anywhere, in functions and for type checking too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in MODULES else node.module)
    return found & MODULES.keys()


def floor_of(module: str) -> int:
    if module.split(".")[0] != "pipelines":
        return FLOORS.index(module.split(".")[0])
    if module in PARTS:
        return FLOORS.index("pipelines: parts")
    package = ".".join(module.split(".")[:2])
    return FLOORS.index(package if package in FLOORS else "pipelines")


def test_every_folder_has_a_floor() -> None:
    folders = {module.rpartition(".")[0] for module in MODULES if module.count(".") == 2}
    assert {folder for folder in folders if folder.startswith("pipelines.")} == {
        f for f in FLOORS if f.startswith("pipelines.")
    }


def test_imports_go_down() -> None:
    climbing = [
        f"{module} imports {other}"
        for module in MODULES.keys() - PUBLIC
        for other in imports_of(module) - PUBLIC
        if floor_of(other) < floor_of(module)
    ]
    assert not climbing


def test_imports_have_no_circle() -> None:
    left = {module: imports_of(module) - PUBLIC - {module} for module in MODULES.keys() - PUBLIC}
    while free := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in free:
            del left[module]
    assert not left
