"""Tiny untrained encoders and VAEs of transformers and diffusers, from their folders to pictures and maps."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import AutoencoderKL, AutoencoderTiny, FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

import pipelines.training.frozen
from pipelines import TextToImagePipeline, TranslationPipeline, attribute, trace, verify
from pipelines.components import (
    can_translate,
    decode_latents,
    encode_pictures,
    encode_text,
    find_text_encoder,
    find_vae,
    load_network,
    to_tensor,
)
from pipelines.data.batches import Collator
from pipelines.data.scenes import SceneExamples
from pipelines.data.stream import Example
from pipelines.runs.checkpoint import checkpoints
from pipelines.runs.signals import StoppedError
from pipelines.tokenizer import MAX_TOKENS
from pipelines.tracing.follow import draw_states, follow_picture
from pipelines.training.frozen import Frozen, fingerprint
from pipelines.training.train import TrainConfig, train
from pipelines.training.validate import draw_samples
from ui.cli import main
from ui.drawing import Drawing, forming
from ui.reading import read
from ui.request import Request
from unet_xattn import AttentionTrace, CrossAttentionUNet
from unet_xattn.words import split_words, unknown_words

PROMPT = "a red circle left of a blue square"
CAPTIONS = ["a black night", "a dark wall", "some grey fog", "a white cat"]
TEXTS = [PROMPT, *CAPTIONS, "一个红色的圆形在蓝色方块的左边", "a well-made frog's eye, seen from above!"] * 4

Folders = dict[str, Path]


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's own class on a vocabulary of a few words."""
    like = CLIPTokenizer().backend_tokenizer
    core = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    core.normalizer, core.pre_tokenizer = like.normalizer, like.pre_tokenizer
    letters = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|startoftext|>", "<|endoftext|>", *(f"{letter}</w>" for letter in letters)]
    trainer = trainers.BpeTrainer(
        vocab_size=660, initial_alphabet=letters, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    model = json.loads(core.to_str())["model"]
    return CLIPTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


def t5_tokenizer() -> T5Tokenizer:
    """T5's own class on a vocabulary of a few pieces."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = T5Tokenizer().backend_tokenizer.pre_tokenizer
    special = ["<pad>", "</s>", "<unk>"]
    core.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    vocabulary = [tuple(piece) for piece in json.loads(core.to_str())["model"]["vocab"]]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Tiny encoders and VAEs as their libraries save them."""
    out = tmp_path_factory.mktemp("ecosystem")
    found = {name: out / name for name in ("clip", "t5", "kl", "tiny")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = clip_tokenizer()
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1}
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        clip = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=77, **sizes, **ends))
        clip.save_pretrained(found["clip"])
        tokenizer.save_pretrained(found["clip"])
        t5 = T5EncoderModel(T5Config(vocab_size=128, d_model=24, d_kv=12, d_ff=48, num_layers=2, num_heads=2))
        t5.save_pretrained(found["t5"])
        t5_tokenizer().save_pretrained(found["t5"])
        AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.5,
            shift_factor=0.25,
        ).save_pretrained(found["kl"])
        AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            latent_channels=3,
        ).save_pretrained(found["tiny"])
    return found


@pytest.fixture(scope="module")
def make_pipe(folders: Folders, make_unet: Callable[..., CrossAttentionUNet]) -> Callable[..., TextToImagePipeline]:
    """A function of names of `folders` -> an untrained pipeline whose pictures depend on prompt and noise."""

    def make(text: str = "clip", vae_name: str = "kl") -> TextToImagePipeline:
        tokenizer, text_encoder = find_text_encoder(str(folders[text]))
        vae = find_vae(str(folders[vae_name]))
        unet = make_unet(
            sample_size=16,
            in_channels=vae.config.latent_channels,
            patch_size=2,
            memory_width=text_encoder.config.hidden_size,
        )
        pipe = TextToImagePipeline(tokenizer, text_encoder, unet, FlowMatchEulerDiscreteScheduler(), vae)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture(scope="module")
def pipe(make_pipe: Callable[..., TextToImagePipeline]) -> TextToImagePipeline:
    """CLIP's memory, an AutoencoderKL's latents. Shared: do not change it."""
    return make_pipe()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    weights, others = one.state_dict(), other.state_dict()
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def draw(pipe: TextToImagePipeline, prompt: str = PROMPT, **kwargs: object) -> torch.Tensor:
    settings = {"generator": seeded(), "num_inference_steps": 2, "output_type": "pt"} | kwargs
    return pipe(prompt, **settings).images


