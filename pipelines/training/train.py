"""Training a text-to-image model: one flat loop on Accelerate, the same on a laptop and under `accelerate launch`.

Shapes: B batch, T tokens, M width of the memory.
"""

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor, nn

from pipelines.data.batches import Batch, batches
from pipelines.data.stream import seed_of
from pipelines.evaluation.memorise import leave_memorised
from pipelines.runs.failures import DivergedError
from pipelines.runs.folder import save_model
from pipelines.runs.processes import check_share, loader_workers, share
from pipelines.tokenizer import fits
from pipelines.training.card import CARD, write_card
from pipelines.training.config import TrainConfig
from pipelines.training.distill import check_parts
from pipelines.training.objective import Losses, microbatches
from pipelines.training.parts import (
    as_pipeline,
    build,
    guidance_notes,
    has_new_words,
    length_notes,
    load_examples,
    make_collator,
    make_model,
    validation_set,
)
from pipelines.training.recipe import attention_kernel, bf16_is_fast, muon, power_function_ema, schedule
from pipelines.training.report import Reporter, write_settings
from pipelines.training.run import OpenRun, open_run
from pipelines.training.sharding import fsdp_plugin
from pipelines.training.state import TrainState
from pipelines.training.validate import draw_samples, validate

FIXED = ("begin_from", "distill", "few_steps", "seed", "size", "text_encoder", "vae")
"""Settings that cannot change on resume."""

BATCH_SETTINGS = ("batch_size", "buckets", "caption_dropout", "fit", "flip", "time_shift")
"""Settings that the examples of a batch, and their order, depend on, and that may change on resume."""

LESS_MEMORY = "lower --batch-size or --size, or work on batches in parts with --accumulate"


def train(
    config: TrainConfig, resume: bool = False, changes: Mapping[str, Any] | None = None, allow_changes: bool = False
) -> Path:
    """Train a model and save it, as a diffusers pipeline folder, in `config.out`; returns that folder.

    Args:
        resume: resume the run in `config.out`, with the settings it was started with.
        changes: settings that the resumed run has from here on; they are printed.
        allow_changes: resume even if the data or the number of processes has changed.

    After SIGINT or SIGTERM it finishes its step, saves and stops. A second signal ends it at once.

    Raises:
        ValueError: settings or data that cannot be used, a folder that is not empty, a run that another process trains,
            nothing to resume, a change that is not allowed, too little memory, or a loss that is not finite.
        OSError: the folder cannot be written to; the last checkpoint is intact.
        StoppedError: a signal stopped the run; the error has its number and the step.
    """
    with open_run(config, FIXED, LESS_MEMORY, resume, changes, allow_changes) as run:
        fit(run)
    return run.out


