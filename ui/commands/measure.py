"""Commands that measure."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from pipelines import TranslationPipeline
from pipelines.bench.attention import bench_attention, bench_text
from pipelines.bench.device import bench_device
from pipelines.bench.speed import bench_capture, bench_sample, bench_train
from pipelines.components import can_translate
from pipelines.evaluation.agreement import evaluate as evaluate_pipe
from pipelines.evaluation.agreement import evaluate_translation, fixed_scenes, table
from pipelines.evaluation.faithfulness import evaluate_faithfulness
from pipelines.evaluation.faithfulness import table as faithfulness_table
from pipelines.evaluation.grounding import calibrate, evaluate_grounding
from pipelines.evaluation.grounding import table as grounding_table
from pipelines.evaluation.pairs import evaluate_pairs
from pipelines.scenes.captions import LANGUAGES
from pipelines.scenes.worlds import world_of
from ui.commands.common import Guidance, Model, Steps, load, refuse_existing, write_json
from unet_xattn.words import unknown_words

app = typer.Typer()


@app.command(epilog="Example: unet-xattn evaluate shapes --json shapes.json")
def evaluate(
    model: Annotated[str, typer.Argument(help="A bundled model, a run's folder, or a hub id.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here as well.")] = None,
    prompts: Annotated[int, typer.Option(help="Prompts of each kind and split, 2 or more.")] = 50,
    steps: Steps = None,
    guidance: Guidance = None,
    grounding: Annotated[bool, typer.Option("--grounding", help="Measure how true the heat maps are instead.")] = False,
) -> None:
    """Measure how far pictures show what their prompts say, by the rule-based judge, in each language the model reads.

    The prompts are of shapes or of emoji, as the model's own words are. Of shapes, minimal pairs too: whether a picture
    follows the one thing in which two prompts differ. Where it also translates: how many of the captions still mean
    the same.
    """
    refuse_existing([json_file], "name for --json")
    pipe = load(model)
    report: dict = {"model": model}
    if grounding:
        report |= evaluate_grounding(pipe, prompts)
        print(grounding_table(report), end="\n\n")
        report["faithfulness"] = evaluate_faithfulness(pipe, prompts)
        print(faithfulness_table(report["faithfulness"]))
        write_json(json_file, report)
        return
    data = world_of(pipe.tokenizer)
    drawn = {"num_inference_steps": steps, "guidance_scale": guidance}
    drawn = {name: pipe.config[name] if value is None else value for name, value in drawn.items()}
    for language in LANGUAGES:
        if language == "en" or not any(
            unknown_words(s.caption, pipe.tokenizer) for s in fixed_scenes(4, False, language, data)
        ):
            settings: dict = {**drawn, "language": language}
            report[language] = evaluate_pipe(pipe, prompts, data=data, **settings)
            if data == "shapes":  # an emoji has no colour to exchange
                report[language]["pairs"] = evaluate_pairs(pipe, prompts, **settings)
            print(table(report[language]), end="\n\n")
    if can_translate(pipe.text_encoder):
        translating = TranslationPipeline(pipe.tokenizer, pipe.text_encoder)
        report["translation"] = evaluate_translation(translating, prompts, data=data)
        for split, directions in report["translation"].items():
            for direction, e in directions.items():
                print(f"translation {direction}, {split.replace('_', '-')} pairs: {e['k']} of {e['n']} mean the same")
    write_json(json_file, report)


@app.command(name="calibrate", epilog="Example: unet-xattn calibrate runs/first")
def calibrate_model(
    model: Annotated[Path, typer.Argument(help="A folder with a model, as a run leaves it.")],
    scenes: Annotated[int, typer.Option(help="How many scenes to learn from.", min=10)] = 100,
) -> None:
    """Learn how far each attention head of a model can be trusted, and keep that with the model.

    From then on its maps can be asked for as `reduce="calibrated"`, and `evaluate --grounding` says what it is worth.
    """
    index = model / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{model} is no folder with a model: it has no model_index.json")
    calibration = calibrate(load(str(model)), scenes)
    write_json(index, json.loads(index.read_text()) | {"calibration": calibration})
    for layer, weights in calibration.items():
        print(f"{layer:8}", "  ".join(f"{weight:.3f}" for weight in weights))


@app.command(epilog="Example: unet-xattn bench train --json bench.json")
def bench(
    what: Annotated[str, typer.Argument(help="device, train, sample, capture, attention or text.")] = "device",
    model: Model = "shapes",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here as well.")] = None,
) -> None:
    """Measure speed as ratios, and what the attention mechanism promises.

    device: all that a GPU is asked, in some ten minutes: training and sampling, compiled, as shares of its own rate at
    two widths, and the minutes to a model that obeys 95 % of prompts. train and sample: pictures a second, for training
    as a ratio to the machine's own matrix-product rate. capture: what recording attention costs. attention: the scale
    1/√d_k, time and memory by length and by heads, and how a model's trained heads differ. text: tokens a second with
    and without the decoder's cache, and a training step beside torch.nn.Transformer's.
    """
    refuse_existing([json_file], "name for --json")
    kinds: dict[str, Callable[[], dict]] = {
        "device": lambda: bench_device(device),
        "train": lambda: bench_train(device),
        "sample": lambda: bench_sample(load(model), device),
        "capture": lambda: bench_capture(model, device),
        "attention": lambda: bench_attention(load(model).to("cpu")),
        "text": bench_text,
    }
    if what not in kinds:
        raise ValueError(f"bench measures {', '.join(kinds)}, not {what!r}")
    if device == "cpu" and what == "device":
        raise ValueError("bench device measures a GPU, with --device cuda; a CPU: bench train, sample, capture, …")
    if device != "cpu" and what in ("attention", "text"):
        raise ValueError(f"bench {what} measures on the CPU only")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device can be used here: bench with --device cpu")
    report = kinds[what]()
    Console().print_json(data=report)
    write_json(json_file, report)
