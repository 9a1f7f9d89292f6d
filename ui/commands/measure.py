"""Commands that measure."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ui import DEFAULT_MODEL
from ui.commands.common import Device, Guidance, Json, Model, Steps, load, load_any, refuse_existing, write_json

if TYPE_CHECKING:
    from pipelines import TextToImagePipeline

app = typer.Typer()


Masks = Annotated[
    Path | None,
    typer.Option(help="A folder of pictures with masks, as of PASCAL VOC, COCO, ImageNet-S or `data emoji --scenes`."),
]


@app.command(epilog="Example: unet-xattn evaluate shapes --json shapes.json")
def evaluate(
    model: Annotated[str, typer.Argument(help="A bundled model, the folder of a run, or a hub id; see --masks.")],
    json_file: Json = None,
    prompts: Annotated[int, typer.Option(help="Prompts of each kind and split, 2 or more.")] = 50,
    steps: Steps = None,
    guidance: Guidance = None,
    grounding: Annotated[bool, typer.Option("--grounding", help="Evaluate the heat maps instead.")] = False,
    editing: Annotated[bool, typer.Option("--editing", help="Evaluate edits: --prompts scenes of each kind.")] = False,
    masks: Masks = None,
    limit: Annotated[
        int | None, typer.Option(help="Use so many pictures of --masks, spread evenly over the set.", min=1)
    ] = None,
    device: Device = None,
) -> None:
    """Measure how well pictures agree with their prompts, or how accurate the maps of words are.

    Agreement is measured in each language that the model reads. A rule-based judge finds the objects in each picture.
    The prompts describe shapes, emoji or everyday things, like the model's training data. Atoms are the facts that they
    state. For shapes there are also minimal pairs: two prompts that differ in one detail. For a model that translates,
    the share of captions whose translation means the same is measured too.

    With --grounding, maps are compared with the masks of scenes. With --masks too, with those of your own set, and the
    model may be any pipeline of diffusers that can attribute.

    With --editing, pictures of scenes are edited by their words. --json is written as the evaluation proceeds.
    """
    refuse_existing([json_file], "name for --json")
    if grounding and editing:
        raise ValueError("give --grounding or --editing, not both")
    if masks is not None and not grounding:
        raise ValueError("--masks is for --grounding: give both")
    report: dict[str, Any] = {"model": model}
    if masks is not None:
        report |= _measure_on(model, masks, limit, device)
    elif grounding:
        report |= _measure_maps(load(model, device), prompts)
    elif editing:
        report |= _measure_edits(load(model, device), prompts, lambda found: write_json(json_file, report | found))
    else:
        report |= _measure_agreement(load(model, device), prompts, steps, guidance)
    write_json(json_file, report)


def _measure_edits(pipe: "TextToImagePipeline", prompts: int, save: Callable[[dict], None]) -> dict[str, Any]:
    from pipelines.evaluation.editing import editing_table, evaluate_editing

    report = evaluate_editing(pipe, prompts, save=save)
    print(editing_table(report))
    return report


def _measure_agreement(
    pipe: "TextToImagePipeline", prompts: int, steps: int | None, guidance: float | None
) -> dict[str, Any]:
    from pipelines import TranslationPipeline
    from pipelines.components import can_translate
    from pipelines.evaluation.agreement import agreement_table, evaluate_translation, fixed_scenes
    from pipelines.evaluation.agreement import evaluate as evaluate_pipe
    from pipelines.evaluation.pairs import evaluate_pairs
    from pipelines.scenes.captions import LANGUAGES
    from pipelines.scenes.worlds import world_of
    from unet_xattn.words import unknown_words

    report: dict[str, Any] = {}
    data = world_of(pipe.tokenizer)
    sampling = {"num_inference_steps": steps, "guidance_scale": guidance}
    sampling = {name: pipe.config[name] if value is None else value for name, value in sampling.items()}
    for language in LANGUAGES:
        if language == "en" or not any(
            unknown_words(s.caption, pipe.tokenizer) for s in fixed_scenes(4, False, language, data)
        ):
            settings: dict = {**sampling, "language": language}
            report[language] = evaluate_pipe(pipe, prompts, data=data, **settings)
            if data == "shapes":  # the pairs differ in colours, which emoji have not
                report[language]["pairs"] = evaluate_pairs(pipe, prompts, **settings)
            print(agreement_table(report[language]), end="\n\n")
    if can_translate(pipe.text_encoder):
        translating = TranslationPipeline(pipe.tokenizer, pipe.text_encoder)
        report["translation"] = evaluate_translation(translating, prompts, data=data)
        for split, directions in report["translation"].items():
            for direction, e in directions.items():
                print(f"translation {direction}, {split.replace('_', '-')} pairs: {e['k']} of {e['n']} mean the same")
    return report


def _measure_maps(pipe: "TextToImagePipeline", prompts: int) -> dict[str, Any]:
    from pipelines.evaluation.faithfulness import evaluate_faithfulness, faithfulness_table
    from pipelines.evaluation.grounding import evaluate_grounding, grounding_table

    report = evaluate_grounding(pipe, prompts)
    print(grounding_table(report), end="\n\n")
    report["faithfulness"] = evaluate_faithfulness(pipe, prompts)
    print(faithfulness_table(report["faithfulness"]))
    return report


def _measure_on(model: str, masks: Path, limit: int | None, device: str | None) -> dict[str, Any]:
    from pipelines.evaluation.segmentation import evaluate_masks, segmentation_table
    from pipelines.sources.masked import read_masked, spread

    files = spread(read_masked(masks), limit)  # before the model, which may take minutes to load
    report = evaluate_masks(load_any(model, device), files)
    print(segmentation_table(report))
    return {"masks": str(masks), **report}


@app.command(name="calibrate", epilog="Example: unet-xattn calibrate runs/first")
def calibrate_model(
    model: Annotated[str, typer.Argument(help="The folder of a model of scenes, for example of a run; see --masks.")],
    scenes: Annotated[
        int, typer.Option(help="Number of scenes, or of pictures of --masks, to learn from.", min=10)
    ] = 100,
    masks: Masks = None,
    device: Device = None,
) -> None:
    """Learn a weight for each attention head of a model.

    The weights say how well each head's maps point, and are saved with the model. Heat maps with `reduce="calibrated"`
    use them, and `evaluate --grounding` measures what they gain.

    With --masks they are learnt from your own set, and the model may be any pipeline of diffusers that can attribute.
    What they gain is measured on as many other pictures. Those of diffusers' models are written beside the model, if it
    is a folder that can be written, else into the user's cache, where its weights find them.
    """
    from pipelines import TextToImagePipeline
    from pipelines.evaluation.calibration import apart, calibrate, calibrate_on
    from pipelines.evaluation.segmentation import evaluate_masks, segmentation_table
    from pipelines.tracing.calibrations import save_calibration
    from pipelines.tracing.watch import denoiser_of

    index = Path(model) / "model_index.json"
    learn, measure = ([], []) if masks is None else apart(masks, scenes)
    if masks is None and not index.is_file():
        raise ValueError(f"{model} is not the folder of a model: it has no model_index.json")
    pipe = load_any(model, device)
    if isinstance(pipe, TextToImagePipeline):
        if not index.is_file():
            raise ValueError(f"{model} keeps its calibration in its folder: give a copy of it that can be written")
        calibration = calibrate(pipe, scenes) if masks is None else calibrate_on(pipe, learn)
        write_json(index, json.loads(index.read_text()) | {"calibration": calibration})
        pipe.register_to_config(calibration=calibration)
    else:
        if masks is None:
            raise ValueError(f"a {type(pipe).__name__} has no scenes of its own to learn from: give --masks")
        calibration = calibrate_on(pipe, learn)
        print(f"written to {save_calibration(pipe, denoiser_of(pipe), calibration)}")
    for layer, weights in calibration.items():
        print(f"{layer:8}", "  ".join(f"{weight:.3f}" for weight in weights))
    if measure:
        print(f"\nlearnt from {len(learn)} pictures; on others:\n")
        print(segmentation_table(evaluate_masks(pipe, measure)))


@app.command(epilog="Example: unet-xattn bench train --json bench.json")
def bench(
    what: Annotated[str, typer.Argument(help="sample, train, capture, attention, text or device.")] = "sample",
    model: Model = DEFAULT_MODEL,
    device: Device = None,
    json_file: Json = None,
) -> None:
    """Measure speed, and properties of the attention.

    sample: seconds per picture, alone and in a batch. train: pictures per second, and the ratio to the machine's own
    rate of matrix products. capture: the cost of recording attention. attention: the scale 1/√d_k, time and memory by
    length and number of heads, and how a model's trained heads differ. text: tokens per second with and without the
    decoder's cache, and a training step compared with torch.nn.Transformer. device: about ten minutes on a GPU:
    compiled training and sampling at two widths, and the minutes to a model that obeys 95 % of prompts.
    """
    from rich.console import Console

    from pipelines.bench.attention import bench_attention, bench_text
    from pipelines.bench.device import bench_device
    from pipelines.bench.speed import bench_capture, bench_sample, bench_train
    from pipelines.runs.processes import find_device

    refuse_existing([json_file], "name for --json")
    place = find_device(device)
    kinds: dict[str, Callable[[], dict]] = {
        "sample": lambda: bench_sample(load(model, device), place),
        "train": lambda: bench_train(place),
        "capture": lambda: bench_capture(model, place),
        "attention": lambda: bench_attention(load(model, "cpu")),
        "text": bench_text,
        "device": lambda: bench_device(place),
    }
    if what not in kinds:
        raise ValueError(f"bench measures {', '.join(kinds)}, got {what!r}")
    if place.type == "cpu" and what == "device":
        raise ValueError("bench device needs a GPU: on a CPU, use bench train, sample or capture")
    if device not in (None, "cpu") and what in ("attention", "text"):
        raise ValueError(f"bench {what} measures on the CPU only: leave out --device")
    report = kinds[what]()
    Console().print_json(data=report)
    write_json(json_file, report)
