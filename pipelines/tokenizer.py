"""A tokenizer trained on given captions, and whether a text fits into what a model reads."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from unet_xattn.words import as_read, split_words

MAX_TOKENS = 64


def train_tokenizer(captions: Iterable[str], vocab_size: int = 4096, lowercase: bool = True) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer trained on these captions, with character offsets; each Han character is a token.

    `init_kwargs["known_words"]` lists every word of the captions, so that unknown words can be shown to a person.
    """
    captions = list(captions)
    core = Tokenizer(models.BPE(unk_token="[UNK]"))
    one_space = [normalizers.Strip(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Prepend(" ")]
    lower = [normalizers.Lowercase()] if lowercase else []
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), *lower, *one_space])
    # A word keeps the space before it as "▁", so that tokens can be decoded to text. Punctuation, symbols and Han
    # characters, with their marks, are separate, because no spaces separate them from their neighbours: no token
    # belongs to two words.
    words = pre_tokenizers.Metaspace(prepend_scheme="never")
    single = pre_tokenizers.Split(pattern=Regex(r"(?:\p{Han}|[^\p{L}\p{N}\p{M}▁])\p{M}*"), behavior="isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([words, single])
    special = ["[PAD]", "[UNK]", "[START]", "[END]"]
    letters = [chr(c) for c in range(33, 127)]
    core.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=special, initial_alphabet=letters, show_progress=False
        ),
    )
    core.post_processor = processors.TemplateProcessing(
        single="[START] $A [END]", special_tokens=[(s, core.token_to_id(s)) for s in ("[START]", "[END]")]
    )
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[START]",
        eos_token="[END]",
        model_max_length=MAX_TOKENS,
        known_words=[],
    )
    tokenizer.init_kwargs["known_words"] = sorted(
        {as_read(word.text) for caption in captions for word in split_words(caption, tokenizer)}
    )
    return tokenizer


def fits(text: str, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a text has no more tokens than the model reads."""
    return len(tokenizer(text, verbose=False)["input_ids"]) <= tokenizer.model_max_length
