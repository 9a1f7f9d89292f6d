"""Training the text encoder–decoder alone, on anybody's pairs of sentences: one flat loop on Accelerate.

Shapes: B batch, S source tokens, T target tokens.
"""

import hashlib
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
from accelerate.utils import DataLoaderConfiguration, DistributedType
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from pipelines.data.batches import batches
from pipelines.data.pairs import Pair, PairBatch, PairStream, collate, read_pairs, split_pairs
from pipelines.data.stream import seed_of
from pipelines.runs.checkpoint import load_checkpoint, save_checkpoint
from pipelines.runs.failures import DivergedError, explained
from pipelines.runs.folder import CHECKPOINTS, SETTINGS, VALIDATION, run_lock, save_model, unused
from pipelines.runs.processes import any_process, check_share, share, this_process
from pipelines.runs.resume import Resumed, check_unchanged, resume_run
from pipelines.runs.rows import append_row, drop_rows_after, write_whole
from pipelines.runs.signals import StoppedError, StopSignals
from pipelines.text_to_text import TranslationPipeline
from pipelines.tokenizer import train_tokenizer
from pipelines.training.config import TextConfig
from pipelines.training.objective import text_loss
from pipelines.training.recipe import attention_kernel, bf16_is_fast, power_function_ema, schedule
from unet_xattn import Transformer

FIXED = ("seed", "skip_bad")
"""Settings with an option that a run keeps to its end."""


class TextModel(nn.Module):
    """The Transformer with its loss, as Accelerate wants to call it."""

    def __init__(self, text_encoder: Transformer):
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, batch: PairBatch) -> Tensor:
        memory = self.text_encoder.encode(batch.ids, batch.token_mask)
        return text_loss(self.text_encoder, memory, batch.token_mask, batch.target_ids, batch.target_mask)


def train_text(
    config: TextConfig, resume: bool = False, changes: Mapping[str, Any] | None = None, allow_changes: bool = False
) -> Path:
    """Train a Transformer on pairs and leave the best one, as a `TranslationPipeline` folder, in `config.out`.

    It stops after `config.steps`, or before when the loss on the held-out tenth has not fallen for a while. The
    arguments, signals and errors are those of `train.train`.
    """
    out = Path(config.out)
    if not resume and (changes or allow_changes):
        raise ValueError("changes are to a run that goes on: they need --resume")
    if not resume and not unused(out):
        raise ValueError(f"{out} is not empty: choose another --out, or --resume to go on with the run in it")
    lock = run_lock(out) if this_process().is_main_process else nullcontext()
    with lock, StopSignals() as stop, explained(out, "lower --batch-size"):
        before = resume_run(TextConfig, out, changes, FIXED) if resume else None
        fit(before.config if before else config, out, before, stop, allow_changes)
    return out


