"""Tiny random pipelines of every family of diffusers that draws pictures from text, and variants of how they are used.

Nothing comes from the network, and a seed fixes the weights. `pipeline(name)` builds each pipeline once a process.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import tiny_parts as parts
import torch
from packaging.version import Version
from PIL import Image
from torch import nn

if TYPE_CHECKING:  # importing it takes seconds
    from diffusers import DiffusionPipeline

Arguments = dict[str, Any]


# What a family is


UPSTREAM = (
    ("`FluxPosEmbed` is deprecated", FutureWarning),  # Chroma
    ("`LoraLoaderMixin` is deprecated", FutureWarning),  # PRX
    ("`torch.jit.script` is deprecated", DeprecationWarning),  # Kolors
)


@contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings that libraries cause in each other while a pipeline is imported and built."""
    with warnings.catch_warnings():
        for message, category in UPSTREAM:
            warnings.filterwarnings("ignore", message, category)
        yield


def awaken(model: nn.Module) -> None:
    """Add noise to the weights: with the initial ones, text would hardly reach the picture, or not at all."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))


@dataclass(frozen=True)
class Family:
    """How one kind of pipeline is built and called.

    `pipeline` is the name of its class in diffusers, `parts` makes that class's arguments, and `change` does the rest.
    `kind` says how the picture reads the text: "cross" (cross-attention), "added" (keys and values of the text beside
    those of the picture), "joint" (one attention over two streams), "single" (over one stream), "joint and single", or
    "none". `call` are the arguments of a call, but for the prompt and the generator. `prompts` are two texts for which
    the pictures must differ. `module` is where the class is imported from, `needs` a package that may be missing.
    """

    pipeline: str
    parts: Callable[[], Arguments]
    kind: str
    call: Arguments
    change: Callable[["DiffusionPipeline"], Any] | None = None
    prompts: tuple[str, str] = ("a red circle left of a blue square", "a photo of a cat and a dog")
    module: str = "diffusers"
    needs: str = ""

    @property
    def exists(self) -> bool:
        """Whether the installed diffusers has the pipeline."""
        return self.pipeline in dir(diffusers)

    def build(self) -> "DiffusionPipeline":
        """A new pipeline on the CPU, the same every time."""
        with quietly(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe = getattr(import_module(self.module), self.pipeline)(**self.parts())
            for name, part in pipe.components.items():
                if isinstance(part, nn.Module):
                    part.eval()
                    if name not in ("vae", "movq"):
                        awaken(part)
            if self.change:
                self.change(pipe)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def draw(self, pipe: "DiffusionPipeline", prompt: str | list[str], seed: int = 0, **changes: Any) -> np.ndarray:
        """Pictures with values in 0..1, (pictures, height, width, 3); `changes` replace arguments of the call."""
        text = {} if self.kind == "none" else {"prompt": prompt}
        arguments = text | self.call | changes
        generator = torch.Generator().manual_seed(seed)
        return pipe(**arguments, generator=generator, output_type="np", return_dict=False)[0]


@dataclass(frozen=True)
class Variant(Family):
    """Another way to use a family."""

    family: str = ""


# Families with cross-attention

SD_UNET = {
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "norm_num_groups": 2,
}


def sd_unet(**settings: Any) -> nn.Module:
    """The UNet of Stable Diffusion, whose 7 layers that read text see 1, 1/2 and 1/4 of the latent pixels a side."""
    up = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    return diffusers.UNet2DConditionModel(**SD_UNET | {"up_block_types": up, "sample_size": 16} | settings)


SD = {"cross_attention_dim": 32, "attention_head_dim": 2}
SDXL = {
    "cross_attention_dim": 64,
    "attention_head_dim": (2, 4, 4),
    "transformer_layers_per_block": (1, 2, 1),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
}
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def sd(in_channels: int = 4, **more: Any) -> Arguments:
    """Stable Diffusion 1 and 2: 77 tokens of CLIP."""
    unet = sd_unet(**SD, in_channels=in_channels)
    company = {"vae": parts.kl(), "scheduler": parts.ddim()}
    return parts.texts(parts.clip()) | {"unet": unet} | company | NO_CHECKER | more


def sdxl(in_channels: int = 4, **more: Any) -> Arguments:
    """SDXL: 77 tokens, the channels of two CLIPs side by side."""
    text = parts.texts(parts.clip(), parts.clip(projection=True))
    text["tokenizer_2"].pad_token = "!"
    unet = sd_unet(**SDXL, in_channels=in_channels)
    return text | {"unet": unet, "vae": parts.kl(), "scheduler": parts.euler()} | more


def kolors() -> Arguments:
    """Kolors: the UNet of SDXL, and 256 tokens of ChatGLM, padded on the left."""
    text = parts.texts(parts.chatglm())
    unet = sd_unet(**SDXL | {"cross_attention_dim": 32, "encoder_hid_dim": 32, "encoder_hid_dim_type": "text_proj"})
    return text | {"unet": unet, "vae": parts.kl(), "scheduler": parts.euler()}


DIT = {"patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}


def pixart() -> Arguments:
    """PixArt α and Σ: 120 and 300 tokens of T5, masked."""
    sizes = DIT | {"out_channels": 8, "cross_attention_dim": 16, "caption_channels": 32, "sample_size": 16}
    transformer = diffusers.PixArtTransformer2DModel(**sizes)
    return parts.texts(parts.t5()) | {"transformer": transformer, "vae": parts.kl(), "scheduler": parts.ddim()}


def sana(sprint: bool = False) -> Arguments:
    """Sana and Sana Sprint: 300 tokens of Gemma 2, of which an instruction is cut off; self-attention is linear."""
    text = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16}
    norm = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"} if sprint else {}
    sizes = DIT | {"patch_size": 1, "out_channels": 4, "caption_channels": 32, "sample_size": 32} | text | norm
    transformer = diffusers.SanaTransformer2DModel(**sizes)
    scheduler = diffusers.SCMScheduler() if sprint else parts.flow(shift=7.0)
    return parts.texts(parts.gemma2()) | {"transformer": transformer, "vae": parts.dc(), "scheduler": scheduler}


def hunyuandit() -> Arguments:
    """HunyuanDiT: 77 tokens of BERT, then 256 of T5."""
    text = {"cross_attention_dim": 32, "cross_attention_dim_t5": 32, "pooled_projection_dim": 16}
    sizes = DIT | {"hidden_size": 16, "num_layers": 4, "sample_size": 16, "activation_fn": "gelu-approximate"}
    transformer = diffusers.HunyuanDiT2DModel(**sizes, **text)
    company = {"vae": parts.kl(blocks=4), "scheduler": diffusers.DDPMScheduler()}
    return parts.texts(parts.bert(), parts.t5()) | {"transformer": transformer} | company | NO_CHECKER


LUMINA = {
    "in_channels": 4,
    "patch_size": 2,
    "hidden_size": 16,
    "num_layers": 2,
    "num_attention_heads": 2,
    "num_kv_heads": 1,
    "multiple_of": 16,
    "sample_size": 16,
    "scaling_factor": 1.0,
}


def lumina() -> Arguments:
    """Lumina-Next: Gemma, padded to the longest prompt."""
    transformer = diffusers.LuminaNextDiT2DModel(**LUMINA, cross_attention_dim=32)
    company = {"vae": parts.flow_kl(blocks=4), "scheduler": parts.flow()}
    return parts.texts(parts.gemma()) | {"transformer": transformer} | company


def kandinsky3() -> Arguments:
    """Kandinsky 3: T5, padded to the longest prompt."""
    sizes = {"in_channels": 4, "block_out_channels": (32, 64), "layers_per_block": 3, "groups": 2}
    text = {"attention_head_dim": 4, "cross_attention_dim": 4, "encoder_hid_dim": 32, "time_embedding_dim": 4}
    unet = diffusers.Kandinsky3UNet(**sizes, **text)
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    return parts.texts(parts.t5()) | {"unet": unet, "movq": parts.movq(blocks=4), "scheduler": scheduler}


def kandinsky5() -> Arguments:
    """Kandinsky 5: Qwen 2.5 VL behind a template that is cut off."""
    text = {"in_text_dim": 16, "in_text_dim2": 32, "time_dim": 16, "num_text_blocks": 1}
    sizes = {"model_dim": 32, "ff_dim": 64, "num_visual_blocks": 2, "axes_dims": (4, 6, 6)}
    transformer = diffusers.Kandinsky5Transformer3DModel(**text, **sizes)
    company = {"vae": parts.flow_kl(blocks=4), "scheduler": parts.flow()}
    return parts.texts(parts.qwen2_vl(), parts.clip()) | {"transformer": transformer} | company


# Families that put keys and values of the text beside those of the picture

ADDED = {
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "encoder_hid_dim": 32,
    "resnet_time_scale_shift": "scale_shift",
}


def deepfloyd() -> Arguments:
    """DeepFloyd IF, which draws pixels: 77 tokens of T5."""
    text = {"addition_embed_type": "text", "addition_embed_type_num_heads": 2, "cross_attention_norm": "group_norm"}
    unet = diffusers.UNet2DConditionModel(**ADDED, **text, in_channels=3, out_channels=6, act_fn="gelu")
    noise = {"beta_schedule": "squaredcos_cap_v2", "thresholding": True, "variance_type": "learned_range"}
    company = {"scheduler": diffusers.DDPMScheduler(**noise), "watermarker": None}
    return parts.texts(parts.t5()) | {"unet": unet} | company | NO_CHECKER


def kandinsky21() -> Arguments:
    """Kandinsky 2.1: 10 tokens of a picture's embedding, then 77 of a multilingual CLIP."""
    text = {"addition_embed_type": "text_image", "encoder_hid_dim_type": "text_image_proj"}
    unet = diffusers.UNet2DConditionModel(**ADDED, **text, in_channels=4, out_channels=8)
    company = {"movq": parts.movq(blocks=3), "scheduler": parts.ddim()}
    return parts.texts(parts.multilingual_clip()) | {"unet": unet} | company


