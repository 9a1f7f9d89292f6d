# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The same questions to the pipeline you have
#
# `trace` records any text-to-image pipeline of diffusers, from outside: nothing of it is replaced, and its pictures
# stay the same bit for bit. Here are three tiny ones with random weights, one of each kind: **cross-attention** (Stable
# Diffusion), **two text encoders** (SDXL) and **joint attention** of text and picture (Flux). They need no network and
# draw noise, so their maps mean nothing. For a model with trained weights, change two lines below.

# %%
import tempfile
from pathlib import Path

import diffusers
import matplotlib.pyplot as plt
import torch
import transformers
from PIL import Image

from pipelines import attribute, trace, verify
from unet_xattn import AttentionTrace

transformers.logging.set_verbosity_error()
diffusers.logging.set_verbosity_error()
prompt = "a red circle left of a blue square"

# %% [markdown]
# ## Three tiny pipelines
#
# Their tokenizers know letters only, so a word has as many tokens as letters.

# %%
LETTERS = [chr(code) for code in range(33, 127)]


def clip(kind=transformers.CLIPTextModel):
    pieces = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(letter + "</w>" for letter in LETTERS)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    sizes = {"vocab_size": len(pieces), "hidden_size": 32, "intermediate_size": 37, "projection_dim": 32}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "bos_token_id": 0, "eos_token_id": 1}
    return kind(transformers.CLIPTextConfig(**sizes, **layers)), tokenizer


def t5():
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -6.0) for letter in LETTERS)]
    tokenizer = transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=77)
    sizes = {"vocab_size": len(pieces), "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
    return transformers.T5EncoderModel(transformers.T5Config(**sizes)), tokenizer


def vae():
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    return diffusers.AutoencoderKL(**blocks, block_out_channels=(8,) * 3, norm_num_groups=2, shift_factor=0.0)


def unet(**settings):
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    sizes = {"block_out_channels": (16, 32, 32), "layers_per_block": 1, "norm_num_groups": 2, "sample_size": 16}
    return diffusers.UNet2DConditionModel(**blocks, **sizes, attention_head_dim=2, **settings)


def ready(pipe):
    """A little noise on every weight: with the initial ones, all words are read alike."""
    with torch.no_grad():
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module) and name != "vae":
                for parameter in part.eval().parameters():
                    parameter.add_(0.2 * torch.randn(parameter.shape))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion():
    text_encoder, tokenizer = clip()
    text = {"text_encoder": text_encoder, "tokenizer": tokenizer}
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
    unet_of_words = unet(cross_attention_dim=32)
    return diffusers.StableDiffusionPipeline(unet=unet_of_words, vae=vae(), scheduler=scheduler, **text, **none)


def sdxl():
    text_encoder, tokenizer = clip()
    text_encoder_2, tokenizer_2 = clip(transformers.CLIPTextModelWithProjection)
    text = {"text_encoder": text_encoder, "tokenizer": tokenizer}
    text |= {"text_encoder_2": text_encoder_2, "tokenizer_2": tokenizer_2}
    more = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    unet_of_both = unet(cross_attention_dim=64, projection_class_embeddings_input_dim=6 * 8 + 32, **more)
    scheduler = diffusers.EulerDiscreteScheduler()
    return diffusers.StableDiffusionXLPipeline(unet=unet_of_both, vae=vae(), scheduler=scheduler, **text)


