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
# # Attention from memory
#
# The encoder turns a sentence into **memory**: one vector for each token. Memory is neither K nor V. Every layer that
# reads it projects it to its own keys and values, compares them with its own queries, and outputs a weighted mean of
# the values. This notebook shows these steps on a bundled model. It ends with two readers of the same memory: a decoder
# that writes the sentence in another language, and a UNet that draws it.
#
# Every number is computed in the cell above it.

# %%
import matplotlib.pyplot as plt
import torch

from pipelines import TextToImagePipeline, TranslationPipeline, trace
from pipelines.bench.attention import cost, scaling, trained_heads
from pipelines.tracing.overlay import alignment_sheet
from unet_xattn.attention import MultiHeadAttention, attention_weights, causal_mask, padding_mask
from unet_xattn.transformer import DecoderCache

torch.set_grad_enabled(False)
pipe = TextToImagePipeline.from_pretrained("shapes")
pipe.set_progress_bar_config(disable=True)
model, tokenizer = pipe.text_encoder, pipe.tokenizer
sentence = "a red circle left of a blue square"

# %% [markdown]
# ## 1. A sentence becomes memory
#
# The encoder reads all tokens at once. Through self-attention, the vector of each token also depends on the others.

# %%
ids = torch.tensor(tokenizer(sentence)["input_ids"])[None]
tokens = tokenizer.convert_ids_to_tokens(ids[0])
memory = model.encode(ids)
print("tokens", tokens)
print("memory", tuple(memory.shape), "= (sentences, tokens, width)")

# %% [markdown]
# ## 2. Memory becomes each layer's own K and V
#
# Two layers of the decoder read the same memory, but their keys have little in common, because each layer has its own
# projections. K and V are a layer's view of the memory.

# %%
first, second = (layer.cross_attention for layer in model.decoder)
(k1, v1), (k2, v2) = first.keys_values(memory), second.keys_values(memory)
print("K", tuple(k1.shape), " V", tuple(v1.shape), "= (sentences, heads, tokens, width of a head)")


def cosine(a, b):
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


print(f"cosine of layer 0's keys with layer 1's, of the same memory: {cosine(k1, k2):.3f}")
print(f"cosine of layer 0's keys with its own values:                {cosine(k1, v1):.3f}")

# %% [markdown]
# ## 3. Queries meet keys: scores, scaling, mask, softmax, weights
#
# The decoder has written some tokens, and predicts at each of them the next one. Its queries come from these tokens,
# its keys from the memory. The cell computes the weights by hand and compares them with the model's own.

# %%
(translation,) = TranslationPipeline(tokenizer, model)(sentence)
print("written:", translation.text)
target = torch.tensor([[tokenizer.bos_token_id, *tokenizer.convert_tokens_to_ids(translation.tokens[:-1])]])

seen = {}
logits = model.decode(target, memory, record=seen.__setitem__)

layer = model.decoder[0]
x = model.embed(target)  # the tokens written so far
x = x + layer.self_attention(layer.norm1(x), mask=causal_mask(x.shape[1], x.shape[1]))  # each reads those before it
query = layer.norm2(x)
q = first.split_heads(first.to_q(query))
scores = q @ k1.transpose(-2, -1)
scaled = scores / q.shape[-1] ** 0.5
weights = scaled.softmax(dim=-1)
print("q      ", tuple(q.shape), "= (sentences, heads, target tokens, width of a head)")
print("scores ", tuple(scores.shape), "= (sentences, heads, target tokens, source tokens)")
print("each row of weights adds up to", weights.sum(-1).round(decimals=5).unique().tolist())
print("equal to the model's own weights:", torch.allclose(weights, seen["decoder.0.cross"], atol=1e-5))

# %% [markdown]
# **Scaling.** The dot product of two vectors of d_k components with unit variance has variance d_k; after division by
# √d_k it has variance 1. Without the scaling, softmax puts nearly all weight on one key. Its gradient vanishes there,
# and the layer stops learning.

# %%
widths = (16, 64, 256)
print(f"{'d_k':>4} {'variance':>9} {'scaled':>7}   {'gradient':>8} {'scaled':>7}")
for width in widths:
    found = scaling(width)
    print(
        f"{width:>4} {found['variance, plain']:>9.1f} {found['variance, scaled']:>7.2f}"
        f"   {found['gradient, plain']:>8.2f} {found['gradient, scaled']:>7.2f}"
    )

# %% [markdown]
# **Mask.** No query may attend to padding, and no target token to the tokens after it. Both masks work alike: they set
# weights to zero.

# %%
padded = torch.cat([ids, torch.full((1, 3), tokenizer.pad_token_id)], dim=1)
real = padded != tokenizer.pad_token_id
k_padded, _ = first.keys_values(model.encode(padded, real))
with_padding = attention_weights(q, k_padded, padding_mask(real))
print("weight on padding:", with_padding[..., len(tokens) :].abs().max().item())
print("the other weights are unchanged:", torch.allclose(with_padding[..., : len(tokens)], weights, atol=1e-5))
print("causal mask of 4 tokens (1 = may be attended):")
print(causal_mask(4, 4).int())

# %% [markdown]
# ## 4. Weights are not the output
#
# The weights only select. The output is the weighted sum of V, of all heads side by side, after one more projection.

# %%
per_head = weights @ v1
combined = first.combine_heads(per_head)
out = first.to_out(combined)
print("weights @ V", tuple(per_head.shape), "→ heads combined", tuple(combined.shape), "→ output", tuple(out.shape))
print("equal to the module's output:", torch.allclose(out, first(query, memory), atol=1e-5))

