"""The curves of compare.py as a picture: agreement against minutes of training.

    python tests/benchmarks/curves.py --out .github/compare-curves.png

Curves of one picture are of machines alike; what has been measured again with a better recipe is left out.
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results" / "compare.json"

# Apart in hue and in lightness (Okabe and Ito's colours, which the colour-blind can tell).
SHOWN = {
    "ours": ("#0072b2", "ours"),
    "ours-lent": ("#56b4e9", "ours, with their text encoder"),
    "diffusers": ("#d55e00", "diffusers"),
    "imagen": ("#999999", "imagen-pytorch"),
}

BEFORE = {"a9e33fe1c9b6", "342789da102c"}
"""Commits whose curves at 16 pixels were measured again with a better recipe."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    titles = {16: "16×16, our recipe as it is now", 32: "32×32, our recipe before"}
    for ax, (size, title) in zip(axes, titles.items(), strict=True):
        named: set[str] = set()
        for curve in json.loads(RESULTS.read_text())["curves"]:
            system, code = curve["system"], curve["code"].removeprefix("commit ")
            again = system.startswith("ours") and code in BEFORE
            if curve["size"] != size or again or code.endswith("-dirty"):  # the last: on a slower machine than the rest
                continue
            colour, label = SHOWN[system]
            minutes = [point["minutes"] for point in curve["points"]]
            for split, style in (("seen", "-"), ("held_out", "--")):
                shares = [100 * point[split] for point in curve["points"]]
                first = split == "seen" and system not in named
                ax.plot(minutes, shares, style, color=colour, marker=".", label=label if first else None)
                named.add(system)
        ax.axhline(80, color="#cccccc", linewidth=0.8, zorder=0)
        ax.set(xscale="log", xlabel="minutes of training, one thread", title=title, ylim=(-2, 102))
        ticks = [2, 3, 5, 10, 20, 40, 60, 140]
        ax.set_xticks(ticks, [str(t) for t in ticks])
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    axes[0].set_ylabel("all correct, %   (— seen, - - held out)")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
