import numpy as np
import torch
from PIL import Image

from pipelines import trace
from pipelines.drawing import colour_map
from pipelines.text_to_text import Translation
from pipelines.tracing.overlay import alignment_sheet, drawn, overlay, word_sheet


def test_colours_grow_lighter_with_the_value() -> None:
    lightness = colour_map(np.linspace(0, 1, 50)).astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()


def test_overlay_is_bright_where_the_heat_is() -> None:
    heat = np.zeros((32, 48), np.float32)
    heat[5:10, 30:40] = 1
    shown = np.asarray(overlay(Image.new("RGB", (48, 32), "gray"), heat)).astype(int)
    assert shown.shape == (32, 48, 3)
    assert shown[7, 35].sum() > shown[20, 10].sum() + 200


def test_sheet_has_a_tile_for_the_picture_and_each_word(tiny_pipe) -> None:
    size = tiny_pipe.unet.config.sample_size
    for prompt in ("red circle", "a red circle left of a blue square on a gray ground"):
        with trace(tiny_pipe) as attention:
            tiny_pipe(prompt, num_inference_steps=1)
        assert drawn(attention).size == (size, size)
        tiles = len(prompt.split()) + 2  # the last one is that of start and end
        sheet = word_sheet(attention, tile=64)
        columns = min(6, tiles)
        assert sheet.width == columns * 72 + 8
        assert sheet.height == -(-tiles // columns) * (64 + 24 + 8) + 8 + 30


def test_the_alignment_has_a_row_for_each_target_token_and_a_column_for_each_source_token() -> None:
    attention = torch.zeros(2, 4, 3, 5)  # layers, heads, written, read
    attention[..., [0, 1, 2], [4, 0, 2]] = 1
    translation = Translation("b", list("vwxyz"), list("abc"), attention, torch.ones(3), list("abc"), torch.ones(3))
    sheet = np.asarray(alignment_sheet(translation, cell=20)).astype(int)
    bright = sheet[-8 - 60 : -8, -8 - 100 : -8].sum(axis=-1)[10::20, 10::20] > 600
    assert np.argwhere(bright).tolist() == [[0, 4], [1, 0], [2, 2]]