# Words and tokens.


@pytest.mark.parametrize("name", ["clip", "t5"])
def test_the_tokens_of_a_word_spell_it_and_no_other_token_does(folders: Folders, name: str) -> None:
    tokenizer, _ = find_text_encoder(str(folders[name]))
    for text in ("  a red  circle,left of a well-made square!", CAPTIONS[0], "a frog's eye"):
        ids = tokenizer(text)["input_ids"]
        spelled = [token.replace("</w>", "").replace("▁", "") for token in tokenizer.convert_ids_to_tokens(ids)]
        words = split_words(text, tokenizer)
        assert ["".join(spelled[i] for i in word.tokens) for word in words] == [word.text for word in words]
        assert len({i for word in words for i in word.tokens}) == sum(len(word.tokens) for word in words)
        special = [i for i, token in enumerate(ids) if token in (tokenizer.bos_token_id, tokenizer.eos_token_id)]
        assert special and not {i for word in words for i in word.tokens} & set(special)


@pytest.mark.parametrize("name", ["clip", "t5"])
def test_padding_never_moves_a_words_tokens_nor_changes_its_memory(folders: Folders, name: str) -> None:
    tokenizer, text_encoder = find_text_encoder(str(folders[name]))
    alone = tokenizer("a cat", return_tensors="pt")
    padded = tokenizer(["a cat", PROMPT], padding=True, return_tensors="pt")
    count = alone["input_ids"].shape[1]
    assert padded["input_ids"][0, :count].tolist() == alone["input_ids"][0].tolist()
    assert padded["attention_mask"][0].sum() == count < padded["input_ids"].shape[1]
    memories = [encode_text(text_encoder, read["input_ids"], read["attention_mask"].bool()) for read in (alone, padded)]
    torch.testing.assert_close(memories[1][:1, :count], memories[0], rtol=1e-4, atol=1e-5)


def test_han_characters_have_the_tokens_of_their_bytes(folders: Folders) -> None:
    tokenizer, _ = find_text_encoder(str(folders["clip"]))
    words = split_words("红圆", tokenizer)
    assert [word.text for word in words] == ["红", "圆"] and all(word.tokens for word in words)
    count = len(tokenizer("红圆")["input_ids"])
    assert {i for word in words for i in word.tokens} == set(range(1, count - 1))  # all but start and end


def test_only_a_vocabulary_that_cannot_spell_a_word_does_not_know_it(folders: Folders) -> None:
    clip, t5 = (find_text_encoder(str(folders[name]))[0] for name in ("clip", "t5"))
    assert unknown_words("a red zebra", clip) == []  # CLIP spells any bytes
    assert unknown_words("a red Ж", t5) == ["Ж"]


# The length of prompts.


