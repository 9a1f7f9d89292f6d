"""A model to begin the training of the everyday things from: `emoji`, with their vocabulary, for 64 or 128 pixels.

What `emoji` knows of layout, number, size and of its 66 things is kept. Its UNet reads 2×2 patches; for 128×128 pixels
each value of a patch becomes 2×2 equal ones, so that the new UNet draws what the old one draws, enlarged. A token that
both vocabularies have keeps its vector; a new one starts at random.

    python tests/benchmarks/warm_start.py runs/start --size 128
    unet-xattn train --data everyday --size 128 --from runs/start --out runs/everyday
"""

import argparse
from pathlib import Path

import torch

from pipelines import TextToImagePipeline
from pipelines.data.scenes import SceneExamples
from pipelines.tokenizer import train_tokenizer
from unet_xattn import CrossAttentionUNet, Transformer


def enlarged(unet: CrossAttentionUNet) -> CrossAttentionUNet:
    """A UNet of twice the side and twice the patch that sees the mean of 2×2 pixels and draws each value four times."""
    new = CrossAttentionUNet(**{**unet.config, "sample_size": 128, "patch_size": 2 * unet.config.patch_size})
    weights = unet.state_dict()
    pixels, c, p = weights["conv_in.weight"][:, :-2], unet.config.in_channels, unet.config.patch_size
    wide = pixels.unflatten(1, (c, p, p)).repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    weights["conv_in.weight"] = torch.cat([wide.flatten(1, 3), weights["conv_in.weight"][:, -2:]], dim=1)
    for name in ("conv_out.weight", "conv_out.bias"):
        wide = weights[name].unflatten(0, (c, p, p)).repeat_interleave(2, 1).repeat_interleave(2, 2)
        weights[name] = wide.flatten(0, 2)
    new.load_state_dict(weights)
    return new


def main() -> None:
    """Write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, choices=(64, 128), default=128, help="side of its pictures in pixels")
    arguments = parser.parse_args()
    out, size = arguments.out, arguments.size
    torch.manual_seed(0)
    pipe = TextToImagePipeline.from_pretrained("emoji")
    old, new = pipe.tokenizer, train_tokenizer(SceneExamples(size, 0, "everyday").captions())
    encoder = Transformer(**{**pipe.text_encoder.config, "vocab_size": len(new)})
    weights = pipe.text_encoder.state_dict()
    vectors, known = encoder.state_dict(), old.get_vocab()
    for name, value in weights.items():
        if value.shape == vectors[name].shape:
            vectors[name] = value
            continue
        for token, row in new.get_vocab().items():  # the embedding, and whatever else has a row for each token
            if token in known:
                vectors[name][row] = value[known[token]]
    encoder.load_state_dict(vectors)
    pipe.register_modules(tokenizer=new, text_encoder=encoder, unet=enlarged(pipe.unet) if size == 128 else pipe.unet)
    pipe.save_pretrained(out)
    print(f"{len(set(known) & set(new.get_vocab()))} of {len(new)} tokens were known")


if __name__ == "__main__":
    main()
