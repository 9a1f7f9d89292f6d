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
# # Word to region, and back
#
# All questions that a trace answers, on a bundled model; then how accurate the answers are. Everything printed here is
# computed here, except the curves of the last figure, which come with the model.

# %%
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from pipelines import TextToImagePipeline, attribute, trace, verify
from pipelines.evaluation.grounding import OBJECT_WORDS, read
from pipelines.evaluation.maps import judge_map, maps_of
from pipelines.scenes.shapes import render, scene
from pipelines.text_to_image import BUNDLED
from ui.export import export
from unet_xattn import AttentionTrace

pipe = TextToImagePipeline.from_pretrained("shapes")
pipe.set_progress_bar_config(disable=True)
prompt = "a red circle left of a blue square"


def show(pictures, titles, **style):
    _, axes = plt.subplots(1, len(pictures), figsize=(2.1 * len(pictures), 2.5), squeeze=False)
    for axis, picture, title in zip(axes[0], pictures, titles, strict=True):
        axis.imshow(picture, **style)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    plt.tight_layout()
    plt.show()


# %% [markdown]
# ## 1. Record
#
# Choose before drawing what a trace keeps apart: nothing (`"mean"`, the default), each step (`"step"`), each head
# (`"head"`), or both (`"full"`). The memory it needs is computed first, and refused if it is over the budget.

# %%
with trace(pipe, keep="full") as attention:
    image = pipe(prompt, generator=torch.Generator().manual_seed(7)).images[0]
print("words ", [word.text for word in attention.words])
print("tokens", attention.tokens_of(0))
print("layers", {layer: attention.recording.grids[layer] for layer in attention.layers})
print("settings", dict(attention.recording.settings))
try:
    with trace(pipe, keep="full", budget=2**20):
        pipe(prompt)
except ValueError as error:
    print("refused:", error)

# %% [markdown]
# ## 2. Where did a word act?
#
# A map can be that of a word, a phrase, an occurrence or a token, and of one step, layer or head, or of all. Its values
# are shares of all attention at a place, or are divided by the word's own peak.

# %%
asked = {
    "red": attention.heatmap("red"),
    "circle": attention.heatmap("circle"),
    "red circle": attention.heatmap("red circle"),
    "second 'a'": attention.heatmap("a", occurrence=1),
    "start token": attention.heatmap(0),
    "calibrated: circle": attention.heatmap("circle", reduce="calibrated"),
}
show(
    [image, *asked.values()],
    ["picture", *(f"{name}\npeak {heat.max():.0%}" for name, heat in asked.items())],
    cmap="inferno",
)

# %%
steps = [0, 2, 5, 10, 19]
show(
    [attention.heatmap("circle", step=step, scale="peak") for step in steps],
    [f"circle, step {step + 1}" for step in steps],
    cmap="inferno",
)
show(
    [attention.heatmap("circle", layer=layer, scale="peak") for layer in attention.layers],
    [f"circle, {layer}\n{attention.recording.grids[layer]}" for layer in attention.layers],
    cmap="inferno",
)

# %% [markdown]
# ## 3. Which words drew a region?
#
# A region is a point, a box or a mask. The rest of the attention went to the start and end tokens.

# %%
y, x = divmod(int(attention.heatmap("circle").argmax()), 64)
for region in [(x, y), (0, 0, 64, 8)]:
    shares = attention.words_at(region)
    best = ", ".join(f"{word} {share:.1%}" for word, share in shares[:4])
    print(f"{region}: {best}, no word {1 - sum(share for _, share in shares):.1%}")
dominant = attention.segmentation()
show([image, dominant], ["picture", "dominant word"], cmap="tab10")
print(
    {
        str(attention.words[i]) if i >= 0 else "none": f"{(dominant == i).float().mean():.1%}"
        for i in dominant.unique().tolist()
    }
)

# %% [markdown]
# ## 4. Measures
#
# `mass` is the mean share; `entropy` is 1 if a map is even; `area` is the part of the picture with at least half the
# peak; `centre` is in pixels. `leakage` is how far two words share places.

# %%
for word in attention.words:
    found = attention.measure(word)
    print(f"{word.text:7} mass {found.mass:.3f}  entropy {found.entropy:.2f}  area {found.area:.2f}  centre "
          f"({found.centre[0]:.0f}, {found.centre[1]:.0f})")  # fmt: skip
names = [word.text for word in attention.words]
leakage = attention.leakage()
pairs = [("red", "circle"), ("blue", "square"), ("red", "square"), ("blue", "circle")]
print({f"{a}, {b}": round(float(leakage[names.index(a), names.index(b)]), 2) for a, b in pairs})

# %% [markdown]
# Eight seeds: where does "red" act on average, and how much does this vary between pictures?

# %%
with trace(pipe) as many:
    pipe([prompt] * 8, generator=[torch.Generator().manual_seed(i) for i in range(8)])
show(many.spread("red"), ["red: mean of 8 seeds", "standard deviation"], cmap="inferno")

# %% [markdown]
# ## 5. An existing picture
#
# `attribute` adds noise at several levels and records the attention. A scene has an exact mask for each word, so the
# answer can be scored.