@pytest.mark.parametrize(("name", "limit"), [("clip", 77), ("t5", MAX_TOKENS)])
def test_a_prompt_longer_than_the_encoder_reads_is_refused_not_cut(
    make_pipe: Callable[..., TextToImagePipeline], folders: Folders, name: str, limit: int
) -> None:
    tokenizer, _ = find_text_encoder(str(folders[name]))
    assert tokenizer.model_max_length == limit
    pipe = make_pipe(name)
    letters = limit - len(tokenizer("")["input_ids"])
    fits = ", " * (letters // len(tokenizer(",", add_special_tokens=False)["input_ids"]))
    memory, real = pipe.encode_prompt([fits])
    assert memory.shape[1] == real.sum() <= limit
    with pytest.raises(ValueError, match=f"tokens, this model reads {limit}: shorten it"):
        draw(pipe, fits + PROMPT)
    with pytest.raises(ValueError, match=f"tokens, this model reads {limit}: shorten it"):
        draw(pipe, negative_prompt=fits + PROMPT)
    assert f"this model reads {limit}" in read(fits + PROMPT, pipe.tokenizer)["error"]


def test_a_tokenizers_own_limit_holds_where_it_is_lower(folders: Folders, tmp_path: Path) -> None:
    shutil.copytree(folders["t5"], tmp_path / "t5")
    tokenizer, _ = find_text_encoder(str(folders["t5"]))
    tokenizer.model_max_length = 12
    tokenizer.save_pretrained(tmp_path / "t5")
    assert find_text_encoder(str(tmp_path / "t5"))[0].model_max_length == 12


def test_encoder_and_vae_of_a_whole_pipeline_are_found_in_their_folders(
    pipe: TextToImagePipeline, tmp_path: Path
) -> None:
    pipe.save_pretrained(tmp_path)
    tokenizer, text_encoder = find_text_encoder(str(tmp_path))
    assert tokenizer(PROMPT)["input_ids"] == pipe.tokenizer(PROMPT)["input_ids"]
    assert same_weights(text_encoder, pipe.text_encoder)
    assert fingerprint(find_vae(str(tmp_path))) == fingerprint(pipe.vae)


# Refusals.


def pickled(folder: Path, name: str) -> None:
    """Save the weights as a pickle, the format of many models on the hub."""
    (weights,) = folder.glob("*.safetensors")
    torch.save(load_file(weights), folder / name)
    weights.unlink()


def spoilt(folder: Path, spoil: Callable[[dict[str, torch.Tensor]], object]) -> None:
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    spoil(tensors)
    save_file(tensors, weights, metadata={"format": "pt"})


def test_pickled_weights_are_never_read(folders: Folders, tmp_path: Path) -> None:
    for name, weights in (("clip", "pytorch_model.bin"), ("kl", "diffusion_pytorch_model.bin")):
        shutil.copytree(folders[name], tmp_path / name)
        pickled(tmp_path / name, weights)
        with pytest.raises(ValueError, match="in safetensors \\(pickles are not read\\)") as refusal:
            (find_text_encoder if name == "clip" else find_vae)(str(tmp_path / name))
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["clip", "t5", "kl", "tiny"])
def test_weights_that_are_missing_or_not_numbers_are_refused_by_name(
    folders: Folders, tmp_path: Path, name: str
) -> None:
    kind = {"clip": CLIPTextModel, "t5": T5EncoderModel, "kl": AutoencoderKL, "tiny": AutoencoderTiny}[name]
    first = sorted(load_file(next(folders[name].glob("*.safetensors"))))[0]
    spoils: dict[str, Callable] = {
        "missing": lambda tensors: tensors.pop(first),
        "nan": lambda tensors: tensors[first].fill_(torch.nan),
    }
    for case, spoil in spoils.items():
        folder = tmp_path / case
        shutil.copytree(folders[name], folder)
        spoilt(folder, spoil)
        with pytest.raises(ValueError, match="are missing or not numbers") as refusal:
            load_network(kind, str(folder), "")
        assert first.split(".")[-2] in str(refusal.value)
    shutil.copytree(folders[name], tmp_path / "short")
    spoilt(tmp_path / "short", lambda tensors: tensors.update({first: tensors[first][..., :1].contiguous()}))
    with pytest.raises(ValueError):
        load_network(kind, str(tmp_path / "short"), "")


def test_a_network_of_another_kind_is_refused_in_one_line(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for find, wrong in (
        (find_text_encoder, folders["kl"]),
        (find_text_encoder, tmp_path),
        (find_vae, folders["clip"]),
        (find_vae, tmp_path),
    ):
        with pytest.raises(ValueError, match=r"is (bert|clip_text_model|AutoencoderKL): a") as refusal:
            find(str(wrong))
        assert "\n" not in str(refusal.value)


def test_a_missing_network_is_refused_with_the_expected_names(tmp_path: Path) -> None:
    for find in (find_text_encoder, find_vae):
        for name in ("no-such-folder", str(tmp_path), "no-such/model", "../.."):
            with pytest.raises(ValueError, match="give a folder or a hub id that holds its config"):
                find(name)


def test_a_tokenizer_that_does_not_fit_is_refused(folders: Folders, tmp_path: Path) -> None:
    shutil.copytree(folders["t5"], tmp_path / "t5")
    clip_tokenizer().save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match=r"its tokenizer has \d+ tokens, its text encoder knows 128"):
        find_text_encoder(str(tmp_path / "t5"))
    for file in (tmp_path / "t5").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="its tokenizer cannot spell 'a'"):
        find_text_encoder(str(tmp_path / "t5"))


