"""The cost of recording a pipeline of the size of Stable Diffusion 1.5, beside DAAM's.

    python tests/benchmarks/capture_any.py --out capture.json [--daam VENV/bin/python]

The weights of the UNet are random, text encoder and VAE are small, pictures have 512×512 pixels. For each tool two
processes draw in turn, one with recording and one without, so that each has a peak of memory of its own: the ratios of
the seconds of each round, and of the peaks. DAAM 0.2.0 needs the old versions that it names, in an environment of its
own; this file runs in both, so it imports nothing of this project before it is asked to. Seconds are of one thread's
processor time, which other programs hardly affect.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

STEPS, SIDE, PROMPT = 1, 512, "a red circle left of a blue square"
WAYS = ("plain", "recorded")


def tokenizer() -> Any:
    """A CLIP tokenizer that spells every word in letters."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    try:
        return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    except TypeError:  # before transformers 5
        folder = Path(tempfile.mkdtemp())
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def build() -> Any:
    import diffusers
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    words = tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=768, num_hidden_layers=2, num_attention_heads=12, intermediate_size=768
    )
    unet = diffusers.UNet2DConditionModel(  # the config of runwayml/stable-diffusion-v1-5
        sample_size=64,
        cross_attention_dim=768,
        attention_head_dim=8,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
    )
    blocks = 4
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=4,
        norm_num_groups=2,
    )
    pipe = diffusers.StableDiffusionPipeline(
        unet=unet.eval(),
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=words,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def work(tool: str, way: str) -> None:
    """Draw a picture for each line that comes in, and answer with its seconds; at the end with the peak in bytes."""
    import torch

    torch.set_num_threads(1)  # several would wait for each other in processor time
    pipe = build()
    recording: Any = nullcontext
    if way == "recorded" and tool == "ours":
        from pipelines import trace as recording
    elif way == "recorded":
        from daam import trace as recording
    for _ in sys.stdin:
        began = time.process_time()
        with recording(*() if recording is nullcontext else (pipe,)), torch.no_grad():
            pipe(PROMPT, height=SIDE, width=SIDE, num_inference_steps=STEPS)
        print(time.process_time() - began, flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)


def compare(python: str, tool: str, rounds: int) -> dict[str, Any]:
    """Median and range of the ratios of seconds, recorded to plain, and the ratio of the peaks."""
    workers = {
        way: subprocess.Popen(
            [python, __file__, "--work", tool, way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for way in WAYS
    }

    def answer(way: str) -> float:
        assert workers[way].stdin and workers[way].stdout
        print("draw", file=workers[way].stdin, flush=True)
        return float(workers[way].stdout.readline())

    for way in WAYS:  # the first is slower
        answer(way)
    times = [{way: answer(way) for way in (WAYS if i % 2 else WAYS[::-1])} for i in range(rounds)]
    peaks = {way: float(worker.communicate()[0]) for way, worker in workers.items()}
    ratios = sorted(of_round["recorded"] / of_round["plain"] for of_round in times)
    return {
        "times the time": statistics.median(ratios),
        "all rounds": ratios,
        "times the peak of memory": peaks["recorded"] / peaks["plain"],
        "seconds, not recorded": statistics.median(of_round["plain"] for of_round in times),
        "GiB at the peak, not recorded": peaks["plain"] / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--daam", help="the python of an environment with DAAM")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return
    from pipelines.runs.machine import machine

    tools = {"ours": sys.executable} | ({"DAAM": options.daam} if options.daam else {})
    report: dict[str, Any] = {"machine": machine("cpu"), "steps": STEPS, "side": SIDE}
    for tool, python in tools.items():
        report[tool] = compare(python, tool.lower(), options.rounds)
        print(json.dumps(report, indent=1), flush=True)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
