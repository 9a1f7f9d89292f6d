"""What can be recorded of each family of pipelines, tried on tiny random ones, and the table of it in the README.

    python tests/benchmarks/families.py --readme --out families.json

Each pipeline of tests/tiny_pipelines.py is verified: the table says by how much it deviates, or why it is refused. A
picture that recording changes, or a deviation that rounding does not explain, ends the command with an error.
"""

import argparse
import contextlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from pipelines import verify
from pipelines.runs.machine import machine

ROOT = Path(__file__).parents[2]
README = ROOT / "pipelines/tracing/README.md"
BEGIN, END = "<!-- families -->", "<!-- end of families -->"
PACKAGES = ("diffusers", "transformers", "torch")

sys.path.append(str(ROOT / "tests"))
from tiny_pipelines import FAMILIES, VARIANTS, Family, Variant, pipeline  # noqa: E402


def tried(name: str, family: Family) -> dict[str, Any]:
    """A row of the table: the figures of a pipeline, or what refuses it."""
    pipe, call = pipeline(name), dict(family.call)
    encoders = [part for key, part in pipe.components.items() if key.startswith("text_encoder")]
    row = {
        "pipeline": family.pipeline,
        "kind": family.kind,
        "text encoders": [part.config.model_type for part in encoders if isinstance(part, nn.Module)],
    }
    if isinstance(family, Variant):
        row["variant of"] = family.family
    try:
        found = verify(pipe, family.prompts[0], steps=call.pop("num_inference_steps"), return_dict=False, **call)
    except (TypeError, ValueError) as error:
        return row | {"refused": str(error)}
    return row | {"layers": found.layers, "deviations": dict(found.deviations)}


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each row."""
    lines = [
        "| name: pipeline | text is read by | text encoders | layers | picture | largest deviation |",
        "|:--|:--|:--|--:|:--|--:|",
    ]
    for name, row in rows.items():
        first = f"| {name}: `{row['pipeline']}` | {row['kind']} | {', '.join(row['text encoders']) or '–'}"
        if "refused" in row:
            lines.append(f"{first} | – | refused: {row['refused']} | – |")
        else:
            equal = "equal" if row["deviations"]["picture"] == 0 else "not equal"
            lines.append(f"{first} | {row['layers']} | {equal} | {max(row['deviations'].values()):.0e} |")
    return lines


def document(report: dict[str, Any]) -> str:
    """What stands between the two marks in the README."""
    versions = ", ".join(f"{package} {number}" for package, number in report["versions"].items())
    lines = [f"With {versions}. {len(report['families'])} families:", "", *table(report["families"])]
    lines += ["", f"{len(report['variants'])} other ways to use them:", "", *table(report["variants"])]
    return "\n".join([BEGIN, "", *lines, "", END])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", action="store_true", help="put the table into pipelines/tracing/README.md")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    versions = {package: version(package) for package in PACKAGES}
    report: dict[str, Any] = {"machine": machine("cpu"), "versions": versions}
    with contextlib.redirect_stdout(sys.stderr):  # libraries say things while pipelines are built
        for group, families in (("families", FAMILIES), ("variants", VARIANTS)):
            report[group] = {name: tried(name, family) for name, family in families.items()}
    print(document(report))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.readme:
        before, _, rest = README.read_text().partition(BEGIN)
        README.write_text(before + document(report) + rest.partition(END)[2])


if __name__ == "__main__":
    main()
