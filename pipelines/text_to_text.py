"""A sentence in, its translation out, with the cross-attention of every token written.

Shapes: B texts, L decoder layers, H heads, S source tokens, T target tokens, D width of the memory, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipelines.checks import check_number, check_text, check_tokens, check_whole, listed
from pipelines.components import can_translate, load_components
from pipelines.text_to_image import bundled_models, find_model, read_prompts
from unet_xattn import Transformer
from unet_xattn.decoding import beam_search, greedy_steps

MOST_BEAMS = 64
"""More beams find no better sentences, but take memory."""


@dataclass(frozen=True)
class Translation:
    """A translation and the decoder's cross-attention that wrote it.

    text: the sentence.
    source_tokens, tokens: S tokens read and T tokens written; the last one written is the end of the sentence.
    attention: cross-attention (L, H, T, S); row t is what the decoder attended to when it wrote `tokens[t]`.
    probabilities: (T,), of each token given those before it.
    likeliest, likeliest_probabilities: the most likely token at each position and its probability (T,); in a greedy
        translation the same as `tokens`.
    """

    text: str
    source_tokens: list[str]
    tokens: list[str]
    attention: Tensor
    probabilities: Tensor
    likeliest: list[str]
    likeliest_probabilities: Tensor


class TranslationPipeline(DiffusionPipeline):
    """Translates texts: a decoder writes from the encoder's memory.

    Components: a tokenizer that can decode its tokens to text, and a Transformer with a decoder. A text-to-image model
    that was trained on pairs of captions has both, under the same names.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, text_encoder: Transformer):
        super().__init__()
        if not can_translate(text_encoder):
            raise ValueError("this model has no decoder, so it cannot translate: train one on pairs of sentences")
        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder)

    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: Any) -> "TranslationPipeline":
        """Load the text encoder and tokenizer of a bundled model by name, of a folder, or of a hub model by its id.

        Raises:
            ValueError: the model is not found, or it has no decoder; the message lists bundled models with one.
        """
        path = find_model(name)
        text_encoder = load_components(path, {"unet": None, "vae": None}, **kwargs)["text_encoder"]
        if not can_translate(text_encoder):
            able = [
                m
                for m in bundled_models()
                if Transformer.load_config(find_model(m), subfolder="text_encoder").get("decoder_layers")
            ]
            others = f"these bundled models can: {', '.join(able)}" if able else "no bundled model can"
            raise ValueError(f"{name} has no decoder, so it cannot translate; {others}")
        return cls(PreTrainedTokenizerFast.from_pretrained(path, subfolder="tokenizer"), text_encoder)

    @torch.no_grad()
    def __call__(
        self, text: str | Sequence[str], beams: int = 4, length_penalty: float = 0.6, max_tokens: int | None = None
    ) -> list[Translation]:
        """Translate a text, or each text of a list.

        Args:
            beams, length_penalty: see `decoding.beam_search`; one beam is greedy decoding.
            max_tokens: the most tokens to write; by default as many as the model reads.

        Raises:
            ValueError: a text is empty, or has more tokens than the model reads; or a number is out of its range.
        """
        check_whole(beams, "number of beams", 1, MOST_BEAMS)
        check_number(length_penalty, "length penalty", 0, 100)
        max_tokens = self._most_tokens(max_tokens)
        ids, mask, memory = self._encode(listed(text))
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        written = beam_search(
            self.text_encoder, memory, mask, start, end, max_tokens, int(beams), float(length_penalty)
        )
        return [self._read_back(ids[i], mask[i], memory[i], [*tokens, end]) for i, tokens in enumerate(written)]

    @torch.no_grad()
    def stream(self, text: str, max_tokens: int | None = None) -> Iterator[Translation]:
        """Translate a text by greedy decoding and yield the translation so far after each token.

        The last one is the complete sentence with its end token, the same as with one beam. The errors of a call are
        raised when the first is requested.
        """
        max_tokens = self._most_tokens(max_tokens)
        ids, mask, memory = self._encode([text])
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
        """Teacher forcing: decode a given translation, each token conditioned on those before it.

        Raises:
            ValueError: one of the two is empty, or has more tokens than the model reads.
        """
        ids, mask, memory = self._encode([text])
        check_text(translation, "translation")
        if not translation.strip():
            raise ValueError("the translation is empty: give a text")
        given = self.tokenizer(translation, verbose=False)["input_ids"]
        check_tokens(given, self.tokenizer, "translation")
        return self._read_back(ids[0], mask[0], memory[0], given[1:])  # all but the start token

    def _most_tokens(self, given: Any) -> int:
        tokens = self.tokenizer.model_max_length if given is None else given
        check_whole(tokens, "number of tokens to write", 1, 1000)
        return int(tokens)

    def _encode(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids (B, S), the mask of real ones (B, S), and their memory (B, S, D)."""
        for text in texts:
            check_text(text)
        if not texts or not all(text.strip() for text in texts):
            raise ValueError("there is nothing to translate: give a text")
        ids, mask = (t.to(self._execution_device) for t in read_prompts(self.tokenizer, texts, "text"))
        return ids, mask, self.text_encoder.encode(ids, mask)

    def _read_back(self, ids: Tensor, mask: Tensor, memory: Tensor, tokens: list[int]) -> Translation:
        """The translation of these tokens, with attention and probabilities from one pass over all of them."""
        recorded: dict[str, Tensor] = {}
        target = torch.tensor([[self.tokenizer.bos_token_id, *tokens]], device=ids.device)  # (1, 1 + T)
        logits = self.text_encoder.decode(target[:, :-1], memory[mask][None], record=recorded.__setitem__)
        probabilities = logits[0].float().softmax(dim=-1).cpu()  # (T, V)
        highest, likeliest = probabilities.max(dim=-1)  # (T,)
        weights = [recorded[f"decoder.{i}.cross"][0] for i in range(len(self.text_encoder.decoder))]
        to_tokens = self.tokenizer.convert_ids_to_tokens
        return Translation(
            text=self.tokenizer.decode(tokens, skip_special_tokens=True).strip(),
            source_tokens=to_tokens(ids[mask].tolist()),
            tokens=to_tokens(tokens),
            attention=torch.stack(weights).float().cpu(),
            probabilities=probabilities[torch.arange(len(tokens)), tokens],
            likeliest=to_tokens(likeliest.tolist()),
            likeliest_probabilities=highest,
        )
