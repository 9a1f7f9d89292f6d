"""The command `unet-xattn`: each subcommand a thin wrapper over one function a notebook can call."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from diffusers.utils.logging import disable_progress_bar
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from transformers.utils.logging import disable_progress_bar as disable_transformers_progress_bar

from pipelines import TranslationPipeline, attribute, trace
from pipelines.bench import bench_capture, bench_sample, bench_train
from pipelines.bench_attention import bench_attention, bench_text
from pipelines.captions import LANGUAGES
from pipelines.components import can_translate
from pipelines.emoji import write_emoji
from pipelines.emoji_scenes import write_scenes
from pipelines.evaluate import evaluate as evaluate_pipe
from pipelines.evaluate import evaluate_translation, fixed_scenes, table
from pipelines.evaluate_faithfulness import evaluate_faithfulness
from pipelines.evaluate_faithfulness import table as faithfulness_table
from pipelines.evaluate_grounding import calibrate, evaluate_grounding
from pipelines.evaluate_grounding import table as grounding_table
from pipelines.evaluate_pairs import evaluate_pairs
from pipelines.machine import in_words
from pipelines.names import write_names
from pipelines.overlay import alignment_sheet, label_font, word_sheet
from pipelines.processes import this_process
from pipelines.prompts import draw_prompts
from pipelines.run_folder import StoppedError
from pipelines.train import TrainConfig
from pipelines.train import train as train_model
from pipelines.train_text import TextConfig
from pipelines.train_text import train_text as train_text_model
from ui.app import launch
from ui.checks import check_prompt, parse_seed
from ui.command import load, refuse_existing, write_json
from ui.export import export, stem
from ui.finished import memorised, publish
from ui.models import RUNS
from ui.runs import list_runs
from unet_xattn import AttentionTrace
from unet_xattn.words import unknown_words

app = typer.Typer(
    help="See how words become picture: generate, train, evaluate, and ask which word drew what.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data = typer.Typer(help="Make and look at training data.", no_args_is_help=True)
app.add_typer(data, name="data")

Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with the run in --out, as it began but for the options given beside this."),
]
AllowChanges = Annotated[
    bool, typer.Option("--allow-changes", help="Resume though the data or the number of processes has changed.")
]
SaveEvery = Annotated[int, typer.Option(help="Steps between checkpoints beside those of --every; 0: none.")]
SaveMinutes = Annotated[float, typer.Option(help="Save when the last checkpoint is so many minutes old; 0: never.")]
Keep = Annotated[int, typer.Option(help="How many of the last checkpoints to keep.")]
Milestone = Annotated[int, typer.Option(help="Keep a checkpoint for good every so many steps; 0: none.")]
Model = Annotated[str, typer.Option(help="A bundled model, a run's folder, or a hub id.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are already there.")]
KEEP_HELP = "Keep the attention as a file, with this apart: mean (nothing), step, head or full (both)."


@app.command(epilog='Example: unet-xattn generate "a red circle left of a blue square" --seed 7 --out pictures')
def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to draw.", show_default=False)] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Draw a file of them: a .txt with one a line, or a .jsonl that may say more of each."),
    ] = None,
    model: Model = "shapes",
    seed: Annotated[str, typer.Option(help="Names the picture: 0 to 2^64 - 1.")] = "0",
    steps: Annotated[int, typer.Option(help="Steps from noise to picture.")] = 20,
    guidance: Annotated[float, typer.Option(help="How strictly to follow the prompt; 1 is no guidance.")] = 3.0,
    out: Annotated[Path, typer.Option(help="Folder for the picture and the sheet of heat maps.")] = Path("out"),
    keep: Annotated[str | None, typer.Option(help=KEEP_HELP)] = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw a picture, and a sheet with where each word landed.

    Or, with --prompts, the pictures of a file and a results.jsonl; stopped, the same command goes on where it was.
    """
    number = parse_seed(seed)
    if prompts is not None:
        if prompt is not None or keep or overwrite:
            raise ValueError(
                "--prompts draws a file of them; a PROMPT, --keep and --overwrite are for one: leave one out"
            )
        process = this_process()  # several of them share the file, each on a device of its own
        results = draw_prompts(load(model), prompts, out, number, steps, guidance, model)
        if process.is_main_process:
            print(results)
        process.destroy_process_group()
        return
    if prompt is None:
        raise ValueError("there is nothing to draw: give a PROMPT, or --prompts and a file of them")
    check_prompt(prompt)
    name = stem(prompt, number)
    files = [out / f"{name}.png", out / f"{name}-words.png"] + ([out / f"{name}.safetensors"] if keep else [])
    refuse_existing([] if overwrite else files, "--out, or --overwrite")
    label_font([prompt], 15)  # the sheet will need it
    pipe = load(model)
    if unknown := unknown_words(prompt, pipe.tokenizer):
        print(f"note: this model has never read: {', '.join(dict.fromkeys(unknown))}", file=sys.stderr)
    with trace(pipe, keep or "mean") as attention:
        generator = torch.Generator().manual_seed(number)
        picture = pipe(prompt, num_inference_steps=steps, guidance_scale=guidance, generator=generator).images[0]
    out.mkdir(parents=True, exist_ok=True)
    picture.save(files[0])
    word_sheet(attention).save(files[1])
    if keep:
        attention.save(files[2])
    print(*files, sep="\n")