def kandinsky22() -> Arguments:
    """Kandinsky 2.2: only its prior reads the text; what draws is given an embedding of the picture."""
    image = {"addition_embed_type": "image", "encoder_hid_dim_type": "image_proj"}
    unet = diffusers.UNet2DConditionModel(**ADDED, **image, in_channels=4, out_channels=8)
    return {"unet": unet, "movq": parts.movq(blocks=3), "scheduler": parts.ddim()}


def prx() -> Arguments:
    """PRX: 256 tokens of T5Gemma, before the picture's."""
    sizes = {"in_channels": 4, "context_in_dim": 32, "hidden_size": 16, "num_heads": 2, "depth": 2, "axes_dim": [4, 4]}
    transformer = diffusers.PRXTransformer2DModel(**sizes)
    company = {"vae": parts.flow_kl(), "scheduler": parts.flow()}
    return parts.texts(parts.t5_gemma()) | {"transformer": transformer} | company


# Families with joint attention


def flows(transformer: nn.Module, *encoders: parts.TextEncoder, **more: Any) -> Arguments:
    """The arguments of a model of flows, but for what else is given."""
    company = {"transformer": transformer, "vae": parts.flow_kl(), "scheduler": parts.flow()}
    return parts.texts(*encoders) | company | more


def sd3(dual: bool = False, **more: Any) -> Arguments:
    """Stable Diffusion 3, and 3.5 with its dual attention: 77 tokens of two CLIPs, then 256 of T5."""
    text = {"caption_projection_dim": 16, "joint_attention_dim": 80, "pooled_projection_dim": 64}
    sizes = DIT | {"num_layers": 3, "out_channels": 4, "sample_size": 32, "pos_embed_max_size": 64}
    dual_layers = {"dual_attention_layers": (0,) if dual else (), "qk_norm": "rms_norm"}
    transformer = diffusers.SD3Transformer2DModel(**sizes, **text, **dual_layers)
    clips = parts.clip(projection=True), parts.clip(projection=True)
    return flows(transformer, *clips, parts.t5(d_model=80), **more)