def fit(config: TextConfig, out: Path, before: Resumed | None, stop: StopSignals, allow_changes: bool = False) -> None:
    """The whole of a run's training, from the beginning or from where it was before."""
    state = before.state if before else {}
    start, seen, waited = (state.get(name, 0) for name in ("step", "seen", "waited"))
    best = state.get("best", float("inf"))
    pairs = read_pairs(config.pairs, config.skip_bad)
    train_pairs, held_out = split_pairs(pairs)
    tokenizer = train_tokenizer([text for pair in train_pairs for text in pair], lowercase=False)
    longest = max(len(tokenizer(text, verbose=False)["input_ids"]) for pair in train_pairs + held_out for text in pair)
    tokenizer.model_max_length = max(longest, tokenizer.model_max_length)

    check_share(config.batch_size, this_process().num_processes)
    accelerator = Accelerator(
        mixed_precision="bf16" if bf16_is_fast() else "no",  # weights stay fp32
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError("train-text trains small models, whole ones only: launch it without --use_fsdp")
    digest = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]
    circumstances = {"data": digest, "processes": accelerator.num_processes}
    if before:
        for line in before.said + check_unchanged(state, circumstances, allow_changes):
            accelerator.print(line)
    torch.manual_seed(config.seed)
    text_encoder = Transformer(
        len(tokenizer), config.width, 4, config.layers, decoder_layers=config.layers, dropout=config.dropout
    )
    model = TextModel(text_encoder).to(accelerator.device)
    ema = AveragedModel(model, multi_avg_fn=power_function_ema(config.ema_sigma))
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True
    )
    if before:
        load_checkpoint(before.checkpoint, model, ema, optimizer)
    stream = PairStream(train_pairs, config.seed)
    loader = batches(
        stream,
        lambda items: collate(tokenizer, [pair for _, pair in items]),
        config.batch_size,
        seen,
        seen + (config.steps - start) * config.batch_size,
        workers=0,
    )
    trained, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    pipe = TranslationPipeline(tokenizer, ema.module.text_encoder)  # type: ignore[union-attr, arg-type]
    if accelerator.is_main_process:
        write_whole(out / SETTINGS, json.dumps({"config": asdict(config)}, indent=1))
        drop_rows_after(out / VALIDATION, start)

    progress = tqdm(
        total=config.steps, initial=start, unit="step", disable=not accelerator.is_main_process, file=sys.stdout
    )
    saved, stopping = time.monotonic(), False
    for step, batch in enumerate(loader, start):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(step, config.steps, config.warmup)
        # Dropout, so that a resumed run drops the same units, and each process others.
        torch.manual_seed(seed_of(config.seed, step, accelerator.process_index))
        with attention_kernel(accelerator.device.type):
            loss = trained(batch) * share(accelerator, batch.target_mask[:, 1:])
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(trained.parameters(), 1.0)
        if not torch.isfinite(norm):
            places = range(seen, seen + config.batch_size)
            shown = "; ".join(" → ".join(stream.example(place)) for place in places)
            raise DivergedError(step + 1, norm, {"loss": loss}, f"the pairs {shown}")
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(accelerator.unwrap_model(trained))

        done, seen = step + 1, seen + config.batch_size
        progress.update()
        if done % config.every == 0 or done == config.steps:
            mean_loss = accelerator.reduce(loss.detach(), "mean").item()
            value = validate(ema.module, tokenizer, held_out, accelerator.device)  # type: ignore[arg-type]
            better = value < best
            best, waited = min(best, value), 0 if better else waited + 1
            if accelerator.is_main_process:
                if better:
                    save_model(pipe, out)
                progress.write(f"step {done}: loss {mean_loss:.3f}, held out {value:.3f}" + ", best" * better)
                append_row(out / VALIDATION, {"step": done, "loss": mean_loss, "held out": value})
            due = True
        else:
            due = any_process(accelerator, config.due(done, time.monotonic() - saved))
        stopping = done < config.steps and any_process(accelerator, stop.received is not None)
        if (due or stopping) and accelerator.is_main_process:
            place = {"step": done, "seen": seen, "best": best, "waited": waited, "config": asdict(config)}
            kept = config.keep, config.is_milestone(done)
            save_checkpoint(out / CHECKPOINTS, model, ema, optimizer, place | circumstances, *kept)
        saved = time.monotonic() if due or stopping else saved
        accelerator.wait_for_everyone()
        if waited >= config.patience:
            progress.write(f"the held-out loss has not fallen for {waited} validations: stopped")
            stopping = False
            break
        if stopping:
            break
    progress.close()
    if stopping:
        raise StoppedError(stop.received or signal.SIGTERM, done, config.steps)


@torch.no_grad()
def validate(model: TextModel, tokenizer: PreTrainedTokenizerFast, pairs: list[Pair], device: torch.device) -> float:
    """The mean loss of a token of these pairs, in nats."""
    model.eval()
    total, tokens = 0.0, 0
    for i in range(0, len(pairs), 64):
        batch = collate(tokenizer, pairs[i : i + 64]).to(device)
        count = int(batch.target_mask[:, 1:].sum())
        total, tokens = total + model(batch).item() * count, tokens + count
    model.train()
    return total / tokens
