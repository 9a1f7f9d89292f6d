"""The parts of a training run: its data, its networks, and the pipeline made of them."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from pipelines.components import TextEncoder, Vae, check_size, find_text_encoder, find_vae, memory_width, scale_factor
from pipelines.data.batches import Collator
from pipelines.data.pictures import PictureExamples
from pipelines.data.scenes import SceneExamples
from pipelines.data.stream import Examples
from pipelines.pictures import shapes_near
from pipelines.runs.processes import this_process
from pipelines.samplers import SAMPLERS, TRAINED_FOR
from pipelines.scenes.worlds import WORLDS
from pipelines.sources.check import check
from pipelines.text_to_image import TextToImagePipeline, find_model
from pipelines.tokenizer import train_tokenizer
from pipelines.training.config import TrainConfig
from pipelines.training.distill import Distillation
from pipelines.training.frozen import Frozen
from pipelines.training.objective import TextToImageModel
from pipelines.training.run import OpenRun
from pipelines.training.vocabulary import Kept
from unet_xattn import CrossAttentionUNet, Transformer, flow


def build(
    config: TrainConfig, examples: Examples, kept: Kept | None = None
) -> tuple[PreTrainedTokenizerFast, TextEncoder, CrossAttentionUNet, Vae | None]:
    """The networks of a run: new ones for these examples, those it names, or those of the model it initialises from.

    kept: what a resumed run keeps, so that its weights fit and mean the same.

    Raises:
        ValueError: a named network was not found, or the model to initialise from has its own.
    """
    if begin_from := config.begin_from or config.distill:
        if config.text_encoder or config.vae:
            raise ValueError(f"{begin_from} has its own networks: leave out --text-encoder and --vae")
        pipe = TextToImagePipeline.from_pretrained(begin_from)
        pipe.unet.register_to_config(sample_size=config.size // pipe.vae_scale_factor)
        tokenizer = pipe.tokenizer if kept is None or kept.tokenizer is None else kept.tokenizer
        return tokenizer, pipe.text_encoder, pipe.unet, pipe.vae
    text_encoder: TextEncoder
    if config.text_encoder:
        tokenizer, text_encoder = find_text_encoder(config.text_encoder)
    else:
        if kept is None:
            tokenizer, translates = train_tokenizer(examples.captions()), config.text_weight > 0 and examples.translates
        else:
            tokenizer, translates = kept.tokenizer, kept.translates
        text_encoder = Transformer(vocab_size=len(tokenizer), decoder_layers=2 if translates else 0)
    width = memory_width(text_encoder)
    if not config.vae:
        patch = 2 if config.size < 128 else 4  # the finest grid is 32×32 at 64 pixels and at 128, at the same cost
        return tokenizer, text_encoder, CrossAttentionUNet(config.size, patch_size=patch, memory_width=width), None
    vae = find_vae(config.vae)
    side = config.size // scale_factor(vae)
    patch = 1 if side < 64 else 2  # the finest grid of the UNet is then 32×32 at 256 pixels and at 512
    unet = CrossAttentionUNet(side, vae.config.latent_channels, patch_size=patch, memory_width=width)
    return tokenizer, text_encoder, unet, vae


def make_model(
    config: TrainConfig, text_encoder: TextEncoder, unet: CrossAttentionUNet, vae: Vae | None, device: torch.device
) -> tuple[TextToImageModel, Frozen]:
    """The networks that are trained, with their losses, and the frozen encoders in front of them.

    Raises:
        ValueError: the networks cannot draw pictures of the run's size.
    """
    check_size(unet, vae, config.size, config.size)
    trains_text = isinstance(text_encoder, Transformer)
    networks = text_encoder if trains_text else None, unet.to(memory_format=torch.channels_last)
    model = Distillation(*networks, config.few_steps) if config.distill else TextToImageModel(*networks)
    frozen = Frozen(
        None if trains_text else text_encoder.to(device),
        None if vae is None else vae.to(device),
        None if config.data in WORLDS else Path(config.out) / "latents",  # no scene comes twice
    )
    return model.to(device), frozen


def make_collator(
    config: TrainConfig, tokenizer: PreTrainedTokenizerFast, unet: CrossAttentionUNet, vae: Vae | None
) -> Collator:
    """The collator of a run, with masks on the finest grid of the UNet that attends to the text."""
    factor = scale_factor(vae)
    cell = factor * unet.config.patch_size * 2 ** unet.config.cross_attention.index(True)  # pixels
    shift = flow.time_shift(config.size // factor) if config.time_shift is None else config.time_shift
    return Collator(tokenizer, config.seed, config.caption_dropout, cell, shift)


def load_examples(config: TrainConfig) -> Examples:
    """The data of a run: the endless scenes, or captioned pictures."""
    if config.data in WORLDS:
        return SceneExamples(config.size, config.seed, config.data)
    found = check(
        config.data,
        size=config.size,
        on_bad=config.on_bad,
        streaming=config.streaming,
        limit=config.limit,
        progress=this_process().is_main_process,
    )
    shapes = [(config.size, config.size)]
    if config.buckets:
        shapes = shapes_near(config.size, size_multiple(config.begin_from or config.distill))
    return PictureExamples(found.rows, shapes, config.seed, config.batch_size, config.fit, config.flip)


def has_new_words(run: OpenRun[TrainConfig]) -> bool:
    """Whether a run may learn words that its tokenizer was not trained on. A student learns its teacher's alone."""
    from_another = bool(run.config.begin_from) and run.checkpoint is None
    return not run.config.distill and (from_another or run.has_changed("data"))


