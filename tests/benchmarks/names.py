"""How well the Transformer translates names, beside torch's own of the same size and beside looking the nearest up.

    python tests/benchmarks/names.py --steps 4000 --out names.json

Both Transformers see the same pairs in the same order with the same loss, optimizer, schedule and seed, and write
greedily. Every tenth pair is held out; BLEU (Chinese tokenization) and chrF by sacrebleu, exact in per cent.
"""

import argparse
import json
from difflib import SequenceMatcher
from pathlib import Path

import torch
from name_pairs import names
from sacrebleu.metrics import BLEU, CHRF
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from pipelines.bench.attention import TorchTransformer
from pipelines.data.pairs import PairStream, collate, split_pairs
from pipelines.runs.machine import machine
from pipelines.tokenizer import train_tokenizer
from pipelines.training.recipe import schedule
from unet_xattn import Transformer

Pair = tuple[str, str]
LONGEST = 64


def fit(model: nn.Module, tokenizer: PreTrainedTokenizerFast, pairs: list[Pair], steps: int, seed: int) -> None:
    """The recipe of `train_text` without averaging or early stopping, for any Transformer(source, target, masks)."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    stream = PairStream(pairs, seed)
    torch.manual_seed(seed)
    model.train()
    for step in tqdm(range(steps)):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * schedule(step, steps, 200)
        batch = collate(tokenizer, [stream.example(step * 64 + i) for i in range(64)])
        logits = model(batch.ids, batch.target_ids[:, :-1], batch.token_mask, batch.target_mask[:, :-1])
        losses = F.cross_entropy(
            logits.flatten(0, 1), batch.target_ids[:, 1:].flatten(), reduction="none", label_smoothing=0.1
        )
        real = batch.target_mask[:, 1:].flatten()
        ((losses * real).sum() / real.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def write(model: nn.Module, tokenizer: PreTrainedTokenizerFast, sources: list[str]) -> list[str]:
    """Greedy, by teacher forcing on what was written so far: slow, but the same for both."""
    model.eval()
    written = []
    for start in range(0, len(sources), 64):
        source = tokenizer(sources[start : start + 64], padding=True, return_tensors="pt")
        mask = source["attention_mask"].bool()
        ids = torch.full((len(mask), 1), tokenizer.bos_token_id)
        ended = torch.zeros(len(mask), dtype=torch.bool)
        while not ended.all() and ids.shape[1] < LONGEST:
            logits: Tensor = model(source["input_ids"], ids, mask, torch.ones_like(ids, dtype=torch.bool))
            token = logits[:, -1].argmax(dim=-1).masked_fill(ended, tokenizer.eos_token_id)
            ids = torch.cat([ids, token[:, None]], dim=1)
            ended |= token == tokenizer.eos_token_id
        written += [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids.tolist()]
    return written


def retrieve(pairs: list[Pair], sources: list[str]) -> list[str]:
    """The translation of the training source that shares most letters in order."""
    out = []
    for source in tqdm(sources):
        matcher = SequenceMatcher(b=source.lower(), autojunk=False)
        ratios = []
        for known, _ in pairs:
            matcher.set_seq1(known.lower())
            ratios.append(matcher.ratio())
        out.append(pairs[max(range(len(pairs)), key=ratios.__getitem__)][1])
    return out


def figures(found: list[str], expected: list[str]) -> dict[str, float]:
    """BLEU, chrF and the share that is exactly right, in per cent."""
    return {
        "BLEU": BLEU(tokenize="zh").corpus_score(found, [expected]).score,
        "chrF": CHRF().corpus_score(found, [expected]).score,
        "exact": 100 * sum(a == b for a, b in zip(found, expected, strict=True)) / len(expected),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    pairs, held_out = split_pairs(names())
    sources, expected = [s for s, _ in held_out], [t for _, t in held_out]
    tokenizer = train_tokenizer([text for pair in pairs for text in pair], lowercase=False)
    report: dict = {"machine": machine(), "pairs": len(pairs), "held out": len(held_out)} | vars(arguments)
    report["out"] = str(arguments.out)
    report["nearest source"] = figures(retrieve(pairs, sources), expected)
    torch.manual_seed(arguments.seed)
    ours = Transformer(len(tokenizer), 192, 4, 3, decoder_layers=3, dropout=0.1)
    for name, model in {"ours": ours, "torch.nn.Transformer": TorchTransformer(ours)}.items():
        fit(model, tokenizer, pairs, arguments.steps, arguments.seed)
        found = write(model, tokenizer, sources)
        report[name] = figures(found, expected) | {"examples": list(zip(sources, found, expected, strict=True))[:10]}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
