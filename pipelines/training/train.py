"""Training a text-to-image model: one flat loop on Accelerate, the same file on a laptop and under `accelerate launch`.

Shapes: B batch, T tokens, h×w pixels.
"""

import json
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from pipelines.components import check_size, scale_factor
from pipelines.data.batches import Batch, Collator, batches
from pipelines.data.pictures import PictureExamples
from pipelines.data.stream import seed_of
from pipelines.evaluation.memorise import leave_memorised
from pipelines.runs.checkpoint import load_checkpoint, save_checkpoint
from pipelines.runs.failures import DivergedError, explained
from pipelines.runs.folder import CHECKPOINTS, LOG, SETTINGS, VALIDATION, run_lock, save_model, unused
from pipelines.runs.machine import Pace, brief, code_version, machine
from pipelines.runs.processes import any_process, check_share, loader_workers, share, this_process
from pipelines.runs.resume import Resumed, check_unchanged, resume_run
from pipelines.runs.rows import append_row, drop_rows_after, write_whole
from pipelines.runs.signals import StoppedError, StopSignals
from pipelines.scenes.worlds import WORLDS
from pipelines.training.card import CARD, write_card
from pipelines.training.config import TrainConfig
from pipelines.training.distill import Distillation, check_parts
from pipelines.training.frozen import Frozen
from pipelines.training.objective import Losses, TextToImageModel, split
from pipelines.training.parts import as_pipeline, build, load_examples
from pipelines.training.recipe import attention_kernel, bf16_is_fast, muon, power_function_ema, schedule
from pipelines.training.sharding import fsdp_plugin, gather, prepare, whole
from pipelines.training.validate import draw_samples, validate
from unet_xattn import Transformer, flow

FIXED = ("begin_from", "distill", "few_steps", "seed", "size", "text_encoder", "vae")
"""Settings that a run keeps to its end."""

LESS_MEMORY = "lower --batch-size or --size, or work on batches in parts with --accumulate"


def train(
    config: TrainConfig, resume: bool = False, changes: Mapping[str, Any] | None = None, allow_changes: bool = False
) -> Path:
    """Train a model and leave it, as a diffusers pipeline folder, in `config.out`; returns that folder.

    Args:
        resume: go on with the run in `config.out`, with the settings it was started with.
        changes: settings it shall have from then on instead; what changes is said.
        allow_changes: go on even if its data or the number of processes is not what it was.

    SIGINT or SIGTERM let it finish the step and save; a second one ends it at once.

    Raises:
        ValueError: settings or data that cannot be used, a run that is already there, another process that trains it,
            nothing to resume, something that is not as it was, no memory left, or a loss that is no number.
        OSError: the folder cannot be written to; the last checkpoint is whole.
        StoppedError: one of these signals came; it says which, and where the run stands.
    """
    out = Path(config.out)
    main = this_process().is_main_process
    if not resume and (changes or allow_changes):
        raise ValueError("changes are to a run that goes on: they need --resume")
    if not resume and not unused(out):
        raise ValueError(f"{out} is not empty: choose another --out, or --resume to go on with the run in it")
    lock = run_lock(out) if main else nullcontext()
    with lock, StopSignals() as stop, explained(out, LESS_MEMORY):
        before = resume_run(TrainConfig, out, changes, FIXED) if resume else None
        fit(before.config if before else config, out, before, stop, allow_changes)
    return out


