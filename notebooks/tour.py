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
# # How words become a picture
#
# All steps from a prompt to its picture, on a bundled model: **prompt → tokens → memory → attention → picture**.
# Everything printed here is computed here.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from pipelines import TextToImagePipeline, trace
from pipelines.scenes.judge import judge
from pipelines.scenes.scene import word_mask
from pipelines.scenes.shapes import render, scene
from unet_xattn import attention_weights
from unet_xattn.words import split_words

pipe = TextToImagePipeline.from_pretrained("shapes")
pipe.set_progress_bar_config(disable=True)
prompt = "a red circle left of a blue square"

# %% [markdown]
# ## 1. Prompt to tokens
#
# The tokenizer splits the prompt into tokens and numbers them, between a start and an end token. Each token has its
# position in the text, so the tokens of a word can be found.

# %%
ids = pipe.tokenizer(prompt)["input_ids"]
print(list(zip(pipe.tokenizer.convert_ids_to_tokens(ids), ids, strict=True)))
for word in split_words(prompt + " and an octopus", pipe.tokenizer):
    print(f"{word.text:8} characters {word.start:2}–{word.end:2}  tokens {word.tokens}")

# %% [markdown]
# ## 2. Tokens to memory
#
# The encoder turns the T tokens into T vectors, the **memory**. Self-attention mixes them: the vector of "circle"
# changes if another colour precedes it.

# %%
with torch.no_grad():
    memory, token_mask = pipe.encode_prompt([prompt])
    other, _ = pipe.encode_prompt(["a green circle left of a blue square"])
print("memory", tuple(memory.shape))
for position, token in enumerate(pipe.tokenizer.convert_ids_to_tokens(ids)):
    similarity = torch.cosine_similarity(memory[0, position], other[0, position], dim=0)
    print(f"{token:8} cosine with the same position in the prompt about a green circle: {similarity:.3f}")

# %% [markdown]
# ## 3. Memory to keys and values, picture to queries
#
# Memory is not yet K or V: every cross-attention layer projects it with its own weights. The queries come from the
# picture. Here is what the layers do with a real picture that has some noise.

# %%
layers = pipe.unet.attention_layers
print("layers that read the memory, in the order they run:", layers)

described = scene(seed=5, index=3, kind="relation")
picture, masks = render(described)
clean = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
noisy = 0.7 * clean + 0.3 * noise  # rectified flow: 30 % of the straight line from picture to noise
print(described.caption)

recorded = {}
with torch.no_grad():
    memory, token_mask = pipe.encode_prompt([described.caption])
    pipe.unet(
        noisy,
        300,
        memory,
        token_mask,
        record=lambda layer, weights, grid: recorded.update({layer: (weights, grid)}),
    )
for layer, (weights, grid) in recorded.items():
    print(f"{layer:8} weights (batch, heads, positions, tokens) = {tuple(weights.shape)}, grid {tuple(grid)}")

# %% [markdown]
# Each position distributes its attention over the tokens, so each row adds up to one. The weights are
# softmax(q kᵀ / √d):

# %%
weights, grid = recorded[layers[-1]]
print("rows add up to one:", torch.allclose(weights.sum(-1), torch.ones(())))
q, k = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 5, 4)
by_hand = torch.softmax(q @ k.transpose(-1, -2) / 4**0.5, dim=-1)
print("attention_weights is softmax(q kᵀ / √d):", torch.allclose(attention_weights(q, k), by_hand))

# %% [markdown]
# ## 4. Each word's map and the exact mask
#
# A scene has a mask for each word: the region that the word describes. So accuracy can be measured: how much of each
# word's attention lies inside its mask?

# %%
offsets = pipe.tokenizer(described.caption, return_offsets_mapping=True)["offset_mapping"]
maps = torch.stack(
    [
        torch.nn.functional.interpolate(
            w.mean(1).transpose(1, 2).unflatten(-1, g), (64, 64), mode="bilinear", align_corners=False
        )[0]
        for w, g in recorded.values()
    ]
).mean(0)  # (tokens, 64, 64), the mean over layers and heads
masked = [(word, word_mask(word, masks)) for word in described.words]
masked = [(word, mask) for word, mask in masked if mask is not None]
figure, axes = plt.subplots(2, len(masked) + 1, figsize=(2 * len(masked) + 2, 4.4), squeeze=False)
axes[0][0].imshow(picture)
axes[1][0].imshow(((noisy[0].permute(1, 2, 0) + 1) / 2).clamp(0, 1))
axes[0][0].set_title("clean, noisy", fontsize=9)
for column, (word, mask) in enumerate(masked, 1):
    tokens = [i for i, (s, e) in enumerate(offsets) if s < word.end and e > word.start]
    heat = maps[tokens].sum(0).numpy()
    axes[0][column].imshow(mask, cmap="gray", vmin=0, vmax=1)
    axes[1][column].imshow(heat, cmap="inferno")
    inside = (heat * mask).sum() / heat.sum()
    axes[0][column].set_title(
        f"{described.caption[word.start : word.end]}\n{inside:.0%} inside\n(chance {mask.mean():.0%})", fontsize=8
    )
for axis in axes.flat:
    axis.axis("off")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## 5. Attention to picture
#
# Now the picture is drawn from noise. The sampler knows nothing of the text: at each step it asks the UNet for a
# direction and moves a little that way. `trace` records the attention of each step.

# %%
states = []


def keep_state(pipe, step, timestep, values):
    states.append(values["latents"][0].permute(1, 2, 0).add(1).div(2).clamp(0, 1))
    return values


with trace(pipe, keep="step") as attention:
    image = pipe(prompt, generator=torch.Generator().manual_seed(0), callback_on_step_end=keep_state).images[0]
shown = [0, 4, 9, 14, 19]
figure, axes = plt.subplots(3, len(shown), figsize=(2 * len(shown), 6.4))
for column, step in enumerate(shown):
    axes[0][column].imshow(states[step])
    axes[0][column].set_title(f"step {step + 1}", fontsize=9)
    for row, word in ((1, "red circle"), (2, "blue square")):
        axes[row][column].imshow(attention.heatmap(word, step=step), cmap="inferno")
        axes[row][column].set_title(word, fontsize=9)
for axis in axes.flat:
    axis.axis("off")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## 6. From a region back to the words that drew it

# %%
heat = attention.heatmap("circle")
y, x = np.unravel_index(int(heat.argmax()), heat.shape)
box = (max(x - 4, 0), max(y - 4, 0), min(x + 4, 64), min(y + 4, 64))
print(f"words that drew the box {tuple(int(v) for v in box)}, around the peak of 'circle':")
for word, share in attention.words_at(box):
    print(f"  {word.text:8} {share:.1%}")

# %% [markdown]
# ## 7. Does the picture show what the prompt says?
#
# A judge that uses no network checks the pixels: palette colours, connected components, shapes by their overlap. It
# compares them with the scene whose caption was drawn.

# %%
drawn = pipe(described.caption, generator=torch.Generator().manual_seed(1), output_type="np").images[0]
verdict = judge(described, (drawn * 255).round().astype(np.uint8))
print(described.caption)
for check in verdict.checks:
    print("✓" if check.ok else "✗", check.text)