@app.command("attribute", epilog='Example: unet-xattn attribute photo.png "a red circle" --out read')
def attribute_words(
    picture: Annotated[Path, typer.Argument(help="A picture.")],
    caption: Annotated[str, typer.Argument(help="What it shows.")],
    model: Model = "shapes",
    out: Annotated[Path, typer.Option(help="Folder for the sheet of heat maps and the trace.")] = Path("out"),
    keep: Annotated[str, typer.Option(help=KEEP_HELP)] = "mean",
    overwrite: Overwrite = False,
) -> None:
    """Read a picture that is already there: a sheet with where each word of its caption lies, and the trace."""
    check_prompt(caption)
    files = [out / f"{picture.stem}-words.png", out / f"{picture.stem}.safetensors"]
    refuse_existing([] if overwrite else files, "--out, or --overwrite")
    label_font([caption], 15)
    try:
        with Image.open(picture) as shown:
            shown.load()
            attention = attribute(load(model), shown, caption, keep=keep)
    except (SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{picture} cannot be read: {error}") from error
    out.mkdir(parents=True, exist_ok=True)
    word_sheet(attention).save(files[0])
    attention.save(files[1])
    print(*files, sep="\n")


@app.command("export", epilog="Example: unet-xattn export out/a-red-circle-seed0.safetensors --out red-circle")
def export_trace(
    file: Annotated[Path, typer.Argument(help="A trace, as generate --keep and attribute leave it.")],
    out: Annotated[Path, typer.Option(help="A new folder to write to.")],
    image: Annotated[int, typer.Option(help="Which of its pictures, from 0.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write everything a trace shows: pictures, a table, and a page that opens anywhere; no model is needed."""
    print(*export(AttentionTrace.load(file), out, image, overwrite), sep="\n")


@app.command(epilog="Example: unet-xattn ui --port 7861")
def ui(
    model: Model = "shapes",
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 7860,
    auth: Annotated[str | None, typer.Option(help="Ask for this user:password.")] = None,
    share: Annotated[bool, typer.Option("--share", help="Have gradio open a public address that leads here.")] = False,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    mcp: Annotated[bool, typer.Option("--mcp", help="Offer the API to language models too, by MCP.")] = False,
) -> None:
    """Open the page."""
    launch(model, host, port, auth, share, open_browser, mcp, started=psutil.Process().create_time())


@app.command(epilog="Example: unet-xattn train --data shapes --out runs/first")
def train(
    context: typer.Context,
    data: Annotated[str, typer.Option(help="'shapes', 'emoji', or a folder of captioned pictures.")] = TrainConfig.data,
    out: Annotated[Path, typer.Option(help="Folder of the run: the model, checkpoints, samples, logs.")] = Path(
        TrainConfig.out
    ),
    begin_from: Annotated[
        str, typer.Option("--from", help="Begin with the weights and vocabulary of this model, not from nothing.")
    ] = TrainConfig.begin_from,
    steps: Annotated[int, typer.Option(help="Training steps.")] = TrainConfig.steps,
    learning_rate: Annotated[float, typer.Option(help="Its highest; it rises first, and falls at the end.")] = (
        TrainConfig.learning_rate
    ),
    batch_size: Annotated[int, typer.Option(help="Pictures a step, over all processes.")] = TrainConfig.batch_size,
    seed: Annotated[int, typer.Option(help="Decides everything random in the run.")] = TrainConfig.seed,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = TrainConfig.size,
    text_encoder: Annotated[
        str, typer.Option(help="Read with this CLIP or T5, left as it is: a folder or a hub id.")
    ] = TrainConfig.text_encoder,
    vae: Annotated[
        str, typer.Option(help="Draw the latents of this VAE of diffusers, left as it is: a folder or a hub id.")
    ] = TrainConfig.vae,
    mask_weight: Annotated[
        float, typer.Option(help="Weight of mask supervision, where the data has masks.")
    ] = TrainConfig.mask_weight,
    every: Annotated[int, typer.Option(help="Steps between validations, samples and checkpoints.")] = TrainConfig.every,
    accumulate: Annotated[
        int, typer.Option(help="Work on each batch in so many parts: the same step in less memory.")
    ] = TrainConfig.accumulate,
    save_every: SaveEvery = TrainConfig.save_every,
    save_minutes: SaveMinutes = TrainConfig.save_minutes,
    keep: Keep = TrainConfig.keep,
    milestone: Milestone = TrainConfig.milestone,
    resume: Resume = False,
    allow_changes: AllowChanges = False,
) -> None:
    """Train a model. Several GPUs: accelerate launch -m ui.cli train …"""
    config = TrainConfig(
        data=data,
        out=str(out),
        begin_from=begin_from,
        steps=steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        seed=seed,
        size=size,
        text_encoder=text_encoder,
        vae=vae,
        mask_weight=mask_weight,
        every=every,
        accumulate=accumulate,
        save_every=save_every,
        save_minutes=save_minutes,
        keep=keep,
        milestone=milestone,
    )
    changes = _given(context, config) if resume else None
    print(f"the model is in {train_model(config, resume, changes, allow_changes)}")


@app.command(epilog="Example: unet-xattn runs")
def runs(folder: Annotated[Path, typer.Argument(help="The folder the runs are in.")] = RUNS) -> None:
    """List the training runs: which go on, how far each is, and its last figures; the loss is that at noise 0.5."""
    names = ("state", "step", "data", "loss", "agreement", "pointing")
    listed = Table(Column("run", overflow="fold"), *names, box=box.SIMPLE_HEAD, pad_edge=False)
    found = list_runs(folder)
    for run in found:
        last = run.validation[-1] if run.validation else {}
        figures = [f"{last[name]:.3f}" if name in last else "" for name in ("loss 0.5", "agreement", "pointing")]
        cells = [run.name, run.state, f"{run.step}/{run.steps}", run.data, *figures]
        listed.add_row(*map(Text, cells))
    Console().print(listed if listed.row_count else Text(f"there are no runs in {folder}"))
    for run in found:
        if run.seconds_left is not None:
            print(f"{run.name}: {run.log[-1]['pictures/s']:.0f} pictures/s, {in_words(run.seconds_left)} left")


@app.command("train-text", epilog="Example: unet-xattn train-text --pairs names.tsv --out runs/names")
def train_text(
    context: typer.Context,
    pairs: Annotated[Path, typer.Option(help="A .tsv with two columns, or a .jsonl of source and target; UTF-8.")],
    out: Annotated[Path, typer.Option(help="Folder of the run: the model and its checkpoints.")] = Path(TextConfig.out),
    steps: Annotated[int, typer.Option(help="Training steps, at most.")] = TextConfig.steps,
    batch_size: Annotated[int, typer.Option(help="Pairs a step, over all processes.")] = TextConfig.batch_size,
    seed: Annotated[int, typer.Option(help="Decides everything random in the run.")] = TextConfig.seed,
    every: Annotated[int, typer.Option(help="Steps between validations.")] = TextConfig.every,
    patience: Annotated[int, typer.Option(help="Stop after so many without a better loss.")] = TextConfig.patience,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out lines that cannot be used.")] = False,
    save_every: SaveEvery = TextConfig.save_every,
    save_minutes: SaveMinutes = TextConfig.save_minutes,
    keep: Keep = TextConfig.keep,
    milestone: Milestone = TextConfig.milestone,
    resume: Resume = False,
    allow_changes: AllowChanges = False,
) -> None:
    """Train the encoder-decoder alone, on pairs of sentences."""
    config = TextConfig(
        pairs=str(pairs),
        out=str(out),
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        every=every,
        patience=patience,
        skip_bad=skip_bad,
        save_every=save_every,
        save_minutes=save_minutes,
        keep=keep,
        milestone=milestone,
    )
    changes = _given(context, config) if resume else None
    print(f"the model is in {train_text_model(config, resume, changes, allow_changes)}")


@app.command(epilog="Example: unet-xattn evaluate shapes --json shapes.json")
def evaluate(
    model: Annotated[str, typer.Argument(help="A bundled model, a run's folder, or a hub id.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here as well.")] = None,
    prompts: Annotated[int, typer.Option(help="Prompts of each kind and split, 2 or more.")] = 50,
    steps: Annotated[int, typer.Option(help="Steps from noise to picture.")] = 20,
    guidance: Annotated[float, typer.Option(help="How strictly to follow the prompt.")] = 3.0,
    grounding: Annotated[bool, typer.Option("--grounding", help="Measure how true the heat maps are instead.")] = False,
) -> None:
    """Measure how far pictures show what their prompts say, by the rule-based judge, in each language the model reads.

    Minimal pairs too: whether a picture follows the one thing in which two prompts differ. Where it also translates:
    how many of the captions still mean the same.
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
    for language in LANGUAGES:
        if language == "en" or not any(
            unknown_words(s.caption, pipe.tokenizer) for s in fixed_scenes(4, False, language)
        ):
            settings: dict = {"num_inference_steps": steps, "guidance_scale": guidance, "language": language}
            report[language] = evaluate_pipe(pipe, prompts, **settings)
            report[language]["pairs"] = evaluate_pairs(pipe, prompts, **settings)
            print(table(report[language]), end="\n\n")
    if can_translate(pipe.text_encoder):
        report["translation"] = evaluate_translation(TranslationPipeline(pipe.tokenizer, pipe.text_encoder), prompts)
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


app.command(epilog="Example: unet-xattn memorised runs/emoji --data emoji-data --out memorised.png")(memorised)
app.command(epilog="Example: unet-xattn publish runs/first --to me/first")(publish)


@app.command(epilog='Example: unet-xattn translate "a red circle" --model runs/first --attention alignment.png')
def translate(
    text: Annotated[str, typer.Argument(help="What to translate.")],
    model: Model = "shapes",
    attention: Annotated[Path | None, typer.Option(help="Draw here where each word that was written looked.")] = None,
    beams: Annotated[int, typer.Option(help="Sentences followed at a time; 1 takes the likeliest word each time.")] = 4,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is already there.")] = False,
) -> None:
    """Say a text in the other language, from the same memory that pictures are drawn from."""
    refuse_existing([] if overwrite else [attention], "--attention, or --overwrite")
    check_prompt(text)
    (translation,) = TranslationPipeline.from_pretrained(model)(text, beams=beams)
    print(translation.text)
    if attention is not None:
        attention.parent.mkdir(parents=True, exist_ok=True)
        alignment_sheet(translation).save(attention)


@data.command("emoji", epilog="Example: unet-xattn data emoji emoji-data")
def data_emoji(
    folder: Annotated[Path, typer.Argument(help="A new folder to write to.")],
    count: Annotated[int, typer.Option(help="How many pictures.")] = 600,
    scenes: Annotated[bool, typer.Option("--scenes", help="One to three of them a picture, with masks.")] = False,
) -> None:
    """Write a folder of captioned emoji on coloured grounds, ready for --data.

    The scenes are those of `train --data emoji`, which needs no folder.
    """
    write = write_scenes if scenes else write_emoji
    print(f"{write(folder, count)} pictures and metadata.jsonl in {folder}")


@data.command("names", epilog="Example: unet-xattn data names names.tsv")
def data_names(file: Annotated[Path, typer.Argument(help="A new .tsv to write.")]) -> None:
    """Write English and Chinese names of countries, languages, scripts, currencies and emoji, for train-text."""
    print(f"{write_names(file)} pairs in {file}")


@app.command(epilog="Example: unet-xattn bench train --json bench.json")
def bench(
    what: Annotated[str, typer.Argument(help="train, sample, capture, attention or text.")],
    model: Model = "shapes",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here as well.")] = None,
) -> None:
    """Measure speed as ratios, and what the attention mechanism promises.

    train and sample: pictures a second, for training as a ratio to the machine's own matrix-product rate. capture: what
    recording attention costs. attention: the scale 1/√d_k, time and memory by length and by heads, and how a model's
    trained heads differ. text: tokens a second with and without the decoder's cache, and a training step beside
    torch.nn.Transformer's.
    """
    refuse_existing([json_file], "name for --json")
    kinds: dict[str, Callable[[], dict]] = {
        "train": lambda: bench_train(device),
        "sample": lambda: bench_sample(load(model), device),
        "capture": lambda: bench_capture(model, device),
        "attention": lambda: bench_attention(load(model).to("cpu")),
        "text": bench_text,
    }
    if what not in kinds:
        raise ValueError(f"bench measures {', '.join(kinds)}, not {what!r}")
    if device != "cpu" and what in ("attention", "text"):
        raise ValueError(f"bench {what} measures on the CPU only")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device can be used here: bench with --device cpu")
    report = kinds[what]()
    Console().print_json(data=report)
    write_json(json_file, report)


def _given(context: typer.Context, config: TrainConfig | TextConfig) -> dict[str, Any]:
    """The settings somebody typed an option for, but --out, which only says where the run is."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    typed = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    return {name: value for name, value in vars(config).items() if name in typed and name != "out"}


def main() -> None:
    """Run the command; what a person got wrong is one line and exit code 1, never a traceback."""
    disable_progress_bar(), disable_transformers_progress_bar()  # of loading a model, which takes no time
    try:
        app()
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.received)
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
