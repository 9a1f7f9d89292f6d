"""A sentence in, the same in another language out, and where each token that was written looked.

Shapes: L decoder layers, H heads, S source tokens, T target tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipelines.components import can_translate, load_components
from pipelines.text_to_image import bundled_models, locate, read_prompts
from unet_xattn import Transformer
from unet_xattn.decoding import beam_search, greedy_steps


@dataclass(frozen=True)
class Translation:
    """What was written, and from which tokens: `attention` (L, H, T, S) is the decoder's cross-attention.

    Row t is where the decoder looked when it wrote `tokens[t]`, the last of them the end of the sentence.
    `probabilities` (T,) is what it gave each of them, having read those before it; `likeliest` is what it gave most,
    the same tokens in a greedy translation, and `likeliest_probabilities` (T,) how much.
    """

    text: str
    source_tokens: list[str]
    tokens: list[str]
    attention: Tensor
    probabilities: Tensor
    likeliest: list[str]
    likeliest_probabilities: Tensor


def readable(token: str) -> str:
    """A token as a person reads it, without the mark of a word's beginning, unless it is nothing else."""
    return token.replace("▁", " ").strip() or "▁"


class TranslationPipeline(DiffusionPipeline):
    """Writes sentences from memory.

    Components: a tokenizer that can spell out what it reads, and a Transformer with a decoder. A text-to-image model
    that was trained on pairs of captions has both, under the same names.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, text_encoder: Transformer):
        super().__init__()
        if not can_translate(text_encoder):
            raise ValueError("this model has no decoder, so it cannot translate: train one on pairs of sentences")
        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder)

    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: Any) -> "TranslationPipeline":
        """Load the text side of a bundled model by name, of a folder, or of a model of the hub by its id.

        Raises:
            ValueError: there is no such model, or it has no decoder; the message lists those that have.
        """
        path = locate(name)
        text_encoder = load_components(path, {"unet": None, "vae": None}, **kwargs)["text_encoder"]
        if not can_translate(text_encoder):
            able = [
                m
                for m in bundled_models()
                if Transformer.load_config(locate(m), subfolder="text_encoder").get("decoder_layers")
            ]
            which = f"of the bundled models these can: {', '.join(able)}" if able else "no bundled model can yet"
            raise ValueError(f"{name} has no decoder, so it cannot translate; {which}")
        return cls(PreTrainedTokenizerFast.from_pretrained(path, subfolder="tokenizer"), text_encoder)

    @torch.no_grad()
    def __call__(
        self, text: str | list[str], beams: int = 4, length_penalty: float = 0.6, max_tokens: int | None = None
    ) -> list[Translation]:
        """Translate a text, or each of a list.

        Args:
            beams, length_penalty: see `decoding.beam_search`; one beam is greedy.
            max_tokens: write no more than this; by default as many as the model reads.

        Raises:
            ValueError: an empty text, or one with more tokens than the model reads.
        """
        texts = [text] if isinstance(text, str) else list(text)
        ids, mask, memory = self._remember(texts)
        max_tokens = self.tokenizer.model_max_length if max_tokens is None else max_tokens
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        written = beam_search(self.text_encoder, memory, mask, start, end, max_tokens, beams, length_penalty)
        return [self._read_back(ids[i], mask[i], memory[i], [*tokens, end]) for i, tokens in enumerate(written)]

    @torch.no_grad()
    def stream(self, text: str, max_tokens: int | None = None) -> Iterator[Translation]:
        """Translate a text by the likeliest token each time, and give out what is written after each.

        The last is the whole sentence with its end, as one beam writes it; those before it stop where they stop. Raises
        as a call does, when the first is asked for.
        """
        ids, mask, memory = self._remember([text])
        max_tokens = self.tokenizer.model_max_length if max_tokens is None else max_tokens
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        written: list[int] = []
        for token in greedy_steps(self.text_encoder, memory, mask, start, end, max_tokens):
            if token.item() == end:
                break
            written.append(int(token))
            yield self._read_back(ids[0], mask[0], memory[0], written)
        yield self._read_back(ids[0], mask[0], memory[0], [*written, end])

    @torch.no_grad()
    def read(self, text: str, translation: str) -> Translation:
        """Teacher forcing: read a translation somebody else wrote, each token given those before it.

        Raises:
            ValueError: one of the two is empty, or has more tokens than the model reads.
        """
        ids, mask, memory = self._remember([text])
        if not translation.strip():
            raise ValueError("there is no translation to read: give a text")
        given = self.tokenizer(translation, verbose=False)["input_ids"]
        if len(given) > self.tokenizer.model_max_length:
            limit = self.tokenizer.model_max_length
            raise ValueError(f"the translation has {len(given)} tokens, this model reads {limit}: shorten it")
        return self._read_back(ids[0], mask[0], memory[0], given[1:])  # all but its start

    def _remember(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids (B, S), which of them are real (B, S), and their memory (B, S, D)."""
        if not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise ValueError("there is nothing to translate: give a text")
        ids, mask = (t.to(self._execution_device) for t in read_prompts(self.tokenizer, texts))
        return ids, mask, self.text_encoder.encode(ids, mask)

    def _read_back(self, ids: Tensor, mask: Tensor, memory: Tensor, tokens: list[int]) -> Translation:
        """Read what is written, all tokens at a time, to see where each looked and how likely it was."""
        seen: dict[str, Tensor] = {}
        target = torch.tensor([[self.tokenizer.bos_token_id, *tokens]], device=ids.device)  # (1, 1 + T)
        logits = self.text_encoder.decode(target[:, :-1], memory[mask][None], record=seen.__setitem__)
        probabilities = logits[0].float().softmax(dim=-1).cpu()  # (T, V)
        most, likeliest = probabilities.max(dim=-1)  # (T,)
        weights = [seen[f"decoder.{i}.cross"][0] for i in range(len(self.text_encoder.decoder))]
        spell = self.tokenizer.convert_ids_to_tokens
        return Translation(
            text=self.tokenizer.decode(tokens, skip_special_tokens=True).strip(),
            source_tokens=spell(ids[mask].tolist()),
            tokens=spell(tokens),
            attention=torch.stack(weights).float().cpu(),
            probabilities=probabilities[torch.arange(len(tokens)), tokens],
            likeliest=spell(likeliest.tolist()),
            likeliest_probabilities=most,
        )