# %% [markdown]
# The weights and the values can even come from two memories. Here the keys are those of the sentence above, and the
# values those of the sentence about a green circle:

# %%
other = model.encode(torch.tensor(tokenizer(sentence.replace("red", "green"))["input_ids"])[None])
_, other_v = first.keys_values(other)
mixed = first.attend(query, k1, other_v)
print("same weights, other values: the output changes by", f"{(mixed - out).norm() / out.norm():.0%}")

# %% [markdown]
# ## 5. Self- and cross-attention are one module
#
# They differ only in where q, k and v come from.

# %%
module = MultiHeadAttention(width=8, heads=2)
x, read = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
shapes = {}
module(x, record=lambda w: shapes.update({"self-attention:  q, k and v from x        ": tuple(w.shape)}))
module(x, read, record=lambda w: shapes.update({"cross-attention: q from x, k and v elsewhere": tuple(w.shape)}))
for name, shape in shapes.items():
    print(f"{name:44} weights {shape}")
print("cross-attention to x itself is self-attention:", torch.allclose(module(x), module(x, x)))

# %% [markdown]
# ## 6. Teacher forcing and decoding step by step
#
# In training the decoder gets the full target at once; the causal mask hides from each position the token it must
# predict. Decoding goes token by token. Both give the same numbers. With a cache, each step computes one token, and the
# memory is projected to K and V only once.

# %%
cache, steps = DecoderCache(len(model.decoder)), []
for position in range(target.shape[1]):
    steps.append(model.decode(target[:, position : position + 1], memory, cache=cache))
print("largest difference of logits:", f"{(torch.cat(steps, dim=1) - logits).abs().max():.1e}")
print("tokens in the cache:", cache.length)

# %% [markdown]
# ## 7. The first reader: the decoder
#
# Each row is a token that the decoder wrote, each column a token of the source. Bright cells have much attention (mean
# over layers and heads).

# %%
plt.figure(figsize=(7, 7))
plt.imshow(alignment_sheet(translation))
plt.axis("off")
plt.show()

# %% [markdown]
# ## 8. The second reader: the picture
#
# The memory and the module are the same; only the queries come from image positions. So the UNet's weights have a row
# for each position. A column, laid out as a picture, is the map of a token.

# %%
grids = {}
noisy = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
pipe.unet(noisy, 900, memory, record=lambda layer, w, grid: grids.update({layer: (tuple(w.shape), grid)}))
for layer, (shape, grid) in grids.items():
    print(f"{layer:8} weights {shape} = (pictures, heads, {grid[0]}·{grid[1]} positions, tokens)")

# %%
prompt = translation.text
with trace(pipe) as english:
    left = pipe(sentence, generator=torch.Generator().manual_seed(0)).images[0]
with trace(pipe) as chinese:
    right = pipe(prompt, generator=torch.Generator().manual_seed(0)).images[0]
shown = [(english, left, ["red circle", "blue square"]), (chinese, right, [])]
figure, axes = plt.subplots(2, 3, figsize=(6.6, 4.6))
for row, (attention, picture, words) in zip(axes, shown, strict=True):
    words = words or sorted(attention.words, key=lambda word: -len(word.text))[:2]
    row[0].imshow(picture)
    for axis, word in zip(row[1:], words, strict=True):
        axis.imshow(attention.heatmap(word), cmap="inferno")
    for axis in row:
        axis.axis("off")
plt.tight_layout()
plt.show()
print("drawn from", sentence, "and from", prompt)

# %% [markdown]
# ## 9. What it costs, and what heads are for
#
# Every position attends to every other, so the time, and the memory for the weights, grow with the square of the
# length. torch's fused kernel never stores the weights. More heads at the same width are the same amount of arithmetic,
# h·n²·(d/h), divided differently.

# %%
lengths, heads = (64, 128, 256, 512, 1024), (1, 2, 4, 8)
with torch.enable_grad():
    by_length = [cost(n, heads=4, repeats=3) for n in lengths]
    by_heads = [cost(256, h, repeats=3) for h in heads]
figure, axes = plt.subplots(1, 3, figsize=(11, 3.2))
for kind, style in (("explicit", "o-"), ("fused", "s--")):
    axes[0].loglog(lengths, [found[f"ms, {kind}"] for found in by_length], style, label=kind)
    axes[1].loglog(lengths, [found[f"MB, {kind}"] for found in by_length], style, label=kind)
    axes[2].plot(heads, [found[f"ms, {kind}"] for found in by_heads], style, label=kind)
axes[0].set(xlabel="positions", title="milliseconds, forward and backward")
axes[1].set(xlabel="positions", title="megabytes kept for the backward pass")
axes[2].set(xlabel="heads at width 128", title="milliseconds at 256 positions", ylim=0)
axes[0].legend()
plt.tight_layout()
plt.show()

# %% [markdown]
# Several heads are useful if they attend to different tokens. `entropy` is 1 if attention is spread evenly and 0 if it
# is on one token. `overlap` is 1 if all heads of a layer attend alike. `distance` is the mean distance in tokens, for
# self-attention.

# %%
print(f"{'attention':18} {'entropy':>7} {'overlap':>7} {'distance':>8}")
for name, found in trained_heads(pipe).items():
    distance = f"{found['distance']:8.1f}" if "distance" in found else ""
    print(f"{name:18} {found['entropy']:7.2f} {found['overlap']:7.2f} {distance}")
