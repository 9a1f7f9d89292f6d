"""Labels of sheets in any script: every character is drawn, or refused, never a box."""

import numpy as np
import pytest
from PIL import Image, features

from pipelines import drawing
from pipelines.drawing import label, label_font


def ink(text: str, size: int = 20) -> np.ndarray:
    """The opacity of a label's pixels, without empty columns at its sides."""
    alpha = np.asarray(label(text, size))[..., 3]
    used = np.flatnonzero(alpha.any(axis=0))
    return alpha[:, used[0] : used[-1] + 1]


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any font: only Pillow's own is left."""
    monkeypatch.setattr(drawing, "_font_file", lambda text: None)


@pytest.mark.parametrize("text", ["é", "ü", "ñ", "ß", "к", "Ω", "א", "ك", "红", "한", "½", "…"])
def test_a_character_is_not_drawn_as_the_box_of_a_missing_one(text: str) -> None:
    font = label_font([text], 20)
    assert bytes(font.getmask(text)) != bytes(font.getmask("\U0010ffff"))
    drawn = ink(text)
    other = ink("ж")
    assert drawn.any() and (drawn.shape != other.shape or (drawn != other).any())


def test_each_part_of_a_label_gets_a_font_that_has_it() -> None:
    for mixed in ("кошка 红 12%", "كلب 红"):
        files = [drawing._font_file(run) for run, _ in drawing._runs(mixed)]
        assert None not in files and "".join(run for run, _ in drawing._runs(mixed)) == mixed
    assert len(drawing._runs("كلب 红")) == 2  # no font here has both
    assert len(drawing._runs("café über  45%")) == 1


def test_composed_and_decomposed_letters_look_the_same() -> None:
    assert np.array_equal(ink("caf\u00e9"), ink("cafe\u0301"))


@pytest.mark.skipif(not features.check("raqm"), reason="Pillow has no libraqm")
def test_arabic_letters_are_joined_from_right_to_left() -> None:
    # "كلب" begins with kaf at the right end; its letters are narrower joined than each by itself.
    assert ink("كلب").shape[1] < sum(ink(letter).shape[1] for letter in "كلب")
    assert not np.array_equal(ink("كلب"), ink("بلك"))


def test_without_the_library_that_joins_letters_arabic_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(ValueError, match="need Pillow with libraqm"):
        label("كلب", 15)
    assert np.array_equal(ink("e\u0301 red 红"), ink("é red 红"))


def test_an_emoji_is_drawn_in_its_colours() -> None:
    rgba = np.asarray(label("🦆", 20)).astype(int)
    coloured = np.ptp(rgba[..., :3], axis=-1)[rgba[..., 3] > 200]
    assert (coloured > 60).any()
    assert label("🦆", 20).width < 40
    assert label("👨‍👩‍👧", 20).width == label("🦆", 20).width  # a sequence is one picture


@pytest.mark.parametrize(("symbol", "name"), [("🦆", "U+1F986"), ("♞", "U+265E"), ("\U000f0000", "U+F0000")])
def test_a_symbol_that_no_font_has_is_shown_by_its_code_point(
    no_fonts: None, monkeypatch: pytest.MonkeyPatch, symbol: str, name: str
) -> None:
    monkeypatch.setattr(drawing, "_emoji", lambda cluster: None)
    assert np.array_equal(ink(symbol), ink(name))


@pytest.mark.parametrize(
    ("text", "package"), [("红", "fonts-wqy-microhei"), ("a लाल", "fonts-noto-core"), ("é", "fonts-noto-core")]
)
def test_a_letter_that_no_font_has_is_refused_in_one_line(no_fonts: None, text: str, package: str) -> None:
    for refused in (lambda: label(text, 15), lambda: label_font([text], 15)):
        with pytest.raises(ValueError, match=f"no font with .* found for labels: .*{package}") as error:
            refused()
        assert "\n" not in str(error.value)


def test_ascii_needs_no_font_of_the_machine(no_fonts: None) -> None:
    assert ink("red circle  45%").any()


def test_a_label_stays_within_its_height() -> None:
    for text in ("Éçgjy", "ŷ", "كلب", "红", "🦆", "Tiếng"):
        picture = label(text, 15)
        assert picture.height == 24
        alpha = np.asarray(picture)[..., 3]
        assert not alpha[0].any() and not alpha[-1].any()


def test_a_label_is_pasted_on_any_ground() -> None:
    sheet = Image.new("RGB", (80, 24), "white")
    line = label("red", 15)
    sheet.paste(line, (0, 0), line)
    assert np.asarray(sheet).min() < 60 and np.asarray(sheet)[0].min() == 255
