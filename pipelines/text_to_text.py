"""A sentence in, the same in another language out, and where each token that was written looked.

Shapes: L decoder layers, H heads, S source tokens, T target tokens.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipelines.text_to_image import bundled_models, load_network, locate, read_prompts
from unet_xattn import Transformer
from unet_xattn.decoding import beam_search


@dataclass(frozen=True)
class Translation:
    """What was written, and from which tokens: `attention` (L, H, T, S) is the decoder's cross-attention.

    Row t is where the decoder looked when it wrote `tokens[t]`, the last of them the end of the sentence.
    """

    text: str
    source_tokens: list[str]
    tokens: list[str]
    attention: Tensor


class TranslationPipeline(DiffusionPipeline):
    """Writes sentences from memory.

    Components: a tokenizer that can spell out what it reads, and a Transformer with a decoder. A text-to-image model
    that was trained on pairs of captions has both, under the same names.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, text_encoder: Transformer):
        super().__init__()
        if not len(text_encoder.decoder):
            raise ValueError("this model has no decoder, so it cannot translate: train one on pairs of sentences")
        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder)

    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: Any) -> "TranslationPipeline":
        """Load the text side of a bundled model by name, of a folder, or of a model of the hub by its id.

        Raises:
            ValueError: there is no such model, or it has no decoder; the message lists those that have.
        """
        path = locate(name)
        text_encoder = load_network(Transformer, path, "text_encoder", **kwargs)
        if not len(text_encoder.decoder):
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
        if not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise ValueError("there is nothing to translate: give a text")
        ids, mask = (t.to(self._execution_device) for t in read_prompts(self.tokenizer, texts))
        memory = self.text_encoder.encode(ids, mask)
        max_tokens = self.tokenizer.model_max_length if max_tokens is None else max_tokens
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        written = beam_search(self.text_encoder, memory, mask, start, end, max_tokens, beams, length_penalty)
        return [self._read_back(ids[i], mask[i], memory[i], tokens) for i, tokens in enumerate(written)]

    def _read_back(self, ids: Tensor, mask: Tensor, memory: Tensor, tokens: list[int]) -> Translation:
        """Read the finished sentence once more, all tokens at a time, to see where each looked."""
        seen: dict[str, Tensor] = {}
        target = torch.tensor([[self.tokenizer.bos_token_id, *tokens]], device=ids.device)
        self.text_encoder.decode(target, memory[mask][None], record=seen.__setitem__)
        weights = [seen[f"decoder.{i}.cross"][0] for i in range(len(self.text_encoder.decoder))]
        spell = self.tokenizer.convert_ids_to_tokens
        return Translation(
            self.tokenizer.decode(tokens, skip_special_tokens=True).strip(),
            spell(ids[mask].tolist()),
            spell([*tokens, self.tokenizer.eos_token_id]),
            torch.stack(weights).float().cpu(),
        )
