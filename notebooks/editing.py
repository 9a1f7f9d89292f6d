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

from pipelines import TextToImagePipeline, edit, excite, paint, refine, replace, reweight, trace, withhold, within
from pipelines.edited import picture_of_change
from pipelines.samplers import integrate
from pipelines.scenes.judge import judge
from pipelines.scenes.worlds import WORLDS, parse, render

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
# ## A picture that exists
#
# Here one that a program painted. It is noised, and the edited picture is drawn from the same noise: what no edit is
# about follows the picture as it is noised, and so comes out as it was. `inexact` is what is lost before any edit: here
# only the rounding of colours, with a VAE what that loses.

# %%
scene = WORLDS["shapes"].scene(99, 4, "relation")
existing = Image.fromarray(render(scene, 64)[0])
repainted = pipe(scene.caption, image=existing, edits=[replace("yellow square", "red heart")], generator=seeded())
show(
    [existing, repainted.images[0], picture_of_change(existing, repainted.images[0])],
    ["a file", "yellow square → red heart", "change"],
)
print(f"{scene.caption}: kept to within {repainted.inexact[0]:.2%}")

# %% [markdown]
# ## A word that is neglected
#
# Drawn in 8 steps instead of 20, this picture lacks its triangle. `excite` takes the gradient of how much its
# words are read at the place that reads them most, and moves the noise along it, until a place reads them enough
# (Attend-and-Excite, arXiv 2301.13826).

# %%
crowded = "a large orange cross, a small orange triangle and a small purple square, on a gray ground"
few = torch.Generator().manual_seed(13)
helped = pipe(crowded, num_inference_steps=8, edits=[excite("orange triangle")], generator=few)
show([helped.before[0], helped.images[0]], ["before", "“orange triangle” excited"])

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
# ## Keys from one prompt, values from another
#
# Positions choose by the keys which tokens to read, and the values are what they get. To tell the two apart, the UNet
# reads two prompts at once, one behind the other. The hook lets each position choose among the tokens of the first, and
# gives it the values of the second, token for token. The judge says whose colours and shapes the picture has, and whose
# order: the first prompt of each pair says "left of", the second "right of".

# %%
colours, shapes = ["red", "blue", "green", "yellow", "purple"], ["circle", "square", "star", "triangle", "heart"]
rng = np.random.default_rng(0)
pairs = []
for _ in range(24):
    c, s = rng.permutation(colours)[:4], rng.permutation(shapes)[:4]
    pairs.append([(f"a {c[i]} {s[i]} {at} a {c[i + 1]} {s[i + 1]}") for i, at in ((0, "left of"), (2, "right of"))])
first, second = zip(*pairs, strict=True)


@torch.no_grad()
def keys_and_values(keys: tuple[str, ...], values: tuple[str, ...]) -> list[np.ndarray]:
    (of_keys, mask), (of_values, _) = pipe.encode_prompt(keys), pipe.encode_prompt(values)
    memory, both = torch.cat([of_keys, of_values], dim=1), mask.repeat(1, 2)  # (B, 2T, D), (B, 2T)

    def exchange(layer: str, weights: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        read = weights[..., : mask.shape[1]]  # what is read by the keys of the first prompt, (B, H, N, T)
        read = read / read.sum(dim=-1, keepdim=True)
        return torch.cat([torch.zeros_like(read), read], dim=-1)

    def denoise(x: torch.Tensor, timestep: torch.Tensor, sigma: float, step: int) -> torch.Tensor:
        return pipe.unet(x, timestep, memory, both, record=exchange).sample

    generator = seeded()
    noise = torch.randn(len(keys), *pipe.latent_shape(64, 64), generator=generator)
    latents = integrate(denoise, noise, pipe.scheduler, 20, generator)
    return [np.asarray(picture) for picture in pipe.image_processor.postprocess(latents)]


def agrees(picture: np.ndarray, prompt: str) -> list[bool | None]:
    """Whether a picture has the colours and the shapes of a prompt, and its two colours in the prompt's order."""
    asked, seen = parse(prompt, "shapes"), WORLDS["shapes"].see(picture).objects  # the one on the left comes first
    found = [[o for o in seen if o.colour == wanted.colour] for wanted in asked.objects]
    return [
        {o.colour for o in asked.objects} <= {o.colour for o in seen},
        {o.shape for o in asked.objects} <= {o.shape for o in seen},
        found[0][0].x < found[1][0].x if all(len(own) == 1 for own in found) else None,
    ]


print("24 pairs                     colours  shapes  order")
ways = {"one prompt for both": (first, first), "first, second": (first, second), "second, first": (second, first)}
for name, (keys, values) in ways.items():
    drawn = keys_and_values(keys, values)
    for whose, prompts in (("keys", keys), ("values", values)):
        rows = [agrees(picture, prompt) for picture, prompt in zip(drawn, prompts, strict=True)]
        known = [[row[i] for row in rows if row[i] is not None] for i in range(3)]
        shares = [f"{np.mean(own):7.0%}" if own else "      –" for own in known]
        print(f"{name + ', of the ' + whose:28}", *shares)

# %% [markdown]
# No colour and no shape comes from the keys' prompt: what is drawn, the values decide. But it is right less often, as
# keys have to fit what positions already show: with those of another sentence they find their tokens less well. The
# order follows neither prompt reliably; for that, both have to say the same.

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