def validation_set(examples: Examples) -> str:
    """What a run validates on, in a few words."""
    if not isinstance(examples, PictureExamples):
        return "scenes of another seed"
    count, small = f"{len(examples.held_out):,}", set(examples.held_out) == set(examples.trained)
    return f"its {count} training pictures" if small else f"{count} held-out pictures"


def guidance_notes(config: TrainConfig) -> list[str]:
    """A line to print where a run makes a model that refuses guidance from one that accepts it."""
    if not config.begin_from or config.caption_dropout:
        return []
    if not TextToImagePipeline.load_config(find_model(config.begin_from)).get("guidable", True):
        return []
    return [f"note: {config.begin_from} can be guided, the new model cannot: --caption-dropout 0.1 would keep that"]


def length_notes(examples: Examples, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """A line to print if captions have more tokens than the model reads. Those of scenes never do."""
    if not isinstance(examples, PictureExamples):
        return []
    texts, limit = list(dict.fromkeys(examples.captions())), tokenizer.model_max_length
    lengths = map(len, tokenizer(texts, verbose=False)["input_ids"])
    if not (cut := [text for text, length in zip(texts, lengths, strict=True) if length > limit]):
        return []
    return [f"warning: {len(cut):,} captions are longer than {limit} tokens and not read to their end: {cut[0][:40]}…"]


def size_multiple(begin_from: str) -> int:
    """The number whose multiples are the sides of pictures that a run's model can draw.

    It is needed before the model is built, because that needs the captions.
    """
    settings = CrossAttentionUNet.load_config(find_model(begin_from), subfolder="unet") if begin_from else {}
    with torch.device("meta"):  # no weights
        return CrossAttentionUNet.from_config(settings).size_multiple


def as_pipeline(
    tokenizer: PreTrainedTokenizerFast, model: TextToImageModel, frozen: Frozen, config: TrainConfig
) -> TextToImagePipeline:
    """A pipeline that shares the weights of `model` and has the settings with which it draws best."""
    text_encoder = model.text_encoder or frozen.text_encoder
    settings: dict[str, Any] = {"guidance_scale": 1.0, "guidable": config.caption_dropout > 0}
    if config.distill:
        settings["num_inference_steps"] = config.few_steps
    scheduler = SAMPLERS[TRAINED_FOR]()
    pipe = TextToImagePipeline(tokenizer, text_encoder, model.unet, scheduler, frozen.vae, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe
