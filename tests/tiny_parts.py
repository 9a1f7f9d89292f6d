"""Parts of tiny pipelines: tokenizers, text encoders, autoencoders and schedulers, made from nothing but a seed.

Sizes are about the smallest that the classes accept. Weights come from torch's generator, so whoever builds sets its
seed. Classes of transformers are imported where they are used: a test of one family then waits for that family only.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import diffusers
from tokenizers import pre_tokenizers, processors
from torch import nn

KNOWN = (
    "a red circle left of a blue square, a green circle right of it; a photo of a cat and a dog, low quality. "
    "skate board water melons. Describe the image by detailing the color, quantity, text, shape, size, texture, "
    "spatial relationships of the objects and background: You are a prompt engineer. system user assistant"
)
"""What the tokenizers have learned: these words are one token each, others several. Words of the templates are among
them, because pipelines put a template before the prompt and drop a fixed number of tokens again."""

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
MARKS = ",;.:'-!?<>/|_{}[]()\"#*\n"

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TextEncoder = tuple[nn.Module, Any]
"""A text encoder and its tokenizer."""


# Tokenizers


def known_words() -> list[str]:
    """Every known word and mark once, in the order of the text."""
    return list(dict.fromkeys(re.findall(r"\w+|[^\w\s]", KNOWN)))


def learn_merges(words: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    """Pairs of neighbours to join, the most frequent first, until every word is one piece (Sennrich et al., 2016).

    The trainers of `tokenizers` do the same, but those with a suffix at words' ends come out different every time.
    """
    merges, split = [], [list(word) for word in words]
    while pairs := Counter(pair for pieces in split for pair in pairwise(pieces)):
        left, right = max(pairs, key=pairs.__getitem__)  # the first of several
        merges.append((left, right))
        for pieces in split:
            for i in range(len(pieces) - 1, 0, -1):
                if pieces[i - 1 : i + 1] == [left, right]:
                    pieces[i - 1 : i + 1] = [left + right]
    return merges


def byte_pairs(kind: type, alphabet: Iterable[str], words: Iterable[Sequence[str]], length: int = 2048) -> Any:
    """A tokenizer of this class whose pieces are an alphabet and what leads from it to the words."""
    merges = learn_merges(words)
    pieces = dict.fromkeys([*alphabet, *(left + right for left, right in merges)])
    return kind(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, model_max_length=length)


def begun_with(tokenizer: Any, *special: str) -> Any:
    """The tokenizer, which now puts these special tokens before every text."""
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single=[*special, "$A"],
        pair=[*special, "$A", "$B"],
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in special],
    )
    return tokenizer


def clip_tokenizer(length: int = 77) -> Any:
    """Lower-cased byte pairs between `<|startoftext|>` and `<|endoftext|>`."""
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    words = [[*word[:-1], f"{word[-1]}</w>"] for word in known_words() if word.islower()]
    return byte_pairs(CLIPTokenizer, alphabet, words, length)


def unigrams() -> list[tuple[str, float]]:
    """Pieces with their log-probabilities: words that begin with `▁`, and letters."""
    words = [(f"▁{word}", -3.0) for word in known_words() if word.isalpha()]
    return [("▁", -2.0), *words, ("board", -4.0), *((letter, -6.0) for letter in LETTERS + MARKS)]


def t5_tokenizer() -> Any:
    """Pieces that begin with `▁` where a word begins, then `</s>`."""
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=[*special, *unigrams()], extra_ids=0, model_max_length=512)


def xlm_tokenizer() -> Any:
    """The pieces of T5 between `<s>` and `</s>`."""
    from transformers import XLMRobertaTokenizer

    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return XLMRobertaTokenizer(vocab=[*special, *unigrams(), ("<mask>", 0.0)], model_max_length=77)


def bert_tokenizer() -> Any:
    """Lower-cased pieces, which begin with `##` inside a word, between `[CLS]` and `[SEP]`."""
    from transformers import BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [word.lower() for word in known_words()]
    pieces = dict.fromkeys([*special, *words, *LETTERS.lower(), "##board", *(f"##{x}" for x in LETTERS.lower())])
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=77)


def gemma_tokenizer() -> Any:
    """`<bos>`, then pieces that begin with `▁` where a word begins; letters it does not know fall into bytes."""
    from transformers import GemmaTokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    alphabet = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS, *MARKS]
    words = [space + word for word in known_words() for space in ("", "▁")]
    return begun_with(byte_pairs(GemmaTokenizer, alphabet, words), "<bos>")


def qwen_tokenizer() -> Any:
    """Byte pairs with nothing around them, and a chat template."""
    from transformers import Qwen2Tokenizer

    alphabet = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = [space + word for word in known_words() for space in ("", "Ġ")]
    tokenizer = byte_pairs(Qwen2Tokenizer, alphabet, words)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT
    return tokenizer


def glm_tokenizer() -> Any:
    """`[gMASK] <sop>`, then byte pairs; padded on the left."""
    tokenizer = begun_with(qwen_tokenizer(), "[gMASK]", "<sop>")
    tokenizer.padding_side = "left"
    return tokenizer


# Text encoders


def texts(*encoders: TextEncoder) -> dict[str, Any]:
    """The arguments of a pipeline for its text encoders and their tokenizers: the second ones end in `_2`."""
    return {
        f"{part}_{i}" if i > 1 else part: value
        for i, encoder in enumerate(encoders, 1)
        for part, value in zip(("text_encoder", "tokenizer"), encoder, strict=True)
    }


def clip(projection: bool = False, length: int = 77) -> TextEncoder:
    """CLIP of width 32, with a projected embedding of the whole text if asked."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = clip_tokenizer(length)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config), tokenizer


def clip_vision() -> tuple[nn.Module, Any]:
    """CLIP's encoder of pictures, of width 32, and what prepares pictures for it."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    layers = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPVisionConfig(**layers, projection_dim=32, image_size=32, patch_size=8)
    return CLIPVisionModelWithProjection(config), CLIPImageProcessor(size=32, crop_size=32)


def t5_sizes(tokenizer: Any) -> dict[str, int]:
    return {"vocab_size": len(tokenizer), "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}


def t5(**sizes: int) -> TextEncoder:
    """The encoder of T5, of width 32."""
    from transformers import T5Config, T5EncoderModel

    tokenizer = t5_tokenizer()
    return T5EncoderModel(T5Config(**t5_sizes(tokenizer) | sizes)), tokenizer


def umt5() -> TextEncoder:
    """The encoder of UMT5, of width 32."""
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = t5_tokenizer()
    return UMT5EncoderModel(UMT5Config(**t5_sizes(tokenizer))), tokenizer


def byt5() -> TextEncoder:
    """The encoder of ByT5, of width 32: a token is a byte."""
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    tokenizer = ByT5Tokenizer(extra_ids=0)
    return T5EncoderModel(T5Config(**t5_sizes(tokenizer))), tokenizer


BERT_SIZES = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}


def bert() -> TextEncoder:
    """BERT of width 32."""
    from transformers import BertConfig, BertModel

    tokenizer = bert_tokenizer()
    return BertModel(BertConfig(vocab_size=len(tokenizer), **BERT_SIZES)), tokenizer


def multilingual_clip() -> TextEncoder:
    """The multilingual CLIP of Kandinsky 2.1, of width 32."""
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

    tokenizer = xlm_tokenizer()
    projection = {"transformerDimSize": 32, "imageDimSize": 32}
    length = {"max_position_embeddings": 100, "pad_token_id": tokenizer.pad_token_id}
    config = MCLIPConfig(vocab_size=len(tokenizer), **projection, **length, **BERT_SIZES)
    return MultilingualCLIP(config), tokenizer


def decoder_sizes(tokenizer: Any, width: int = 32) -> dict[str, Any]:
    """Sizes of a language model: two layers with two heads of width 8."""
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "hidden_size": width,
        "intermediate_size": 37,
        "head_dim": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }


def gemma() -> TextEncoder:
    """Gemma of width 32 with its head."""
    from transformers import GemmaConfig, GemmaForCausalLM

    tokenizer = gemma_tokenizer()
    return GemmaForCausalLM(GemmaConfig(**decoder_sizes(tokenizer))), tokenizer


def gemma2() -> TextEncoder:
    """Gemma 2 of width 32."""
    from transformers import Gemma2Config, Gemma2Model

    tokenizer = gemma_tokenizer()
    return Gemma2Model(Gemma2Config(**decoder_sizes(tokenizer))), tokenizer


def t5_gemma() -> TextEncoder:
    """The encoder of T5Gemma, of width 32, which reads 256 tokens."""
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder, T5GemmaModuleConfig

    tokenizer = gemma_tokenizer()
    tokenizer.model_max_length = 256
    return T5GemmaEncoder(T5GemmaModuleConfig(**decoder_sizes(tokenizer), dropout_rate=0.0)), tokenizer


def glm() -> TextEncoder:
    """GLM of width 32 with its head."""
    from transformers import GlmConfig, GlmForCausalLM

    tokenizer = glm_tokenizer()
    return GlmForCausalLM(GlmConfig(**decoder_sizes(tokenizer))), tokenizer


def chatglm() -> TextEncoder:
    """ChatGLM 3 of width 32, and the tokenizer of GLM, which is made to return positions like its own."""
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

    tokenizer = glm_tokenizer()

    class WithPositions(type(tokenizer)):  # type: ignore[misc]
        def __call__(self, *arguments: Any, **named: Any) -> Any:
            tokens = super().__call__(*arguments, **named)
            positions = tokens["attention_mask"].cumsum(-1) - 1
            return type(tokens)({**tokens, "position_ids": positions.clamp(min=0)})

    tokenizer.__class__ = WithPositions
    config = ChatGLMConfig(
        padded_vocab_size=len(tokenizer),
        num_layers=2,
        hidden_size=32,
        ffn_hidden_size=37,
        kv_channels=8,
        num_attention_heads=4,
        multi_query_attention=True,
        multi_query_group_num=2,
        add_qkv_bias=True,
        original_rope=True,
    )
    config.use_cache = False  # the class drops it where it is given
    model = ChatGLMModel(config)
    for name, parameter in model.named_parameters():  # the class leaves them unset
        nn.init.constant_(parameter, "norm" in name)
    return model, tokenizer


def llama() -> TextEncoder:
    """Llama of width 32 with its head, behind `<|begin_of_text|>`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = begun_with(qwen_tokenizer(), "<|begin_of_text|>")
    config = LlamaConfig(**decoder_sizes(tokenizer), attn_implementation="eager")  # HiDream asks for the weights
    return LlamaForCausalLM(config), tokenizer