def test_networks_that_do_not_fit_one_another_are_refused(
    pipe: TextToImagePipeline, make_pipe: Callable[..., TextToImagePipeline]
) -> None:
    other = make_pipe("t5", "tiny")
    with pytest.raises(ValueError, match="the text encoder's memory has width 24, the UNet reads width 32"):
        TextToImagePipeline(**pipe.components | {"text_encoder": other.text_encoder})
    with pytest.raises(ValueError, match="the VAE's latent has 3 channels, the UNet draws 4"):
        TextToImagePipeline(**pipe.components | {"vae": other.vae})
    with pytest.raises(ValueError, match="a picture has 3 channels, the UNet draws 4"):
        TextToImagePipeline(**pipe.components | {"vae": None})


# Latents.


@pytest.mark.parametrize("name", ["kl", "tiny"])
def test_latents_are_the_vaes_own_centred_and_scaled(folders: Folders, name: str) -> None:
    vae, pictures = find_vae(str(folders[name])), torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = encode_pictures(vae, pictures)
        encoded = vae.encode(pictures)
        if name == "kl":
            torch.testing.assert_close(latents, (encoded.latent_dist.mean - 0.25) * 0.5)
            torch.testing.assert_close(decode_latents(vae, latents), vae.decode(encoded.latent_dist.mean).sample)
        else:
            torch.testing.assert_close(latents, encoded.latents)
            torch.testing.assert_close(decode_latents(vae, latents), vae.decode(encoded.latents).sample)
    assert torch.equal(encode_pictures(vae, pictures), latents)  # no sampling


def a_batch(folders: Folders, count: int = 3, text: str = "clip") -> tuple[Collator, list[tuple[int, Example]]]:
    tokenizer, _ = find_text_encoder(str(folders[text]))
    examples = SceneExamples(32, 0)
    return Collator(tokenizer, 0, 0.0, 8), [(place, examples.example(place)) for place in range(count)]


@pytest.mark.parametrize("text", ["clip", "t5"])
def test_memory_and_latent_do_not_depend_on_the_batch(folders: Folders, text: str) -> None:
    collator, items = a_batch(folders, text=text)
    vae = find_vae(str(folders["kl"]))
    _, text_encoder = find_text_encoder(str(folders[text]))
    text_encoder.train()
    together, memory = Frozen(text_encoder, vae)(collator(items))
    assert memory is not None and not text_encoder.training
    for i, item in enumerate(items):
        batch = collator([item])
        alone, its_memory = Frozen(text_encoder, vae)(batch)
        assert its_memory is not None
        count = its_memory.shape[1]
        assert torch.equal(memory[i, :count], its_memory[0]) and not memory[i, count:].any()
        torch.testing.assert_close(its_memory, text_encoder(batch.ids).last_hidden_state)
        assert torch.equal(together.pictures[i], alone.pictures[0])
        torch.testing.assert_close(alone.pictures, encode_pictures(vae, batch.pictures))
        # The noise is the beginning of the picture's, a function of (seed, place) alone.
        assert torch.equal(alone.noise[0].flatten(), batch.noise[0].flatten()[: alone.noise[0].numel()])
        assert torch.equal(together.noise[i], alone.noise[0]) and alone.noise.shape == alone.pictures.shape


def test_repeated_captions_and_pictures_are_encoded_once(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collator, items = a_batch(folders, 2)
    vae = find_vae(str(folders["kl"]))
    _, text_encoder = find_text_encoder(str(folders["clip"]))
    frozen = Frozen(text_encoder, vae, tmp_path)
    first = frozen(collator(items))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("encoded again")

    with monkeypatch.context() as patch:
        patch.setattr(text_encoder, "forward", refuse)
        patch.setattr(vae, "encode", refuse)
        again = frozen(collator(items[::-1]))
        from_disk = Frozen(None, vae, tmp_path)(collator(items))
        with pytest.raises(AssertionError, match="encoded again"):
            Frozen(None, vae)(collator(items))
    assert first[1] is not None and again[1] is not None
    assert torch.equal(again[1].flip(0), first[1])
    assert torch.equal(again[0].pictures.flip(0), first[0].pictures)
    assert torch.equal(from_disk[0].pictures, first[0].pictures)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".safetensors"}