def fit(run: OpenRun[TrainConfig]) -> None:
    """Train a run from its beginning, or from the checkpoint it resumes from, to its last step."""
    config = run.config
    accelerator = Accelerator(
        mixed_precision="bf16" if bf16_is_fast() else "no",  # weights stay fp32
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with="tensorboard",
        project_dir=run.out / "logs",
        fsdp_plugin=fsdp_plugin(),
    )
    check_share(config.batch_size, accelerator.num_processes)
    if config.distill:
        check_parts(config.batch_size // accelerator.num_processes, config.accumulate, config.few_steps)
    torch.manual_seed(config.seed)
    examples = load_examples(config)
    run.begin(accelerator, examples.fingerprint())
    tokenizer, text_encoder, unet, vae = build(config, examples, run.kept())
    model, frozen = make_model(config, text_encoder, unet, vae, accelerator.device)
    if model.text_encoder is not None:
        run.keep(tokenizer, examples.captions() if has_new_words(run) else ())
    collator = make_collator(config, tokenizer, unet, vae)
    with accelerator.local_main_process_first():  # the other processes find the pictures that it decodes
        validation = examples.validation(128)
        first = collator([(place, examples.example(place)) for place in range(min(8, config.batch_size))])
    run.check(validated_on=validation_set(examples), **frozen.fingerprints(tokenizer))
    run.check(first_batch=first.fingerprint(), unless=("data", *BATCH_SETTINGS))
    shown = [example for example in validation if fits(example.caption, tokenizer)][:16]

    new_optimizer = partial(muon, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    state = TrainState(model, new_optimizer, power_function_ema(config.ema_sigma))
    run.restore(state)
    state.prepare(accelerator)
    pipe = as_pipeline(tokenizer, state.averaged, frozen, config)
    seen = run.counters.get("seen", 0)
    end = seen + (config.steps - run.step) * config.batch_size
    loader = accelerator.prepare(batches(examples, collator, config.batch_size, seen, end, loader_workers(accelerator)))
    reporter = Reporter(run)
    if accelerator.is_main_process:
        write_settings(run, examples, shown)
        for note in (*examples.notes, *length_notes(examples, tokenizer), *guidance_notes(config)):
            print(note, file=sys.stderr)

    stopping = False
    for step, batch in enumerate(loader, run.step):
        learning_rate = config.learning_rate * schedule(step, config.steps, config.warmup)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        torch.manual_seed(seed_of(config.seed, step, accelerator.process_index))  # for dropout, if the model has any
        batch, memory = frozen(batch)
        losses = forward_backward(state.model, batch, memory, config, accelerator)
        norm = state.clip_gradients(1.0)
        # On a GPU this waits for the backward pass, but so does the update of the average in `step`.
        if not torch.isfinite(norm):
            raise DivergedError(step + 1, norm, losses._asdict(), examples.name(range(seen, seen + config.batch_size)))
        state.step()

        done, seen = step + 1, seen + config.batch_size
        reporter.step(done)
        if done % 50 == 0 or done in (1, config.steps):
            reporter.log(done, losses, norm, learning_rate)
        validating = done % config.every == 0 or done == config.steps
        stopping = run.is_stopping(done)
        saving = validating or stopping or run.is_save_due(done)
        if saving:
            state.gather()
        if validating and accelerator.is_main_process:
            report = validate(state.averaged, collator, validation, accelerator.device, frozen)
            report |= draw_samples(pipe, shown, run.out / "samples", done)
            reporter.validation(done, report)
        if saving and accelerator.is_main_process:
            save_model(pipe, run.out)
        if saving:
            run.save(state, done, seen=seen, seconds=reporter.seconds)
        accelerator.wait_for_everyone()
        if validating:
            reporter.restart_pace(done)
        if stopping:
            break

    reporter.close()
    if stopping:
        raise run.stopped(done)
    if accelerator.is_main_process:
        state.averaged.eval()
        leave_memorised(pipe, examples, run.out / "samples")
        if not (run.out / CARD).exists():  # somebody may have edited it
            write_card(run.out, run.out)


def forward_backward(
    model: nn.Module, batch: Batch, memory: Tensor | None, config: TrainConfig, accelerator: Accelerator
) -> Losses:
    """Add the gradients of a batch to the weights, in `config.accumulate` parts, and return its losses.

    memory (B, T, M): what a frozen text encoder makes of the captions; None if the model has its own text encoder.
    """
    use_masks = config.mask_weight > 0 and bool(batch.masks.any())
    text_share = share(accelerator, batch.target_mask[:, 1:])
    *parts, last = microbatches(batch, config.accumulate)
    memories = [None] * (len(parts) + 1) if memory is None else memory.chunk(config.accumulate)
    found: list[Losses] = []
    for (part, shares), part_memory in zip((*parts, last), memories, strict=True):
        # Processes add up their gradients once a step, with the last part.
        with nullcontext() if part is last[0] else accelerator.no_sync(model):
            with attention_kernel(accelerator.device.type):
                losses = model(part, use_masks, part_memory)
            losses = losses.weighed(Losses(shares.flow, shares.tokens, shares.text * text_share))
            accelerator.backward(losses.flow + config.mask_weight * losses.tokens + config.text_weight * losses.text)
        found.append(losses)
    return Losses(*(torch.stack(alike).detach().sum() for alike in zip(*found, strict=True)))
