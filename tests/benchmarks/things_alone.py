"""Which everyday things does a model draw so that the judge recognises them, each alone in its picture?

    python tests/benchmarks/things_alone.py everyday --out alone.json --sheet alone.png

A prompt is what people type first: "a cat", "一只猫". Every thing is drawn once in each language, from different noise.
The sheet shows the English ones in the order of the table.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines import TextToImagePipeline
from pipelines.evaluation.agreement import draw_and_judge
from pipelines.evaluation.statistics import wilson
from pipelines.scenes.everyday_words import EMOJI_THINGS
from pipelines.scenes.scene import Scene
from pipelines.scenes.typed import article
from pipelines.scenes.worlds import parse

COLUMNS, CELL = 20, 68  # of the sheet; pictures are 64 pixels wide


def prompts(language: str) -> dict[str, Scene]:
    """Thing -> the scene that a prompt of its name alone describes."""
    found = {}
    for name, thing in EMOJI_THINGS.items():
        english = f"{article(name)} {name}" if thing.english[0].plural else name
        text = f"一{thing.measure}{thing.chinese[0]}" if language == "zh" else english
        scene = parse(text, "everyday")
        assert scene is not None and [o.shape for o in scene.objects] == [name], (text, scene)
        found[name] = scene
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a bundled model or the folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="a new .json")
    parser.add_argument("--sheet", type=Path, required=True, help="a new .png")
    arguments = parser.parse_args()
    for file in (arguments.out, arguments.sheet):
        if file.exists():
            parser.error(f"{file} already exists: choose another name")
    pipe = TextToImagePipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    drawn: list[Image.Image] = []

    def draw(*prompts: Any, **settings: Any) -> Any:
        result = pipe(*prompts, **settings)
        drawn.extend(pipe.numpy_to_pil(result.images))
        return result

    report = {}
    for language, noise in (("en", 0), ("zh", len(EMOJI_THINGS))):
        asked = prompts(language)
        verdicts, _ = draw_and_judge(draw, [(scene, noise + i) for i, scene in enumerate(asked.values())], 25)
        right = [{c.ok for c in verdict.checks if c.fact == "shape"} == {True} for verdict in verdicts]
        missed = [name for name, ok in zip(asked, right, strict=True) if not ok]
        interval = wilson(sum(right), len(right))
        report[language] = {"right": sum(right), "n": len(right), "interval": interval, "missed": missed}
        low, high = interval
        print(f"{language}: {sum(right)} of {len(right)} recognised ({100 * low:.0f}–{100 * high:.0f} %)", flush=True)
        print(f"  not: {', '.join(missed)}", flush=True)
    sheet = Image.new("RGB", (COLUMNS * CELL, -(-len(EMOJI_THINGS) // COLUMNS) * CELL), "white")
    for i, picture in enumerate(drawn[: len(EMOJI_THINGS)]):
        sheet.paste(picture, (i % COLUMNS * CELL, i // COLUMNS * CELL))
    arguments.out.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    sheet.quantize(256, dither=Image.Dither.NONE).save(arguments.sheet, optimize=True)  # a third of the bytes


if __name__ == "__main__":
    main()