def fit(config: TrainConfig, out: Path, before: Resumed | None, stop: StopSignals, allow_changes: bool = False) -> None:
    """The whole of a run's training, from the beginning or from where it was before."""
    state = before.state if before else {}
    start, seen = state.get("step", 0), state.get("seen", 0)
    accelerator = Accelerator(
        mixed_precision="bf16" if bf16_is_fast() else "no",  # weights stay fp32
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with="tensorboard",
        project_dir=out / "logs",
        fsdp_plugin=fsdp_plugin(),
    )
    check_share(config.batch_size, accelerator.num_processes)
    if config.distill:
        check_parts(config.batch_size // accelerator.num_processes, config.accumulate, config.few_steps)
    torch.manual_seed(config.seed)
    examples = load_examples(config)
    circumstances = {"data": examples.fingerprint(), "processes": accelerator.num_processes}
    if before:
        for line in before.said + check_unchanged(state, circumstances, allow_changes):
            accelerator.print(line)
    tokenizer, text_encoder, unet, vae = build(config, examples, config.text_weight > 0 and examples.translates)
    check_size(unet, vae, config.size, config.size)
    with accelerator.local_main_process_first():  # whose decoded pictures the others find
        validation = examples.validation(128)
    trains_text = isinstance(text_encoder, Transformer)
    networks = text_encoder if trains_text else None, unet.to(memory_format=torch.channels_last)
    model = Distillation(*networks, config.few_steps) if config.distill else TextToImageModel(*networks)
    model = model.to(accelerator.device)
    frozen = Frozen(
        None if trains_text else text_encoder.to(accelerator.device),
        None if vae is None else vae.to(accelerator.device),
        None if config.data in WORLDS else out / "latents",  # scenes never come again
    )
    ema = AveragedModel(model, multi_avg_fn=power_function_ema(config.ema_sigma))
    averaged: TextToImageModel = ema.module  # type: ignore[assignment]
    rates = config.learning_rate, config.weight_decay
    optimizer = muon(model, *rates)
    if before:
        load_checkpoint(before.checkpoint, model, ema, optimizer)

    cell = unet.config.patch_size * 2 ** unet.config.cross_attention.index(True)  # of the finest grid that attends
    shift = flow.time_shift(config.size // scale_factor(vae))
    collator = Collator(tokenizer, config.seed, config.caption_dropout, cell * scale_factor(vae), shift)
    end = seen + (config.steps - start) * config.batch_size
    loader = accelerator.prepare(batches(examples, collator, config.batch_size, seen, end, loader_workers(accelerator)))
    wholes = model, ema, optimizer  # what is trained, averaged and stepped; under FSDP pieces of them are
    trained, average, stepping = prepare(accelerator, *wholes, lambda copy: muon(copy, *rates))
    accelerator.init_trackers("tensorboard")
    shown = [
        e for e in validation if len(tokenizer(e.caption, verbose=False)["input_ids"]) <= tokenizer.model_max_length
    ][:16]
    pipe = as_pipeline(tokenizer, averaged, frozen, config)
    if accelerator.is_main_process:
        for note in examples.notes:
            print(note, file=sys.stderr)
        settings = {
            "config": asdict(config),
            "prompts": [e.caption for e in shown],
            "data": {},
            "machine": machine(accelerator.device.type),
            "code": code_version(),
        }
        if isinstance(examples, PictureExamples):
            pictures = {"pictures": len(examples.trained), "held out": len(examples.kept)}
            settings["data"] = pictures | {"fingerprint": circumstances["data"]}
        write_whole(out / SETTINGS, json.dumps(settings, indent=1))
        for name in (LOG, VALIDATION):
            drop_rows_after(out / name, start)

    progress = tqdm(
        total=config.steps,
        initial=start,
        unit="step",
        disable=not accelerator.is_main_process,
        file=sys.stdout,
        mininterval=0.1 if sys.stdout.isatty() else 10.0,  # seconds: a file keeps every line
        smoothing=0,  # what is left is reckoned at the mean pace, as in the log
    )
    if accelerator.is_main_process and not accelerator.log_with:
        progress.write("no TensorBoard logs, for it is not installed; log.jsonl has the same figures")
    seconds = state.get("seconds", 0.0)
    began = saved = time.monotonic()
    pace = Pace(start, config.steps, config.batch_size)
    stopping = False
    for step, batch in enumerate(loader, start):
        for group in stepping.param_groups:
            group["lr"] = config.learning_rate * group["pace"] * schedule(step, config.steps, config.warmup)
        torch.manual_seed(seed_of(config.seed, step, accelerator.process_index))  # of dropout, where a model has it
        batch, memory = frozen(batch)
        losses = step_losses(trained, batch, memory, config, accelerator)
        norm = whole(accelerator.clip_grad_norm_(trained.parameters(), 1.0))
        # On a GPU this waits for the backward pass, as the average of the weights does anyhow a few lines later.
        if not torch.isfinite(norm):
            raise DivergedError(step + 1, norm, losses._asdict(), examples.name(range(seen, seen + config.batch_size)))
        stepping.step()
        stepping.zero_grad()
        average.update_parameters(accelerator.unwrap_model(trained))

        done, seen = step + 1, seen + config.batch_size
        progress.update()
        if done % 50 == 0 or done in (1, config.steps):
            flow_loss, token_loss, text_loss = accelerator.reduce(torch.stack(list(losses)), "mean").tolist()
            values = {
                "loss": flow_loss,
                "token loss": token_loss,
                "text loss": text_loss,
                "gradient norm": float(norm),
                "learning rate": config.learning_rate * schedule(step, config.steps, config.warmup),
            }
            values |= pace.read(done)  # after the losses, which wait for the GPU to be done
            accelerator.log(values, step=done)
            progress.set_postfix_str(f"loss {values['loss']:.3f}, {brief(values)}")
            if accelerator.is_main_process:
                append_row(out / LOG, {"step": done} | values | {"seconds": seconds + time.monotonic() - began})
        due = done % config.every == 0 or done == config.steps
        stopping = done < config.steps and any_process(accelerator, stop.received is not None)
        saving = due or stopping or any_process(accelerator, config.due(done, time.monotonic() - saved))
        if saving:
            gather(accelerator, (trained, average, stepping), wholes)
        if due and accelerator.is_main_process:
            report = validate(averaged, collator, validation, accelerator.device, frozen)
            report |= draw_samples(pipe, shown, out / "samples", done)
            accelerator.log({f"validation/{name}": value for name, value in report.items()}, step=done)
            append_row(out / VALIDATION, {"step": done} | report)
            progress.write(f"step {done}: " + ", ".join(f"{name} {value:.4g}" for name, value in report.items()))
        if saving and accelerator.is_main_process:
            save_model(pipe, out)
            spent = seconds + time.monotonic() - began
            place = {"step": done, "seen": seen, "seconds": spent, "config": asdict(config)} | circumstances
            kept = config.keep, config.is_milestone(done)
            save_checkpoint(out / CHECKPOINTS, model, ema, optimizer, place, *kept)
        saved = time.monotonic() if saving else saved
        accelerator.wait_for_everyone()
        if due:
            pace.restart(done)
        if stopping:
            break
    progress.close()
    accelerator.end_training()
    if stopping:
        raise StoppedError(stop.received or signal.SIGTERM, done, config.steps)
    if accelerator.is_main_process:
        averaged.eval()
        leave_memorised(pipe, examples, out / "samples")
        if not (out / CARD).exists():  # it may be somebody's own by now
            write_card(out, out)


def step_losses(
    trained: nn.Module, batch: Batch, memory: Tensor | None, config: TrainConfig, accelerator: Accelerator
) -> Losses:
    """What a batch costs, with the gradients of it left on the weights; `config.accumulate` parts of it in turn.

    memory (B, T, M) is what a text encoder that is not trained made of the captions; None where there is no such.
    """
    use_masks = config.mask_weight > 0 and bool(batch.masks.any())
    text_share = share(accelerator, batch.target_mask[:, 1:])
    *parts, last = split(batch, config.accumulate)
    memories = [None] * (len(parts) + 1) if memory is None else memory.chunk(config.accumulate)
    found: list[Losses] = []
    for (part, shares), remembered in zip((*parts, last), memories, strict=True):
        # Processes add up their gradients once a step, with the last part.
        with nullcontext() if part is last[0] else accelerator.no_sync(trained):
            with attention_kernel(accelerator.device.type):
                losses = trained(part, use_masks, remembered)
            losses = losses.weighed(Losses(shares.flow, shares.tokens, shares.text * text_share))
            accelerator.backward(losses.flow + config.mask_weight * losses.tokens + config.text_weight * losses.text)
        found.append(losses)
    return Losses(*(torch.stack(alike).detach().sum() for alike in zip(*found, strict=True)))