FLUX = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "axes_dims_rope": (4, 4, 8),
}


def flux(in_channels: int = 16, **more: Any) -> Arguments:
    """Flux 1: 512 tokens of T5, and CLIP for the text as a whole."""
    sizes = FLUX | {"in_channels": in_channels, "pooled_projection_dim": 32, "guidance_embeds": True}
    transformer = diffusers.FluxTransformer2DModel(**sizes, out_channels=16)
    return flows(transformer, parts.clip(), parts.t5(), **more)


def flux2_klein() -> Arguments:
    """Flux 2 klein: 512 tokens of Qwen 3 in a chat template."""
    sizes = FLUX | {"axes_dims_rope": (4, 4, 4, 4), "timestep_guidance_channels": 16, "guidance_embeds": False}
    transformer = diffusers.Flux2Transformer2DModel(**sizes)
    return flows(transformer, parts.qwen3(head=True), vae=parts.flux2_kl())


def chroma() -> Arguments:
    """Chroma: 512 tokens of T5, masked."""
    approximator = {"approximator_hidden_dim": 32, "approximator_layers": 1, "approximator_num_channels": 16}
    return flows(diffusers.ChromaTransformer2DModel(**FLUX, **approximator), parts.t5())


def ovis() -> Arguments:
    """Ovis: 256 tokens of Qwen 3 behind a template that is cut off."""
    return flows(diffusers.OvisImageTransformer2DModel(**FLUX, out_channels=16), parts.qwen3())


