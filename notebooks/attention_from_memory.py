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
# A sentence becomes **memory**: one vector for each token. Memory is not K, nor V. Every layer that reads it makes keys
# and values of its own from it, asks with queries of its own, and takes what the answer weighs most. This notebook
# follows that one line, on the model that comes with the package, and ends with two readers of the same memory: a
# decoder that writes the sentence in another language, and a UNet that draws it.
#
# Nothing here is quoted: every number is computed in the cell above it.

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
# The encoder reads all tokens at once and gives each a vector that knows about the others.

# %%
ids = torch.tensor(tokenizer(sentence)["input_ids"])[None]
tokens = tokenizer.convert_ids_to_tokens(ids[0])
memory = model.encode(ids)
print("tokens", tokens)
print("memory", tuple(memory.shape), "= (sentences, tokens, width)")

# %% [markdown]
# ## 2. Memory becomes each layer's own K and V
#
# Two layers of the decoder read the very same memory, and hardly agree on what its keys are: each has projections of
# its own. That is why memory is worth keeping and K and V are not the model's "knowledge", only a layer's view of it.

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
# The decoder has written some tokens and asks, at each of them, what to write next. Its queries come from there, the
# keys from memory. We take the step apart and put it beside what the model itself did.

# %%
(translation,) = TranslationPipeline(tokenizer, model)(sentence)
print("written:", translation.text)
target = torch.tensor([[tokenizer.bos_token_id, *tokenizer.convert_tokens_to_ids(translation.tokens[:-1])]])

seen = {}
logits = model.decode(target, memory, record=seen.__setitem__)

layer = model.decoder[0]
x = model.embed(target)  # each token written so far
x = x + layer.self_attention(layer.norm1(x), mask=causal_mask(x.shape[1], x.shape[1]))  # has read those before it
asking = layer.norm2(x)  # and now asks the memory
q = first.split_heads(first.to_q(asking))
scores = q @ k1.transpose(-2, -1)
scaled = scores / q.shape[-1] ** 0.5
weights = scaled.softmax(dim=-1)
print("q      ", tuple(q.shape), "= (sentences, heads, target tokens, width of a head)")
print("scores ", tuple(scores.shape), "= (sentences, heads, target tokens, source tokens)")
print("each row of weights adds up to", weights.sum(-1).round(decimals=5).unique().tolist())
print("the model's own weights are these:", torch.allclose(weights, seen["decoder.0.cross"], atol=1e-5))

# %% [markdown]
# **Scaling.** A product of two vectors of d_k unit components has variance d_k; after 1/√d_k it is one. Without it
# softmax puts all on one key, and where it does, its gradient is gone: nothing can be learnt there any more.

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
# **Mask.** Padding holds nothing, so no query may look at it; a target token may not look at what comes after it. Both
# are the same thing: positions of weight zero.

# %%
padded = torch.cat([ids, torch.full((1, 3), tokenizer.pad_token_id)], dim=1)
real = padded != tokenizer.pad_token_id
k_padded, _ = first.keys_values(model.encode(padded, real))
with_padding = attention_weights(q, k_padded, padding_mask(real))
print("weight on padding:", with_padding[..., len(tokens) :].abs().max().item())
print("and the rest is as it was:", torch.allclose(with_padding[..., : len(tokens)], weights, atol=1e-5))
print("causal mask of 4 tokens (1 = may look):")
print(causal_mask(4, 4).int())

# %% [markdown]
# ## 4. Weights are not the output
#
# Weights say where to look; what comes out is V, so weighed, all heads side by side, through one more projection.

# %%
per_head = weights @ v1
combined = first.combine_heads(per_head)
out = first.to_out(combined)
print("weights @ V", tuple(per_head.shape), "→ heads combined", tuple(combined.shape), "→ output", tuple(out.shape))
print("the module says the same:", torch.allclose(out, first(asking, memory), atol=1e-5))

# %% [markdown]
# Where to look and what to read there can even come from two memories. Here the layer looks by the sentence above and
# reads the one about a green circle:

# %%
other = model.encode(torch.tensor(tokenizer(sentence.replace("red", "green"))["input_ids"])[None])
mixed = first(asking, memory, values=other)
print("same weights, other values: the output moved by", f"{(mixed - out).norm() / out.norm():.0%}")

# %% [markdown]
# ## 5. Self- and cross-attention are one module
#
# They differ in nothing but where q, k and v come from.

# %%
module = MultiHeadAttention(width=8, heads=2)
x, read = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
shapes = {}
module(x, record=lambda w: shapes.update({"self-attention:  q, k and v from x        ": tuple(w.shape)}))
module(x, read, record=lambda w: shapes.update({"cross-attention: q from x, k and v elsewhere": tuple(w.shape)}))
for name, shape in shapes.items():
    print(f"{name:44} weights {shape}")
print("cross-attention to oneself is self-attention:", torch.allclose(module(x), module(x, x)))

# %% [markdown]
# ## 6. Teacher forcing and writing step by step
#
# Training shows the decoder the whole target at once; the causal mask keeps each place from seeing what it is to say.
# Writing goes token by token. Both give the same numbers; with a cache, each step computes one token, and the memory's
# K and V are projected once.

# %%
cache, steps = DecoderCache(len(model.decoder)), []
for position in range(target.shape[1]):
    steps.append(model.decode(target[:, position : position + 1], memory, cache=cache))
print("largest difference of logits:", f"{(torch.cat(steps, dim=1) - logits).abs().max():.1e}")
print("tokens in the cache:", cache.length)

# %% [markdown]
# ## 7. The first reader: the decoder
#
# Each row is a token it wrote, each column a token of the source, bright where it looked (mean over layers and heads).

# %%
plt.figure(figsize=(7, 7))
plt.imshow(alignment_sheet(translation))
plt.axis("off")
plt.show()

# %% [markdown]
# ## 8. The second reader: the picture
#
# The same memory, the same module, only the queries come from image positions. So the UNet's weights have a row for
# each position, and a column of them, laid out as a picture, is where a word landed.

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
# Every position looks at every other, so time and the weights that must be kept grow with the square of the length;
# torch's fused kernel never keeps them. More heads at the same width are as much arithmetic, h·n²·(d/h), only cut
# otherwise.

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
axes[0].set(xlabel="positions", title="milliseconds, forward and back")
axes[1].set(xlabel="positions", title="megabytes kept for the way back")
axes[2].set(xlabel="heads at width 128", title="milliseconds at 256 positions", ylim=0)
axes[0].legend()
plt.tight_layout()
plt.show()

# %% [markdown]
# Heads are worth having where they look at different things. `entropy`: 1 looks everywhere, 0 at one token. `overlap`:
# 1 where all heads of a layer look alike. `distance`: how far away, in tokens, where a sentence reads itself.

# %%
print(f"{'attention':18} {'entropy':>7} {'overlap':>7} {'distance':>8}")
for name, found in trained_heads(pipe).items():
    distance = f"{found['distance']:8.1f}" if "distance" in found else ""
    print(f"{name:18} {found['entropy']:7.2f} {found['overlap']:7.2f} {distance}")
