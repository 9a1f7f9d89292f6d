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
# # Editing with evidence: causes, not correlations
#
# A heat map says where a word was read. Whether it *did* something there is another question, and it has a plain
# answer: change the word, keep everything else, and look at what changes. The layout of a picture is decided by where
# words act at high noise. So an edit holds every other word in its place, and the exact judge of the world of shapes
# says whether the picture shows what was asked for.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from pipelines import TextToImagePipeline, edit, paint, refine, replace, reweight, trace, withhold, within
from pipelines.edited import picture_of_change
from pipelines.scenes.judge import judge
from pipelines.scenes.worlds import WORLDS, parse

pipe = TextToImagePipeline.from_pretrained("shapes")
pipe.set_progress_bar_config(disable=True)
prompt = "a red circle left of a blue square"


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def show(pictures: list, titles: list[str]) -> None:
    _, axes = plt.subplots(1, len(pictures), figsize=(2 * len(pictures), 2.4), squeeze=False)
    for axis, picture, title in zip(axes[0], pictures, titles, strict=True):
        axis.imshow(picture)
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    plt.show()


# %% [markdown]
# ## One word, and only that
#
# The output has the edited pictures and those `before`, from the same noise.

# %%
edits = {
    "another shape": [replace("circle", "star")],
    "another colour": [replace("red", "green")],
    "one thing less": [refine("a blue square")],
    "another place": [paint("red circle", (2, 40, 24, 62))],
    "one thing more": [refine("a red circle, a blue square and a green star"), paint("green star", (24, 2, 42, 20))],
}
pictures, titles = [], []
for title, asked in edits.items():
    edited = pipe(prompt, edits=asked, generator=seeded())
    pictures += [] if pictures else [edited.before[0]]
    titles += [] if titles else ["before"]
    scene = parse(edited.prompts[0])
    ok = scene is not None and judge(scene, np.asarray(edited.images[0])).all_correct
    pictures.append(edited.images[0])
    titles.append(f"{title} {'✓' if ok else '✗'}")
show(pictures, titles)

# %% [markdown]
# What changed, and where: the largest difference of a colour at each pixel. `within` keeps everything but the circle on
# the path of the first picture.

# %%
edited = pipe(prompt, edits=[replace("red", "green"), within("circle")], generator=seeded())
show(
    [edited.before[0], edited.images[0], picture_of_change(edited.before[0], edited.images[0])],
    ["before", "red → green", "change"],
)

# %% [markdown]
# ## What did a word do?
#
# Take it away: no position may read it, in any layer. Here nothing is held, so that all it did is seen. The word's own
# map of the first picture stands below.

# %%
with trace(pipe) as attention:
    pipe(prompt, generator=seeded())
words = ["red", "circle", "left", "blue", "square"]
without = [pipe(prompt, edits=[withhold(word)], generator=seeded()).images[0] for word in words]
show(without, [f"without “{word}”" for word in words])
show([attention.heatmap(word, scale="peak") for word in words], words)

# %% [markdown]
# ## Dose and response
#
# Louder and softer: the weights of “red” times a number. Its share of the attention grows with it, and the colour of
# the thing in the picture follows.

# %%
doses = [0, 0.25, 0.5, 1, 2, 4]
shares, reds, pictures = [], [], []
for dose in doses:
    with edit(pipe, reweight("red", dose)) as attention:
        picture = pipe(prompt, generator=seeded()).images[0]
    shares.append(float(attention.heatmap("red").mean()))
    inside = np.asarray(picture, float)[edited.trace.mask("circle").numpy()].mean(axis=0)
    reds.append(inside[0] - inside[1:].mean())
    pictures.append(picture)
show(pictures, [f"× {dose}" for dose in doses])
_, axis = plt.subplots(figsize=(5, 3))
axis.plot(doses, np.array(shares) / max(shares), "o-", label="share of the attention, of the largest")
axis.plot(doses, np.array(reds) / max(reds), "s-", label="redness of the circle, of the largest")
axis.set_xlabel("weight of “red”")
axis.legend()
plt.show()

# %% [markdown]
# ## When is the layout decided?
#
# The circle is asked into another corner, but only from a noise level on, downwards. Begun late, it stays where it was.

# %%
box, begins = (2, 40, 24, 62), [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
rows = []
for begin in begins:
    picture = pipe(prompt, edits=[paint("red circle", box, noise=(0.0, begin))], generator=seeded()).images[0]
    found = [o for o in WORLDS["shapes"].see(np.asarray(picture)).objects if o.shape == "circle"]
    rows.append((begin, picture, round(64 * found[0].y) if len(found) == 1 else None))
show([picture for _, picture, _ in rows], [f"from {begin}: y {y}" for begin, _, y in rows])

# %% [markdown]
# ## Layout as input
#
# Regions need no first picture: each phrase is drawn in its box.

# %%
regions = {"red circle": (2, 2, 22, 22), "blue square": (40, 4, 60, 24), "green star": (20, 36, 44, 60)}
picture = pipe("a red circle, a blue square and a green star", regions=regions, generator=seeded()).images[0]
show([picture.resize((256, 256), Image.Resampling.NEAREST)], ["three boxes"])

# %% [markdown]
# `unet-xattn evaluate shapes --editing` counts how often an edit does what it was meant to, and only that, beside
# drawing the edited prompt anew and beside prompt-to-prompt. `edit(pipe, …)` reweights, withholds, paints and pins
# words in pipelines of diffusers, too: see [pipelines/tracing](../pipelines/tracing/README.md).