def flux():
    text_encoder, tokenizer = clip()
    text_encoder_2, tokenizer_2 = t5()
    text = {"text_encoder": text_encoder, "tokenizer": tokenizer}
    text |= {"text_encoder_2": text_encoder_2, "tokenizer_2": tokenizer_2}
    sizes = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    sizes |= {"num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32}
    transformer = diffusers.FluxTransformer2DModel(**sizes, axes_dims_rope=(4, 4, 8))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.FluxPipeline(transformer=transformer, vae=vae(), scheduler=scheduler, **text)


torch.manual_seed(0)
pipes = {"Stable Diffusion": ready(stable_diffusion()), "SDXL": ready(sdxl()), "Flux": ready(flux())}
settings = {name: {"height": 64, "width": 96, "num_inference_steps": 2} for name in pipes}

# %% [markdown]
# The two lines to change for a model with trained weights, for SDXL:

# %%
# pipes["SDXL"] = diffusers.StableDiffusionXLPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0")
# settings["SDXL"] = {"height": 1024, "width": 1024, "num_inference_steps": 30}

# %% [markdown]
# ## Which word is read where?
#
# One block for all of them. A heat map has the size of the picture; its values are the word's share of the attention at
# each place. The titles are their means.

# %%
recorded = {}
for name, pipe in pipes.items():
    with trace(pipe) as attention:
        pipe(prompt, generator=torch.Generator().manual_seed(0), **settings[name])
    recorded[name] = attention

shown = ["circle", "square", "blue square"]
figure, axes = plt.subplots(len(recorded), len(shown) + 1, figsize=(7.2, 4.2))
for row, (name, attention) in zip(axes, recorded.items(), strict=True):
    row[0].imshow(attention.pictures[0])
    row[0].set_title(name, fontsize=9)
    for axis, word in zip(row[1:], shown, strict=True):
        heat = attention.heatmap(word)
        axis.imshow(heat, cmap="inferno")
        axis.set_title(f"{word}: {heat.mean():.1%}", fontsize=9)
for axis in axes.flat:
    axis.axis("off")
plt.tight_layout()
plt.show()

# %%
for name, attention in recorded.items():
    height, width = attention.size
    left = attention.words_at((0, 0, width // 2, height))  # a box; points and masks will do as well
    print(f"{name}: {len(attention.layers)} layers, grids {sorted(set(attention.recording.grids.values()))}")
    print("  the left half read", {str(word): f"{share:.1%}" for word, share in left[:4]})
    print(f"  a word has the largest share at {(attention.segmentation() >= 0).float().mean():.0%} of the places")
    print(f"  circle and square share {attention.leakage()[2, 7]:.0%} of their places")

# %% [markdown]
# ## What else is read
#
# The shares of everything that is read add up to one. Beside the words there are `[special]`, the tokens for start, end
# and template, and `[padding]`; in joint attention also `[picture]`, the picture's own positions.
# `of="text"` leaves these out and divides the other shares by their sum; `dropped` is what it has left out.

# %%
for name, attention in recorded.items():
    total = attention.maps(attention.layers[0]).sum(dim=0).mean()
    columns = {column: f"{attention.heatmap(column).mean():.0%}" for column in attention.columns_of()}
    print(f"{name}: the shares add up to {total:.6f}; {columns}")

attention = recorded["Flux"]
everything, text = (attention.heatmap("circle", of=of).mean() for of in ("all", "text"))
print(f"circle: {everything:.2%} of everything, {text:.2%} of the text; left out: {attention.dropped().mean():.0%}")

# %% [markdown]
# ## Two encoders, two prompts, a negative prompt
#
# Where encoders read different texts, the recorded text has a line for each. A negative prompt is a branch of its own.

# %%
with trace(pipes["SDXL"]) as attention:
    pipes["SDXL"](prompt, prompt_2="a watercolour", negative_prompt="low quality", **settings["SDXL"])
print([str(word) for word in attention.words], [str(word) for word in attention.words_of(0, "negative")])
print(f"watercolour: {attention.heatmap('watercolour').mean():.1%}")
print(f"quality, in the negative prompt: {attention.heatmap('quality', branch='negative').mean():.1%}")

# %% [markdown]
# Words beyond what an encoder reads have no tokens. They are named, and a question about them is refused.

# %%
long = prompt + ", in the style of a photograph of the nineteenth century, behind glass, in a golden frame"
with trace(pipes["Stable Diffusion"]) as attention:
    pipes["Stable Diffusion"](long, **settings["Stable Diffusion"])
print("cut off:", [str(word) for word in attention.cut_off()])
try:
    attention.heatmap("golden frame")
except ValueError as error:
    print(error)

# %% [markdown]
# ## Only some words, some layers
#
# All other tokens are one column, `[other]`. Steps and heads are kept apart on request.

# %%
with trace(pipes["Flux"], keep="full", words=["circle", "square"], layers=["single*"]) as attention:
    pipes["Flux"](prompt, **settings["Flux"])
print(attention.layers, attention.steps, attention.columns_of())
print(f"circle, last step, first head: {attention.heatmap('circle', step=attention.steps[-1], head=0).mean():.1%}")

# %% [markdown]
# ## A picture that exists
#
# `attribute` adds noise to it and records what the model reads of a caption.

# %%
picture = Image.fromarray(recorded["Stable Diffusion"].pictures[0].numpy())
attention = attribute(pipes["Stable Diffusion"], picture, "a blue square")
print({str(word): f"{attention.heatmap(word).mean():.1%}" for word in attention.words})

# %% [markdown]
# ## Is it true?
#
# `verify` compares, on your pipeline, what is recorded with what its layers compute.

# %%
for name, pipe in pipes.items():
    height, width = recorded[name].size
    print(verify(pipe, prompt, steps=2, height=height, width=width), end="\n\n")

# %% [markdown]
# A file keeps everything, and reading it needs no model.

# %%
with tempfile.TemporaryDirectory() as folder:
    recorded["SDXL"].save(Path(folder) / "attention.safetensors")
    again = AttentionTrace.load(Path(folder) / "attention.safetensors")
print(again.prompts, [str(word) for word in again.words])
