"""Training the text encoder–decoder alone, on pairs of sentences: one flat loop on Accelerate.

Shapes: B batch, S source tokens, T target tokens.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DistributedType
from torch import Tensor, nn
from torch.optim import AdamW
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from pipelines.data.batches import batches, hash_of
from pipelines.data.pairs import Pair, PairBatch, PairStream, collate, read_pairs, split_pairs
from pipelines.data.stream import seed_of
from pipelines.runs.failures import DivergedError
from pipelines.runs.folder import SETTINGS, VALIDATION, save_model
from pipelines.runs.processes import check_share, share, this_process
from pipelines.runs.rows import append_row, drop_rows_after, write_whole
from pipelines.text_to_text import TranslationPipeline
from pipelines.tokenizer import train_tokenizer
from pipelines.training.config import TextConfig
from pipelines.training.objective import text_loss
from pipelines.training.recipe import attention_kernel, bf16_is_fast, power_function_ema, schedule
from pipelines.training.run import OpenRun, open_run
from pipelines.training.state import TrainState
from unet_xattn import Transformer

FIXED = ("seed", "skip_bad")
"""Settings with a command-line option that cannot change on resume."""


class TextModel(nn.Module):
    """The Transformer with its loss, in one `forward` for Accelerate to wrap."""

    def __init__(self, text_encoder: Transformer):
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, batch: PairBatch) -> Tensor:
        memory = self.text_encoder.encode(batch.ids, batch.token_mask)
        return text_loss(self.text_encoder, memory, batch.token_mask, batch.target_ids, batch.target_mask)


def train_text(
    config: TextConfig, resume: bool = False, changes: Mapping[str, Any] | None = None, allow_changes: bool = False
) -> Path:
    """Train a Transformer on pairs and save the best one, as a `TranslationPipeline` folder, in `config.out`.

    It stops after `config.steps`, or earlier if the loss on the held-out tenth of the pairs has not fallen in
    `config.patience` validations. The arguments, signals and errors are those of `train.train`.
    """
    with open_run(config, FIXED, "lower --batch-size", resume, changes, allow_changes) as run:
        fit(run)
    return run.out


def fit(run: OpenRun[TextConfig]) -> None:
    """Train a run from its beginning, or from the checkpoint it resumes from, to its last step."""
    config = run.config
    pairs = read_pairs(config.pairs, config.skip_bad)
    train_pairs, held_out = split_pairs(pairs)
    check_share(config.batch_size, this_process().num_processes)
    accelerator = Accelerator(
        mixed_precision="bf16" if bf16_is_fast() else "no",  # weights stay fp32
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError("train-text trains small models and does not shard them: launch it without --use_fsdp")
    run.begin(accelerator, hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16])
    tokenizer = make_tokenizer(run, train_pairs, held_out)
    stream = PairStream(train_pairs, config.seed)
    first = collate(tokenizer, [stream.example(place) for place in range(8)])
    run.check(first_batch=hash_of(first.ids, first.target_ids), unless=("data",))
    torch.manual_seed(config.seed)
    text_encoder = Transformer(
        len(tokenizer), config.width, 4, config.layers, decoder_layers=config.layers, dropout=config.dropout
    )
    model = TextModel(text_encoder).to(accelerator.device)

    def new_optimizer(model: TextModel) -> AdamW:
        rate, decay = config.learning_rate, config.weight_decay
        return AdamW(model.parameters(), rate, betas=(0.9, 0.98), weight_decay=decay, fused=True)

    state = TrainState(model, new_optimizer, power_function_ema(config.ema_sigma))
    run.restore(state)
    state.prepare(accelerator)
    pipe = TranslationPipeline(tokenizer, state.averaged.text_encoder)
    seen, end = run.counters.get("seen", 0), run.counters.get("seen", 0) + (config.steps - run.step) * config.batch_size
    best, waited = run.counters.get("best", float("inf")), run.counters.get("waited", 0)
    if run.has_changed("data") or "first_batch" not in run.counters:  # older versions held out other pairs
        best, waited = float("inf"), 0  # losses on other pairs cannot be compared
        run.say(["the held-out pairs are others than before: the best loss is looked for anew"] * bool(run.checkpoint))
    loader = batches(
        stream, lambda items: collate(tokenizer, [pair for _, pair in items]), config.batch_size, seen, end, workers=0
    )
    loader = accelerator.prepare(loader)
    if accelerator.is_main_process:
        write_whole(run.out / SETTINGS, json.dumps({"config": asdict(config)}, indent=1))
        drop_rows_after(run.out / VALIDATION, run.step)
    bar = tqdm(
        total=config.steps, initial=run.step, unit="step", disable=not accelerator.is_main_process, file=sys.stdout
    )

    stopping = False
    for step, batch in enumerate(loader, run.step):
        for group in state.optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(step, config.steps, config.warmup)
        # For dropout: a resumed run drops the same units, and each process drops others.
        torch.manual_seed(seed_of(config.seed, step, accelerator.process_index))
        with attention_kernel(accelerator.device.type):
            loss = state.model(batch) * share(accelerator, batch.target_mask[:, 1:])
        accelerator.backward(loss)
        norm = state.clip_gradients(1.0)
        if not torch.isfinite(norm):
            shown = "; ".join(" → ".join(stream.example(place)) for place in range(seen, seen + config.batch_size))
            raise DivergedError(step + 1, norm, {"loss": loss}, f"the pairs {shown}")
        state.step()

        done, seen = step + 1, seen + config.batch_size
        bar.update()
        validating = done % config.every == 0 or done == config.steps
        if validating:
            mean_loss = accelerator.reduce(loss.detach(), "mean").item()
            value = held_out_loss(state.averaged, tokenizer, held_out, accelerator.device)
            better = value < best
            best, waited = min(best, value), 0 if better else waited + 1
            if accelerator.is_main_process:
                if better:
                    save_model(pipe, run.out)
                bar.write(f"step {done}: loss {mean_loss:.3f}, held out {value:.3f}" + ", best" * better)
                append_row(run.out / VALIDATION, {"step": done, "loss": mean_loss, "held out": value})
        saving = validating or run.is_save_due(done)
        stopping = run.is_stopping(done)
        if saving or stopping:
            run.save(state, done, seen=seen, best=best, waited=waited)
        accelerator.wait_for_everyone()
        if waited >= config.patience:
            bar.write(f"stopped: the held-out loss has not fallen for {waited} validations")
            stopping = False
            break
        if stopping:
            break
    bar.close()
    if stopping:
        raise run.stopped(done)


def make_tokenizer(run: OpenRun[TextConfig], train_pairs: list[Pair], held_out: list[Pair]) -> PreTrainedTokenizerFast:
    """The tokenizer of a run, which it keeps: one trained on its pairs, or that of the checkpoint it resumes from."""
    texts = [text for pair in train_pairs for text in pair]
    kept = run.kept()
    tokenizer = train_tokenizer(texts, lowercase=False) if kept is None else kept.tokenizer
    assert tokenizer is not None, "a text model has its own vocabulary"
    longest = max(len(tokenizer(text, verbose=False)["input_ids"]) for pair in train_pairs + held_out for text in pair)
    tokenizer.model_max_length = max(longest, tokenizer.model_max_length)
    run.keep(tokenizer, texts if run.has_changed("data") else ())
    return tokenizer


@torch.no_grad()
def held_out_loss(
    model: TextModel, tokenizer: PreTrainedTokenizerFast, pairs: list[Pair], device: torch.device
) -> float:
    """The mean loss of a token of these pairs, in nats."""
    model.eval()
    total, tokens = 0.0, 0
    for i in range(0, len(pairs), 64):
        batch = collate(tokenizer, pairs[i : i + 64]).to(device)
        count = int(batch.target_mask[:, 1:].sum())
        total, tokens = total + model(batch).item() * count, tokens + count
    model.train()
    return total / tokens