def bria() -> Arguments:
    """Bria: 128 tokens of T5."""
    return flows(diffusers.BriaTransformer2DModel(**FLUX), parts.t5())


def longcat() -> Arguments:
    """LongCat: 512 tokens of Qwen 2.5 VL; without what rewrites prompts."""
    sizes = FLUX | {"in_channels": 64, "joint_attention_dim": 16, "pooled_projection_dim": 16}
    transformer = diffusers.LongCatImageTransformer2DModel(**sizes)
    return flows(transformer, parts.qwen2_vl(), vae=parts.flow_kl(channels=16), text_processor=None)


def auraflow() -> Arguments:
    """AuraFlow: 8 registers, then 256 tokens of UMT5."""
    layers = {"num_mmdit_layers": 2, "num_single_dit_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4}
    sizes = {"in_channels": 4, "out_channels": 4, "caption_projection_dim": 32, "joint_attention_dim": 32}
    transformer = diffusers.AuraFlowTransformer2DModel(**layers, **sizes, sample_size=32, pos_embed_max_size=1024)
    return flows(transformer, parts.umt5(), vae=parts.kl())


def hidream() -> Arguments:
    """HiDream: 128 tokens of T5, then 128 of Llama, and in each layer 128 of a layer of Llama."""
    experts = {"num_routed_experts": 4, "num_activated_experts": 2, "axes_dims_rope": (4, 2, 2)}
    text = {"caption_channels": [32, 32], "text_emb_dim": 64, "llama_layers": (0, 1), "max_resolution": (32, 32)}
    sizes = DIT | {"out_channels": 4, "num_layers": 1, "num_single_layers": 1}
    transformer = diffusers.HiDreamImageTransformer2DModel(**sizes, **experts, **text)
    clips = parts.clip(projection=True, length=128), parts.clip(projection=True, length=128)
    return flows(transformer, *clips, parts.t5(), parts.llama())


def hunyuanimage() -> Arguments:
    """HunyuanImage: 1,000 tokens of Qwen 2.5 VL behind a template that is cut off, and 128 bytes of quoted words."""
    layers = DIT | {"patch_size": (1, 1), "num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1}
    text = {"text_embed_dim": 16, "text_embed_2_dim": 32, "rope_axes_dim": (4, 4)}
    transformer = diffusers.HunyuanImageTransformer2DModel(**layers, **text, out_channels=4)
    guiders = {name: diffusers.AdaptiveProjectedMixGuidance() for name in ("guider", "ocr_guider")}
    return flows(transformer, parts.qwen2_vl(), parts.byt5(), vae=parts.hunyuan_vae(), **guiders)


COGVIEW = DIT | {"out_channels": 4, "text_embed_dim": 32, "time_embed_dim": 8, "condition_dim": 4}


def cogview3plus() -> Arguments:
    """CogView 3+: 224 tokens of T5."""
    transformer = diffusers.CogView3PlusTransformer2DModel(**COGVIEW, pos_embed_max_size=64, sample_size=16)
    return flows(transformer, parts.t5(), vae=parts.kl(), scheduler=diffusers.CogVideoXDDIMScheduler())


def cogview4() -> Arguments:
    """CogView 4: GLM, padded on the left to 16, 32, … tokens."""
    shift = {"base_shift": 0.25, "max_shift": 0.75, "use_dynamic_shifting": True, "time_shift_type": "linear"}
    transformer = diffusers.CogView4Transformer2DModel(**COGVIEW)
    return flows(transformer, parts.glm(), vae=parts.kl(), scheduler=parts.flow(**shift))


def glm_image() -> Arguments:
    """GLM-Image: bytes of quoted words. The call brings what its language model sketches of the whole prompt."""
    transformer = diffusers.GlmImageTransformer2DModel(**COGVIEW, prior_vq_quantizer_codebook_size=32)
    vae = parts.kl(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    return flows(transformer, parts.byt5(), vae=vae, processor=None, vision_language_encoder=None)


def qwenimage() -> Arguments:
    """Qwen-Image: Qwen 2.5 VL behind a template that is cut off."""
    sizes = {"in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 3}
    transformer = diffusers.QwenImageTransformer2DModel(**sizes, joint_attention_dim=16, axes_dims_rope=(8, 4, 4))
    return flows(transformer, parts.qwen2_vl(), vae=parts.qwen_vae())


# Families with one stream of text and picture


def lumina2() -> Arguments:
    """Lumina 2: 256 tokens of Gemma 2, masked."""
    axes = {"axes_dim_rope": (4, 2, 2), "axes_lens": (600, 64, 64)}
    transformer = diffusers.Lumina2Transformer2DModel(**LUMINA, **axes, num_refiner_layers=1, cap_feat_dim=32)
    return flows(transformer, parts.gemma2(), vae=parts.flow_kl(blocks=4))


def z_image() -> Arguments:
    """Z-Image: the picture, then Qwen 3 in a chat template, each padded to a multiple of 32."""
    layers = {"n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
    axes = {"axes_dims": [8, 4, 4], "axes_lens": [256, 64, 64]}
    transformer = diffusers.ZImageTransformer2DModel(**layers, **axes, in_channels=4, dim=32, cap_feat_dim=32)
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        nn.init.zeros_(token)  # diffusers 0.36 leaves them unset
    return flows(transformer, parts.qwen3(), vae=parts.kl(scaling_factor=0.36, shift_factor=0.11))


def ernie() -> Arguments:
    """ERNIE-Image: the picture, then the text, here of Qwen 3: any encoder that returns hidden states will do."""
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 37, "text_in_dim": 32}
    latents = {"in_channels": 16, "out_channels": 16, "rope_axes_dim": (4, 6, 6)}
    return flows(diffusers.ErnieImageTransformer2DModel(**sizes, **latents), parts.qwen3(), vae=parts.flux2_kl())


def krea2() -> Arguments:
    """Krea 2: 512 tokens of Qwen 3 VL, behind a template that is cut off and before one that is not."""
    sizes = {"in_channels": 16, "num_layers": 2, "attention_head_dim": 16, "axes_dims_rope": (8, 4, 4)}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 37, "timestep_embed_dim": 16}
    text = {"hidden_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 37}
    blocks = {"num_text_layers": 2, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1}
    text = {f"text_{name}": size for name, size in text.items()}
    transformer = diffusers.Krea2Transformer2DModel(**sizes, **heads, **text, **blocks)
    scheduler = parts.flow(use_dynamic_shifting=True)
    return flows(
        transformer, parts.qwen3_vl(), vae=parts.qwen_vae(), scheduler=scheduler, text_encoder_select_layers=(1, 2)
    )


# Calls

BOTH = "joint and single"

SIZED = {"height": 64, "width": 96, "num_inference_steps": 2}
LARGE = SIZED | {"height": 128, "width": 192}  # pipelines that count on 8 pixels a latent pixel, in patches of 2 × 2
BINNED = SIZED | {"use_resolution_binning": False}
UNCLEANED = {"clean_caption": False}
TRUE_CFG = {"negative_prompt": "low quality", "true_cfg_scale": 4.0}
QUOTED = ('a red "circle" left of a blue square', 'a photo of a "cat" and a dog')  # GLM-Image reads nothing else
SKETCH = {"prior_token_ids": torch.arange(8 * 12)[None] % 32}
EMBEDDINGS = {"image_embeds": torch.ones(1, 32), "negative_image_embeds": torch.zeros(1, 32)}

PICTURE = Image.radial_gradient("L").resize((96, 64)).convert("RGB")
MASK = Image.linear_gradient("L").resize((96, 64)).point(lambda grey: 255 * (grey > 127))
HOLE = {"image": PICTURE, "mask_image": MASK, "strength": 1.0}
KONTEXT = {"image": PICTURE, "max_area": 64 * 96, "_auto_resize": False}


def allow_small(pipe: "DiffusionPipeline") -> None:
    """Let Kandinsky 5 and HiDream draw small pictures, which they would enlarge to the sizes that they know."""
    pipe.resolutions = [(192, 128)]
    pipe.default_sample_size = 20


def leave_texts(pipe: "DiffusionPipeline") -> None:
    """Leave out PRX's cleaning of texts, which needs ftfy."""
    pipe.text_preprocessor.clean_text = str


def existing(table: dict[str, Any]) -> dict[str, Any]:
    return {name: family for name, family in table.items() if family.exists}


FAMILIES: dict[str, Family] = existing(
    {
        "sd": Family("StableDiffusionPipeline", sd, "cross", SIZED),
        "sdxl": Family("StableDiffusionXLPipeline", sdxl, "cross", SIZED),
        # Its package hides it where sentencepiece is missing.
        "kolors": Family("KolorsPipeline", kolors, "cross", SIZED, module="diffusers.pipelines.kolors.pipeline_kolors"),
        "pixart_alpha": Family("PixArtAlphaPipeline", pixart, "cross", BINNED | UNCLEANED),
        "pixart_sigma": Family("PixArtSigmaPipeline", pixart, "cross", BINNED | UNCLEANED),
        "sana": Family("SanaPipeline", sana, "cross", BINNED | UNCLEANED),
        "sana_sprint": Family("SanaSprintPipeline", partial(sana, sprint=True), "cross", BINNED | UNCLEANED),
        "hunyuandit": Family("HunyuanDiTPipeline", hunyuandit, "cross", LARGE | {"use_resolution_binning": False}),
        "lumina": Family("LuminaPipeline", lumina, "cross", LARGE | UNCLEANED),
        "kandinsky3": Family("Kandinsky3Pipeline", kandinsky3, "cross", SIZED | {"width": 128}),
        "kandinsky5": Family("Kandinsky5T2IPipeline", kandinsky5, "cross", LARGE, allow_small),
        "deepfloyd": Family("IFPipeline", deepfloyd, "added", SIZED | UNCLEANED | {"height": 32, "width": 48}),
        "kandinsky21": Family("KandinskyPipeline", kandinsky21, "added", SIZED | EMBEDDINGS),
        "kandinsky22": Family("KandinskyV22Pipeline", kandinsky22, "none", SIZED | EMBEDDINGS),
        "prx": Family("PRXPipeline", prx, "added", BINNED, leave_texts),
        "sd3": Family("StableDiffusion3Pipeline", sd3, "joint", SIZED),
        "sd3_dual": Family("StableDiffusion3Pipeline", partial(sd3, dual=True), "joint", SIZED),
        "cogview3plus": Family("CogView3PlusPipeline", cogview3plus, "joint", SIZED),
        "cogview4": Family("CogView4Pipeline", cogview4, "joint", SIZED),
        "glm_image": Family("GlmImagePipeline", glm_image, "joint", SIZED | SKETCH, prompts=QUOTED),
        "qwenimage": Family("QwenImagePipeline", qwenimage, "joint", SIZED | TRUE_CFG),
        "flux": Family("FluxPipeline", flux, BOTH, SIZED),
        "flux_kontext": Family("FluxKontextPipeline", flux, BOTH, SIZED | KONTEXT),
        "flux_fill": Family("FluxFillPipeline", partial(flux, in_channels=96), BOTH, SIZED | HOLE),
        "flux2_klein": Family("Flux2KleinPipeline", flux2_klein, BOTH, SIZED | {"text_encoder_out_layers": (1,)}),
        "chroma": Family("ChromaPipeline", chroma, BOTH, SIZED),
        "ovis": Family("OvisImagePipeline", ovis, BOTH, SIZED),
        "bria": Family("BriaPipeline", bria, BOTH, SIZED),
        "longcat": Family("LongCatImagePipeline", longcat, BOTH, SIZED | {"enable_prompt_rewrite": False}),
        "auraflow": Family("AuraFlowPipeline", auraflow, BOTH, SIZED),
        "hidream": Family("HiDreamImagePipeline", hidream, BOTH, SIZED, allow_small),
        "hunyuanimage": Family("HunyuanImagePipeline", hunyuanimage, BOTH, SIZED),
        "lumina2": Family("Lumina2Pipeline", lumina2, "single", LARGE),
        "z_image": Family("ZImagePipeline", z_image, "single", SIZED),
        "ernie": Family("ErnieImagePipeline", ernie, "single", SIZED),
        "krea2": Family("Krea2Pipeline", krea2, "single", SIZED),
    }
)


# Variants


def variant(family: str, **changes: Any) -> Variant:
    """A family, but for what changes."""
    same = {field.name: getattr(FAMILIES[family], field.name) for field in fields(Family)}
    return Variant(**same | changes, family=family)


def sd_with_controlnet() -> Arguments:
    """A ControlNet makes 4 pixels one, as the autoencoder does."""
    controlnet = diffusers.ControlNetModel(**SD_UNET, **SD, conditioning_embedding_out_channels=(8, 16, 16))
    return sd(controlnet=controlnet)


def flux_with_controlnet() -> Arguments:
    sizes = FLUX | {"num_layers": 1, "num_single_layers": 1, "pooled_projection_dim": 32}
    return flux(controlnet=diffusers.FluxControlNetModel(**sizes, guidance_embeds=True))


def sd_with_image_encoder() -> Arguments:
    image_encoder, feature_extractor = parts.clip_vision()
    return sd(image_encoder=image_encoder, feature_extractor=feature_extractor)


def add_ip_adapter(pipe: "DiffusionPipeline") -> None:
    """Give every layer that reads text four tokens of a picture to read as well."""
    names = [name.removesuffix(".processor") for name in pipe.unet.attn_processors if "attn2" in name]
    shapes = [pipe.unet.get_submodule(name).to_k.weight.shape for name in names]
    layers = {f"{2 * i + 1}.to_{x}_ip.weight": torch.randn(shape) for i, shape in enumerate(shapes) for x in "kv"}
    projection = {"proj.weight": torch.randn(4 * 32, 32), "proj.bias": torch.zeros(4 * 32)}
    norm = {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)}
    pipe.load_ip_adapter({"image_proj": projection | norm, "ip_adapter": layers}, subfolder="", weight_name="")


def add_lora(pipe: "DiffusionPipeline") -> None:
    """Change all projections of the attention, by random matrices of rank 2."""
    from peft import LoraConfig

    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))


def explain(pipe: "DiffusionPipeline") -> None:
    """Compute the weights of each attention before they are used, instead of calling a fused kernel."""
    from diffusers.models.attention_processor import AttnProcessor

    pipe.unet.set_attn_processor(AttnProcessor())


def add_word(pipe: "DiffusionPipeline") -> None:
    """Teach the text encoder `<disc>`, which becomes two tokens."""
    pipe.load_textual_inversion({"<disc>": torch.randn(2, 32)})


PICTURED = {"image": PICTURE, "strength": 0.7, "num_inference_steps": 3}
CONTROLLED = SIZED | {"image": PICTURE}
GUESSED = CONTROLLED | {"guess_mode": True}
SKIPPED = {
    "skip_guidance_layers": [1],
    "skip_layer_guidance_start": 0.0,
    "skip_layer_guidance_stop": 1.0,
    "num_inference_steps": 3,
}

VARIANTS: dict[str, Variant] = existing(
    {
        "sd_img2img": variant("sd", pipeline="StableDiffusionImg2ImgPipeline", call=PICTURED),
        "sd_inpaint": variant(
            "sd", pipeline="StableDiffusionInpaintPipeline", parts=partial(sd, in_channels=9), call=SIZED | HOLE
        ),
        "sd_controlnet": variant(
            "sd", pipeline="StableDiffusionControlNetPipeline", parts=sd_with_controlnet, call=CONTROLLED
        ),
        "sd_controlnet_guess": variant(
            "sd", pipeline="StableDiffusionControlNetPipeline", parts=sd_with_controlnet, call=GUESSED
        ),
        "sd_pag": variant("sd", pipeline="StableDiffusionPAGPipeline", parts=partial(sd, pag_applied_layers="mid")),
        "sd_ip_adapter": variant(
            "sd", parts=sd_with_image_encoder, call=SIZED | {"ip_adapter_image": PICTURE}, change=add_ip_adapter
        ),
        "sd_lora": variant("sd", change=add_lora, needs="peft"),
        "sd_textual_inversion": variant(
            "sd", change=add_word, prompts=("a <disc> and a dog", "a cat left of a <disc>")
        ),
        "sd_freeu": variant("sd", change=lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)),
        "sd_fused": variant("sd", change=lambda pipe: pipe.fuse_qkv_projections()),
        "sd_sliced": variant("sd", change=lambda pipe: pipe.enable_attention_slicing(1)),
        "sd_explicit": variant("sd", change=explain),
        "sdxl_img2img": variant("sdxl", pipeline="StableDiffusionXLImg2ImgPipeline", call=PICTURED),
        "sdxl_inpaint": variant(
            "sdxl", pipeline="StableDiffusionXLInpaintPipeline", parts=partial(sdxl, in_channels=9), call=SIZED | HOLE
        ),
        "sdxl_two_prompts": variant("sdxl", call=SIZED | {"prompt_2": "a dog, low quality"}),
        "sd3_img2img": variant("sd3", pipeline="StableDiffusion3Img2ImgPipeline", call=SIZED | PICTURED),
        "sd3_pag": variant(
            "sd3", pipeline="StableDiffusion3PAGPipeline", parts=partial(sd3, pag_applied_layers="blocks.1")
        ),
        "sd3_skip_layer": variant("sd3", call=SIZED | SKIPPED),
        "flux_img2img": variant("flux", pipeline="FluxImg2ImgPipeline", call=SIZED | PICTURED),
        "flux_inpaint": variant("flux", pipeline="FluxInpaintPipeline", call=SIZED | HOLE | PICTURED),
        "flux_controlnet": variant(
            "flux",
            pipeline="FluxControlNetPipeline",
            parts=flux_with_controlnet,
            call=SIZED | {"control_image": PICTURE},
        ),
        "flux_true_cfg": variant("flux", call=SIZED | TRUE_CFG),
        "chroma_img2img": variant("chroma", pipeline="ChromaImg2ImgPipeline", call=SIZED | PICTURED),
        "qwenimage_img2img": variant(
            "qwenimage", pipeline="QwenImageImg2ImgPipeline", call=SIZED | PICTURED | TRUE_CFG
        ),
    }
)


@cache
def pipeline(name: str) -> "DiffusionPipeline":
    """The pipeline of a family or of a variant, built once a process. Shared: do not change it.

    Tests of one that an older diffusers cannot import beside the other libraries are skipped.
    """
    try:
        return (FAMILIES | VARIANTS)[name].build()
    except (ImportError, RuntimeError) as error:
        is_old = Version(diffusers.__version__) < Version("0.42")
        if is_old and (isinstance(error, ImportError) or "Failed to import" in str(error)):
            pytest.skip(f"this diffusers does not import it: {' '.join(str(error).split())[-100:]}")
        raise