def qwen3(head: bool = False) -> TextEncoder:
    """Qwen 3 of width 32, with its head if asked."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    tokenizer = qwen_tokenizer()
    return (Qwen3ForCausalLM if head else Qwen3Model)(Qwen3Config(**decoder_sizes(tokenizer))), tokenizer


VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}


def rope(*sections: int) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}}


def qwen2_vl() -> TextEncoder:
    """Qwen 2.5 VL of width 16 with its head; the pipelines give it no pictures."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = qwen_tokenizer()
    text = decoder_sizes(tokenizer, 16) | rope(1, 1, 2)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=VISION | {"out_hidden_size": 16})
    return Qwen2_5_VLForConditionalGeneration(config), tokenizer


def qwen3_vl() -> TextEncoder:
    """Qwen 3 VL of width 32; the pipelines give it no pictures."""
    from transformers import Qwen3VLConfig, Qwen3VLModel

    tokenizer = qwen_tokenizer()
    text = decoder_sizes(tokenizer) | rope(2, 1, 1)
    vision = VISION | {"out_hidden_size": 32, "deepstack_visual_indexes": [0]}
    return Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision)), tokenizer


# Autoencoders


def kl_sizes(blocks: int = 3, channels: int = 4) -> dict[str, Any]:
    """Sizes of an autoencoder with 2^(blocks - 1) pixels a latent pixel in each direction."""
    return {
        "block_out_channels": (8,) * blocks,
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
        "latent_channels": channels,
        "norm_num_groups": 2,
    }


def kl(blocks: int = 3, channels: int = 4, **settings: Any) -> nn.Module:
    """The autoencoder of Stable Diffusion."""
    return diffusers.AutoencoderKL(**kl_sizes(blocks, channels), **settings)


def flow_kl(blocks: int = 3, channels: int = 4) -> nn.Module:
    """The autoencoder of the flow models: shifted latents, no convolutions around them."""
    return kl(blocks, channels, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06)


def flux2_kl() -> nn.Module:
    """The autoencoder of Flux 2: latents normalised by what it has seen."""
    return diffusers.AutoencoderKLFlux2(**kl_sizes())


def dc() -> nn.Module:
    """The deep-compression autoencoder of Sana, with 2 pixels a latent pixel."""
    blocks = ("ResBlock", "EfficientViTBlock")
    encoder = {"encoder_block_types": blocks, "encoder_block_out_channels": (8, 8), "encoder_layers_per_block": (1, 1)}
    decoder = {"decoder_block_types": blocks, "decoder_block_out_channels": (8, 8), "decoder_layers_per_block": (1, 1)}
    scales = {"encoder_qkv_multiscales": ((), (5,)), "decoder_qkv_multiscales": ((), (5,))}
    steps = {"downsample_block_type": "conv", "upsample_block_type": "interpolate"}
    return diffusers.AutoencoderDC(**encoder, **decoder, **scales, **steps, latent_channels=4, attention_head_dim=2)


def hunyuan_vae() -> nn.Module:
    """The autoencoder of HunyuanImage, with 8 pixels a latent pixel."""
    return diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=8,
        sample_size=128,
        scaling_factor=0.476986,
    )


def qwen_vae() -> nn.Module:
    """The video autoencoder of Qwen-Image, with 4 pixels a latent pixel."""
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def movq(blocks: int) -> nn.Module:
    """The quantising autoencoder of Kandinsky, with 2^(blocks - 1) pixels a latent pixel."""
    return diffusers.VQModel(
        block_out_channels=(32,) * blocks,
        down_block_types=(*("DownEncoderBlock2D",) * (blocks - 1), "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", *("UpDecoderBlock2D",) * (blocks - 1)),
        latent_channels=4,
        vq_embed_dim=4,
        num_vq_embeddings=12,
        norm_num_groups=4,
        norm_type="spatial",
    )


# Schedulers

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def ddim() -> Any:
    """DDIM, with the noise of Stable Diffusion."""
    return diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False)


def euler() -> Any:
    """Euler steps, with the noise of Stable Diffusion."""
    return diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="leading")


def flow(**settings: Any) -> Any:
    """Euler steps along a flow."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**settings)