# %%
described = scene(seed=5, index=3, kind="relation")
picture = Image.fromarray(render(described)[0])
seen = attribute(pipe, picture, described.caption, keep="head")
reading, located = read(pipe, described)
located = [(word, mask) for kind, word, mask in located if kind in OBJECT_WORDS]
print(described.caption)
show([picture, *(mask for _, mask in located)], ["picture", *(f"mask of {word}" for word, _ in located)], cmap="gray")
show(
    [picture, *(seen.heatmap(word, reduce="calibrated", scale="peak") for word, _ in located)],
    ["picture", *(str(word) for word, _ in located)],
    cmap="inferno",
)
for name in ("mean", "DAAM's rule", "calibrated", "calibrated, refined"):
    judged = [judge_map(maps_of(reading, word, [name])[name], mask) for word, mask in located]
    pointing, mass, iou, ap = np.mean(judged, axis=0)
    print(f"{name:20} pointing {pointing:.2f}  mass inside {mass:.2f}  IoU {iou:.2f}  average precision {ap:.2f}")

# %% [markdown]
# ## 6. Outlines
#
# A map has the grid of its layers, here 16×16. `mask` spreads it along the picture's own colours and keeps what is at
# least half of the peak. So it holds the picture's edges as well as the attention. `masks` gives each pixel one word;
# `unet-xattn export --masks` writes them as pictures, as a map of numbers and in COCO's format.

# %%
words = [word for word, _ in located]
show(
    [picture, *(seen.heatmap(word, refine="edges", scale="peak") for word in words)],
    ["picture", *(f"{word}, refined" for word in words)],
    cmap="inferno",
)
labels = seen.masks()
show([picture, *(seen.mask(word) for word in words), labels], ["picture", *map(str, words), "all words"], cmap="gray")
print({word.text: f"{(labels == number).float().mean():.1%}" for number, word in enumerate(seen.words)})

# %% [markdown]
# ## 7. Sinks, and what tells words apart
#
# Start and end tokens take what no word needs. `of="text"` leaves them out; `dropped` is what was left out.
# `of="words"` is a word's map against the maps of all words.

# %%
print({name: f"{seen.heatmap(name).mean():.0%}" for name in seen.columns_of() if name.startswith("[")})
word = words[0]
show(
    [seen.heatmap(word), seen.heatmap(word, of="text"), seen.heatmap(word, of="words").clamp_min(0), seen.dropped()],
    [str(word), "of the text's share", "against all words", "start and end tokens"],
    cmap="inferno",
)

# %% [markdown]
# ## 8. Words that were not said
#
# Concepts are read beside the prompt and never written: a drawn picture would stay the same. With an empty caption this
# finds things in a picture by their names. Two concepts may claim one thing, each by its own `mask`; `masks` gives
# each pixel to the one with the largest share there, or to none.

# %%
names = [f"{thing.colour} {thing.shape}" for thing in described.objects] + ["purple star", "orange ring"]
asked = attribute(pipe, picture, "", concepts=names)
show([picture, *(asked.mask(name) for name in names)], ["picture", *names], cmap="gray")
found = asked.masks(branch="concepts")
print({name: f"{(found == number).float().mean():.1%} of the picture" for number, name in enumerate(names)})
print(f"none: {(found == -1).float().mean():.1%}")

# %% [markdown]
# ## 9. Is the recording what the model computed?

# %%
print(verify(pipe))

# %% [markdown]
# ## 10. Is a map faithful?
#
# Withhold one word from every layer, draw again from the same seed, and see where the picture changes. The curves show,
# for many prompts, how much of the change lies in the part of the picture where the map is strongest.

# %%
word = next(word for word in attention.words if word.text == "square")
without = pipe(
    prompt, generator=torch.Generator().manual_seed(7), ignore=[word.tokens], ignore_below=0.8
).images[0]  # fmt: skip
change = np.abs(np.asarray(image, float) - np.asarray(without, float)).mean(axis=-1)
show([image, without, change, attention.heatmap(word)], ["with", "without “square”", "change", "map"], cmap="inferno")

report = json.loads((BUNDLED / "shapes" / "grounding.json").read_text())["faithfulness"]
figure, axes = plt.subplots(1, len(report["cuts"]), figsize=(9, 3.6), sharey=True)
for axis, (cut, methods) in zip(axes, report["cuts"].items(), strict=True):
    for name, figures in methods.items():
        axis.plot(report["settings"]["shares"], figures["curve"], label=f"{name}: {figures['auc'][0]:.2f}")
    axis.plot([0, 1], [0, 1], ":", color="gray", label="chance: 0.50")
    axis.set(title=f"withheld from {cut}", xlabel="share of the area, strongest first")
    axis.legend(fontsize=8)
axes[0].set_ylabel("share of the change")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## 11. Save it
#
# One safetensors file holds the maps, the picture, the prompt, the tokens and the settings. It opens without a model.
# `export` writes pictures, an animation of the steps, a table and a self-contained HTML page from it.

# %%
with tempfile.TemporaryDirectory() as folder:
    attention.save(Path(folder) / "trace.safetensors")
    again = AttentionTrace.load(Path(folder) / "trace.safetensors")
    print(
        f"{(Path(folder) / 'trace.safetensors').stat().st_size / 2**20:.1f} MiB;",
        again.prompts,
        again.recording.settings["seeds"],
    )
    for file in export(again, Path(folder) / "all"):
        print(f"{file.name:20} {file.stat().st_size / 1024:6.0f} KiB")