def test_latents_on_disk_belong_to_one_vae_and_damaged_ones_are_encoded_again(folders: Folders, tmp_path: Path) -> None:
    collator, items = a_batch(folders, 1)
    vae = find_vae(str(folders["kl"]))
    (wanted, _) = Frozen(None, vae, tmp_path)(collator(items))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    assert torch.equal(Frozen(None, vae, tmp_path)(collator(items))[0].pictures, wanted.pictures)
    assert torch.equal(load_file(file)["latent"], wanted.pictures[0])
    with torch.no_grad():
        vae.quant_conv.bias.add_(1)
    other, _ = Frozen(None, vae, tmp_path)(collator(items))
    assert not torch.equal(other.pictures, wanted.pictures) and len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_a_full_cache_drops_the_least_recently_used_latent(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    collator, items = a_batch(folders, 3)
    vae = find_vae(str(folders["kl"]))
    batches = {name: collator([item]) for name, item in zip("abc", items, strict=True)}
    latent = Frozen(None, vae)(batches["a"])[0].pictures
    monkeypatch.setattr(pipelines.training.frozen, "CACHE_BYTES", 2 * latent.nbytes)
    frozen, encode, encoded = Frozen(None, vae), vae.encode, []
    monkeypatch.setattr(vae, "encode", lambda *arguments: encoded.append(name) or encode(*arguments))
    for name in "abacab":
        frozen(batches[name])
    assert encoded == ["a", "b", "c", "b"]


# Training.


@pytest.fixture(scope="module")
def finished(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainConfig]:
    """Two steps on a folder, with CLIP's memory and the latents of an AutoencoderKL."""
    data = tmp_path_factory.mktemp("pictures")
    for i, _ in enumerate(CAPTIONS):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(data / f"{i}.png")
    rows = [json.dumps({"file_name": f"{i}.png", "text": text}) for i, text in enumerate(CAPTIONS)]
    (data / "metadata.jsonl").write_text("\n".join(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        datasets.disable_progress_bars()
        config = TrainConfig(
            data=str(data),
            out=str(tmp_path_factory.mktemp("runs") / "finished"),
            text_encoder=str(folders["clip"]),
            vae=str(folders["kl"]),
            steps=2,
            batch_size=2,
            size=32,
            warmup=1,
            every=2,
        )
        train(config)
        yield config


def test_a_run_trains_the_unet_and_nothing_else(finished: TrainConfig, folders: Folders) -> None:
    pipe = TextToImagePipeline.from_pretrained(finished.out)
    assert same_weights(pipe.text_encoder, find_text_encoder(str(folders["clip"]))[1])
    assert same_weights(pipe.vae, find_vae(str(folders["kl"])))
    assert pipe.unet.config.memory_width == 32 and pipe.unet.config.in_channels == 4
    assert pipe.unet.config.sample_size == 16 and pipe.picture_size == 32
    assert pipe.unet.conv_out.weight.abs().max() > 0  # zero at the start
    trained = load_file(checkpoints(Path(finished.out) / "checkpoints")[0] / "model.safetensors")
    assert {name.split(".")[0] for name in trained} == {"unet"}
    with Image.open(Path(finished.out) / "samples" / "step-000002.png") as sheet:
        assert sheet.size == (4 * 32, 32)
    # Each picture has one latent, shared by training, validation and later runs.
    assert len(list((Path(finished.out) / "latents").rglob("*.safetensors"))) == len(CAPTIONS)


def test_a_resumed_run_ends_bit_for_bit_like_one_that_was_never_stopped(
    finished: TrainConfig, tmp_path: Path, stop_in_step: Callable[[int], None]
) -> None:
    config = replace(finished, out=str(tmp_path / "run"))
    stop_in_step(1)
    with pytest.raises(StoppedError, match="stopped at step 1 of 2"):
        train(config)
    torch.manual_seed(12345)
    train(TrainConfig(out=config.out), resume=True)
    for name in ("model", "ema", "optimizer"):
        wanted, got = (
            load_file(checkpoints(Path(out) / "checkpoints")[0] / f"{name}.safetensors")
            for out in (finished.out, config.out)
        )
        assert wanted.keys() == got.keys() and all(torch.equal(got[key], wanted[key]) for key in wanted), name
    losses = [(Path(out) / "validation.jsonl").read_text() for out in (finished.out, config.out)]
    assert losses[0] == losses[1]


def test_a_run_initialised_from_one_with_such_networks_keeps_them(finished: TrainConfig, tmp_path: Path) -> None:
    config = replace(finished, begin_from=finished.out, steps=1, out=str(tmp_path / "further"))
    with pytest.raises(ValueError, match="has its own networks: leave out --text-encoder and --vae"):
        train(config)
    assert not (tmp_path / "further").exists()
    train(replace(config, text_encoder="", vae=""))
    before, after = (TextToImagePipeline.from_pretrained(out) for out in (finished.out, config.out))
    for part in ("text_encoder", "vae"):
        assert same_weights(getattr(after, part), getattr(before, part))


def test_mask_supervision_works_on_latents_too(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = SceneExamples(32, 0).validation(2)
    monkeypatch.setattr(SceneExamples, "validation", lambda *_: few)
    names = {"text_encoder": str(folders["t5"]), "vae": str(folders["tiny"])}
    train(TrainConfig(out=str(tmp_path / "run"), steps=1, batch_size=2, size=32, warmup=1, every=1, **names))
    (row,) = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert 0 < row["token loss"] < 1 and row["text loss"] == 0
    (report,) = map(json.loads, (tmp_path / "run" / "validation.jsonl").read_text().splitlines())
    assert 0 <= report["pointing"] <= 1 and "text loss" not in report
    assert not (tmp_path / "run" / "latents").exists()  # no scene comes twice
    pipe = TextToImagePipeline.from_pretrained(tmp_path / "run")
    assert type(pipe.text_encoder) is T5EncoderModel and type(pipe.vae) is AutoencoderTiny
    assert pipe.tokenizer.model_max_length == MAX_TOKENS


def test_samples_do_not_change_the_training_mode_of_any_network(
    make_pipe: Callable[..., TextToImagePipeline], tmp_path: Path
) -> None:
    pipe = make_pipe("t5", "tiny")
    pipe.unet.train()
    draw_samples(pipe, SceneExamples(32, 0).validation(1), tmp_path, 1)
    assert pipe.unet.training and not pipe.text_encoder.training  # its dropout would add noise to the memory


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("text_encoder", "kl", "is AutoencoderKL: a text encoder is"),
        ("vae", "clip", "is clip_text_model: a VAE is"),
        ("size", 40, "multiples of 16 pixels, got 40×40"),
    ],
)
def test_networks_that_cannot_be_used_leave_no_trace_of_a_run(
    finished: TrainConfig, folders: Folders, tmp_path: Path, name: str, value: str | int, reason: str
) -> None:
    wrong = {name: str(folders[value]) if isinstance(value, str) else value}
    with pytest.raises(ValueError, match=reason):
        train(replace(finished, out=str(tmp_path / "run"), **wrong))
    assert not (tmp_path / "run").exists()


# Drawing.


@pytest.mark.parametrize(("text", "vae"), [("clip", "kl"), ("t5", "tiny")])
def test_a_saved_pipeline_draws_the_same_picture(
    make_pipe: Callable[..., TextToImagePipeline], tmp_path: Path, text: str, vae: str
) -> None:
    pipe = make_pipe(text, vae)
    pipe.save_pretrained(tmp_path)
    loaded = TextToImagePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(draw(loaded), draw(pipe))
    assert (draw(loaded, "a white cat") - draw(pipe)).abs().max() > 1e-4  # the prompt matters
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_a_pipelines_folder_is_read_as_strictly_as_a_networks(pipe: TextToImagePipeline, tmp_path: Path) -> None:
    spoils: dict[str, tuple[str, Callable[[Path], object]]] = {
        "pickle": ("has no text_encoder in safetensors", lambda f: pickled(f / "text_encoder", "pytorch_model.bin")),
        "nan": (
            "weights of vae are missing or not numbers: quant_conv.bias",
            lambda f: spoilt(f / "vae", lambda tensors: tensors["quant_conv.bias"].fill_(torch.nan)),
        ),
        "class": (
            "its vae is a VQModel, this pipeline takes AutoencoderKL or AutoencoderTiny",
            lambda f: (f / "model_index.json").write_text(
                (f / "model_index.json").read_text().replace("AutoencoderKL", "VQModel")
            ),
        ),
        "vocabulary": (
            "its tokenizer cannot spell 'a'",
            lambda f: [file.unlink() for file in (f / "tokenizer").glob("tokenizer.json")],
        ),
        "none": (
            "its text_encoder is a None, this pipeline takes Transformer or CLIPTextModel",
            lambda f: (f / "model_index.json").write_text(
                (f / "model_index.json").read_text().replace("text_encoder", "reader")
            ),
        ),
    }
    pipe.save_pretrained(tmp_path / "whole")
    for name, (reason, spoil) in spoils.items():
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        spoil(tmp_path / name)
        with pytest.raises(ValueError, match=reason):
            TextToImagePipeline.from_pretrained(tmp_path / name)


def test_latents_go_in_and_come_out_as_latents(pipe: TextToImagePipeline) -> None:
    noise = torch.randn(1, 4, 8, 16, generator=seeded())
    size = {"height": 16, "width": 32}
    latents = draw(pipe, latents=noise, output_type="latent", **size)
    assert latents.shape == noise.shape
    picture = draw(pipe, latents=noise, **size)
    assert picture.shape == (1, 3, 16, 32)
    with torch.no_grad():
        torch.testing.assert_close(picture, (pipe.decode_latents(latents) / 2 + 0.5).clamp(0, 1))
    with pytest.raises(ValueError, match=r"latents have shape \(1, 4, 8, 16\), expected \(1, 4, 16, 16\)"):
        draw(pipe, latents=noise)
    with pytest.raises(ValueError, match="multiples of 8 pixels, got 32×20"):
        draw(pipe, height=20)


def test_previews_are_pictures_and_the_last_is_the_picture_itself(pipe: TextToImagePipeline) -> None:
    previews = []

    def keep(_: object, step: int, timestep: torch.Tensor, values: dict) -> dict:
        previews.append(values["clean"])
        return {}

    picture = draw(pipe, callback_on_step_end=keep, callback_on_step_end_tensor_inputs=("clean",))
    assert [preview.shape for preview in previews] == [(1, 3, 32, 32)] * 2
    torch.testing.assert_close((previews[-1] / 2 + 0.5).clamp(0, 1), picture, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("text", "vae"), [("clip", "kl"), ("t5", "tiny")])
def test_half_precision_draws_nearly_the_same_picture(
    make_pipe: Callable[..., TextToImagePipeline], tmp_path: Path, dtype: torch.dtype, text: str, vae: str
) -> None:
    pipe = make_pipe(text, vae)
    latents = torch.randn(1, pipe.unet.config.in_channels, 16, 16, generator=seeded())
    wanted = draw(pipe, latents=latents)
    pipe.save_pretrained(tmp_path)
    for half in (TextToImagePipeline.from_pretrained(tmp_path, dtype=dtype), make_pipe(text, vae).to(dtype)):
        half.set_progress_bar_config(disable=True)
        assert half.text_encoder.dtype == half.vae.dtype == dtype
        assert (draw(half, latents=latents) - wanted).abs().max() < 50 * torch.finfo(dtype).eps
    half.save_pretrained(tmp_path / "half")
    assert TextToImagePipeline.from_pretrained(tmp_path / "half").text_encoder.dtype == torch.float32


def test_networks_are_called_so_that_accelerates_hooks_run(make_pipe: Callable[..., TextToImagePipeline]) -> None:
    pipe, called = make_pipe(), []

    class Hook(ModelHook):
        def __init__(self, name: str):
            self.name = name

        def pre_forward(self, module: nn.Module, *args: object, **kwargs: object) -> tuple:
            called.append(self.name)
            return args, kwargs

    for name in pipe.model_cpu_offload_seq.split("->"):
        add_hook_to_module(getattr(pipe, name), Hook(name))
    draw(pipe, num_inference_steps=1)
    assert called == ["text_encoder", "unet", "vae"]


def test_negative_prompts_and_batches_work(pipe: TextToImagePipeline) -> None:
    assert (draw(pipe, negative_prompt="a white cat") - draw(pipe)).abs().max() > 1e-5
    both = draw(pipe, [PROMPT, "a white cat"], generator=[seeded(), seeded(1)])
    assert (both[:1] - draw(pipe)).abs().max() < 2 / 255


# Attention to words.


@pytest.mark.parametrize(("text", "vae"), [("clip", "kl"), ("t5", "tiny")])
def test_maps_are_as_large_as_the_picture_and_what_the_model_does(
    make_pipe: Callable[..., TextToImagePipeline], tmp_path: Path, text: str, vae: str
) -> None:
    pipe = make_pipe(text, vae)
    with trace(pipe, "full") as attention:
        drawn = draw(pipe, height=32, width=48)
    assert attention.size == (32, 48) and attention.pictures.shape == (1, 32, 48, 3)
    assert set(attention.recording.grids.values()) == {(8, 12), (4, 6)}
    heat = attention.heatmap("red circle")
    assert heat.shape == (32, 48) and 0 < heat.mean() < 1
    shares = attention.words_at((0, 0, 48, 16))
    assert {word.text for word, _ in shares} == set(PROMPT.split()) and sum(share for _, share in shares) < 1
    everything = torch.stack([attention.heatmap(i) for i in range(attention.recording.tokens)]).sum(dim=0)
    torch.testing.assert_close(everything, torch.ones(32, 48), atol=1e-4, rtol=0)
    torch.testing.assert_close(attention.pictures[0].permute(2, 0, 1) / 255, drawn[0], atol=0.51 / 255, rtol=0)
    attention.save(tmp_path / "a.safetensors")
    assert torch.equal(AttentionTrace.load(tmp_path / "a.safetensors").pictures, attention.pictures)
    assert verify(pipe, PROMPT, steps=1).layers == len(pipe.unet.attention_layers)


def test_a_picture_is_read_through_the_vae(pipe: TextToImagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    bright, dark = (Image.new("RGB", (40, 40), colour) for colour in ("white", "black"))
    attention = attribute(pipe, bright, PROMPT, draws=1)
    assert attention.size == (32, 32) and attention.heatmap("circle").shape == (32, 32)
    assert (attention.pictures == 255).all()
    other = attribute(pipe, dark, PROMPT, draws=1)
    assert not torch.equal(attention.heatmap("circle"), other.heatmap("circle"))
    # The input of the UNet is the latent with noise of that level.
    seen = []
    forward = pipe.unet.forward
    monkeypatch.setattr(pipe.unet, "forward", lambda x, *rest, **more: seen.append(x) or forward(x, *rest, **more))
    attribute(pipe, bright, PROMPT, levels=(0.01,), draws=1)
    with torch.no_grad():
        latent = pipe.encode_pictures(to_tensor(np.full((1, 32, 32, 3), 255, np.uint8)))
    assert (seen[0] - latent).abs().max() < 0.01 * (latent.abs().max() + 5)


def test_a_query_is_followed_to_the_picture_it_ends_in(pipe: TextToImagePipeline) -> None:
    drawing = draw_states(pipe, PROMPT, steps=2)
    assert drawing.picture.shape == drawing.seen(0).shape == (32, 32, 3)
    wanted = draw(pipe, guidance_scale=3.0)[0].permute(1, 2, 0)
    torch.testing.assert_close(drawing.picture / 255, wanted, atol=0.51 / 255, rtol=0)
    reading = follow_picture(pipe, drawing, 1, pipe.unet.attention_layers[0])
    assert reading.size == (32, 32)
    assert reading.place(31, 31) == reading.q.shape[1] - 1


# The page and the command.


def test_the_page_draws_with_such_a_model(pipe: TextToImagePipeline) -> None:
    *frames, drawing = forming(pipe, Request(PROMPT, num_inference_steps=2))
    assert isinstance(drawing, Drawing) and frames[0].frame.startswith("data:image/webp")
    assert len(drawing.frames[0]) == 2 and drawing.attention.size == (32, 32)
    assert read(PROMPT, pipe.tokenizer) == {"prompt": PROMPT, "unknown": [], "error": ""}


def test_such_a_model_refuses_to_translate(pipe: TextToImagePipeline, tmp_path: Path) -> None:
    assert not can_translate(pipe.text_encoder)
    with pytest.raises(ValueError, match="has no decoder, so it cannot translate"):
        TranslationPipeline(pipe.tokenizer, pipe.text_encoder)
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no decoder, so it cannot translate; these bundled models can"):
        TranslationPipeline.from_pretrained(tmp_path)


def test_the_command_passes_its_options_to_training(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[TrainConfig] = []
    monkeypatch.setattr("pipelines.training.train.train", lambda config, *_: asked.append(config) or tmp_path)
    names = ["--text-encoder", str(folders["clip"]), "--vae", str(folders["kl"])]
    monkeypatch.setattr("sys.argv", ["unet-xattn", "train", *names, "--size", "256"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert (asked[0].text_encoder, asked[0].vae, asked[0].size) == (names[1], names[3], 256)
