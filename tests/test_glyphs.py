"""Glyphs: the recorded images and no others, distinct, split by character, with the factors of their fonts."""

import logging
import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
import pooch
import pytest
import torch
from matplotlib.ft2font import FT2Font, StyleFlags
from PIL import Image, ImageDraw, ImageFont

from nbvae import data
from nbvae.data import glyphs

FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
NUMBERS = {name: number for number, name in enumerate(glyphs.FONTS)}


@pytest.fixture(scope="module")
def drawn():
    return glyphs.render()


@pytest.fixture(scope="module")
def parts(drawn):
    return glyphs.split(drawn.groups, glyphs.HELD_OUT)


@pytest.fixture(scope="module")
def loaded(drawn, tmp_path_factory):
    """From a cache that was empty."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.delenv("NBVAE_DATA", raising=False)
        patch.setattr(pooch, "os_cache", lambda name: folder / name)
        patch.setattr(glyphs, "render", lambda: drawn)
        return data.load("glyphs")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, a few characters in two fonts, and how often they were drawn."""
    calls = []
    draw = glyphs.render

    def few():
        calls.append(1)
        return draw(("DejaVuSans", "DejaVuSerif-BoldItalic"), "AbcЖβ7")

    monkeypatch.delenv("NBVAE_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(glyphs, "render", few)
    monkeypatch.setattr(glyphs, "SHA256", few().sha256)
    calls.clear()
    return tmp_path / "cache" / "nbvae" / "glyphs", calls


# the images


def test_the_images_are_those_of_the_recorded_results(drawn):
    """With the versions of constraints.txt. Others draw others, which `load` says."""
    assert drawn.sha256 == glyphs.SHA256


def test_no_two_images_are_equal_and_each_has_ink_in_its_middle(drawn):
    images = drawn.images
    assert images.shape == (25_571, 28, 28)
    assert images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == len(images)
    for axis in (1, 2):
        lines = images.any(axis)
        first, last = lines.argmax(1), 27 - lines[:, ::-1].argmax(1)
        assert lines.any(1).all()
        assert set((27 - last - first).tolist()) <= {0, 1}


def test_the_fonts_are_the_text_fonts_and_have_the_factors_that_they_say_themselves():
    """Weight, slant and a fixed width are in the flags of a font's own tables; serifs in the names of the families."""
    others = ("LastResort", "cm", "STIXNonUni", "STIXSiz")
    with_letters = {
        path.stem
        for path in FOLDER.glob("*.ttf")
        if not path.name.startswith(others) and any(map(glyphs.is_text, map(chr, FT2Font(path).get_charmap())))
    }
    assert set(glyphs.FONTS) == with_letters
    for name, factors in glyphs.FONTS.items():
        font = FT2Font(FOLDER / f"{name}.ttf")
        bold, slanted = StyleFlags.BOLD in font.style_flags, StyleFlags.ITALIC in font.style_flags
        # A fixed width says so by its advance widths: all that are not zero are one.
        widths = {font.load_char(ord(letter)).horiAdvance for letter in "iIlmMW.0"}
        serif = "Serif" in font.family_name or font.family_name == "STIXGeneral"
        assert factors == (bold, slanted, serif, len(widths) == 1), name


def test_all_letters_and_digits_are_there_but_for_those_that_have_reason_not_to(drawn):
    """Drawn on a larger canvas, cut out by hand: an image has ink and room, and is that of fonts of one kind."""
    users: dict[bytes, list] = {}
    for number, name in enumerate(glyphs.FONTS):
        path = FOLDER / f"{name}.ttf"
        face = ImageFont.truetype(path, 22, layout_engine=ImageFont.Layout.BASIC)
        for code in sorted(FT2Font(path).get_charmap()):
            category, style = unicodedata.category(chr(code)), unicodedata.decomposition(chr(code))[:6]
            if category not in ("Lu", "Ll", "Lt", "Lm", "Lo", "Nd") or style == "<font>":
                continue
            canvas = Image.new("L", (160, 160))
            ImageDraw.Draw(canvas).text((60, 60), chr(code), fill=255, font=face)
            ink = np.asarray(canvas)
            rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
            if len(rows) and max(rows[-1] - rows[0], columns[-1] - columns[0]) < 28:
                tight = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
                above, before = ((28 - side) // 2 for side in tight.shape)
                image = np.zeros((28, 28), np.uint8)
                image[above : above + tight.shape[0], before : before + tight.shape[1]] = tight
                users.setdefault(image.tobytes(), []).append((number, code))
    kinds = list(glyphs.FONTS.values())
    expected = {image: min(who) for image, who in users.items() if len({kinds[number] for number, _ in who}) == 1}
    found = zip(drawn.fonts.tolist(), drawn.codes.tolist(), strict=True)
    assert dict(zip([image.tobytes() for image in drawn.images], found, strict=True)) == expected
    assert len(users) - len(expected) == 29


def test_a_letter_that_two_styles_draw_alike_is_left_out_and_one_of_a_single_font_is_not():
    alef = "\N{ALEF SYMBOL}"
    both = glyphs.render(("DejaVuSans", "DejaVuSans-Oblique"), alef + "A")
    assert both.codes.tolist() == [65, 65]
    assert both.fonts.tolist() == [0, 1]
    assert sorted(glyphs.render(("DejaVuSans",), alef + "A").codes.tolist()) == [65, ord(alef)]


def test_characters_that_a_font_draws_alike_are_one_image_and_one_group():
    """Latin, Greek and Cyrillic A and o: alike in both fonts, but for one A, which has an image of its own in the group."""
    alike = glyphs.render(("DejaVuSans", "DejaVuSerif"), "AΑАoοо")
    assert alike.codes.tolist() == [65, 111, 65, 111, ord("А")]
    assert alike.fonts.tolist() == [0, 0, 1, 1, 1]
    assert alike.groups.tolist() == [65, 111, 65, 111, 65]
    # 1 and l differ everywhere in grey, and in one font not with the pixels above one half white.
    apart = glyphs.render(tuple(glyphs.FONTS), "1l")
    assert set(apart.codes.tolist()) == {ord("1"), ord("l")}
    assert set(apart.groups.tolist()) == {ord("1")}
    assert set(glyphs.render(("DejaVuSerif",), "1l").groups.tolist()) == {ord("1"), ord("l")}


# the splits


def test_no_character_and_no_image_is_in_two_splits(drawn, parts):
    train, validation, test = parts
    assert [len(part) for part in parts] == [19_570, 3_000, 3_001]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(drawn.images)))
    for one, two in ((train, validation), (train, test), (validation, test)):
        for of in (drawn.codes, drawn.groups):
            assert not set(of[one].tolist()) & set(of[two].tolist())
        shapes = [{image.tobytes() for image in drawn.images[part] > 127} for part in (one, two)]
        assert not shapes[0] & shapes[1]  # in black and white either


def test_groups_hold_together_whatever_the_sizes():
    groups = np.repeat([5, 9, 2, 7, 30], [4, 1, 3, 2, 6])
    parts = glyphs.split(groups, held_out=3)
    assert sorted(np.concatenate(parts).tolist()) == list(range(16))
    held = [set(groups[part].tolist()) for part in parts]
    assert sum(map(len, held)) == 5
    assert all(len(part) >= 3 for part in parts[1:])


def test_the_splits_are_those_of_the_images(drawn, parts, loaded):
    assert loaded.shape == (1, 28, 28)
    assert loaded.binarize is None
    assert not loaded.is_binary
    for split, part in zip(data.SPLITS, parts, strict=True):
        np.testing.assert_array_equal((255 * getattr(loaded, split)[:, 0]).numpy(), drawn.images[part].astype(np.float32))
    assert loaded.sha256 == "557529daa08d2a29a190c1687fbe0ae9ccc9c0056c044294a922f9eadfb3d003"


def test_labels_are_the_kind_of_character(drawn, parts, loaded):
    for split, part in zip(data.SPLITS, parts, strict=True):
        labels = getattr(loaded, f"{split}_labels")
        assert labels.dtype == torch.int64
        assert set(labels.tolist()) == {0, 1, 2, 3}
        for number, belongs in enumerate((str.isupper, str.islower, str.isalpha, str.isdecimal)):
            assert all(belongs(chr(code)) for code in drawn.codes[part][labels.numpy() == number])
        other = np.array([unicodedata.category(chr(code)) in ("Lt", "Lm", "Lo") for code in drawn.codes[part]])
        np.testing.assert_array_equal(labels.numpy() == 2, other)


def test_factors_are_those_of_the_font_and_vary_in_each_split(drawn, parts, loaded):
    factors = loaded.factors
    assert list(factors.levels) == ["weight", "slant", "serif", "mono"]
    assert factors.levels["slant"] == ("upright", "slanted")
    table = np.array(list(glyphs.FONTS.values()))
    for split, part in zip(data.SPLITS, parts, strict=True):
        numbers = getattr(factors, split)
        assert numbers.dtype == torch.int64
        np.testing.assert_array_equal(numbers.numpy(), table[drawn.fonts[part]])
        assert all(values.unique().tolist() == [0, 1] for values in factors.by_name(split).values())
    # Bold letters have more ink.
    weight = factors.by_name("train")["weight"].bool()
    assert loaded.train[weight].mean() > 1.2 * loaded.train[~weight].mean()


@pytest.mark.parametrize("how", ["threshold", "static", "dynamic"])
def test_glyphs_are_binarised_like_others(cache, monkeypatch, how):
    monkeypatch.setattr(glyphs, "HELD_OUT", 2)
    grey, binary = data.load("glyphs"), data.load("glyphs", binarize=how)
    assert binary.is_binary
    assert not grey.is_binary
    assert binary.factors.levels == grey.factors.levels
    if how == "threshold":
        assert torch.equal(binary.train, (grey.train > 0.5).float())


# the cache


def test_two_builds_of_the_cache_are_the_same_bytes(drawn, tmp_path):
    glyphs._cache(drawn, tmp_path / "one" / "glyphs.npz")
    again = glyphs.Glyphs(*map(np.copy, drawn))
    glyphs._cache(again, tmp_path / "two" / "glyphs.npz")
    assert (tmp_path / "one" / "glyphs.npz").read_bytes() == (tmp_path / "two" / "glyphs.npz").read_bytes()


def test_glyphs_are_drawn_once(cache):
    folder, calls = cache
    first, second = glyphs.load(), glyphs.load()
    assert len(calls) == 1
    assert first.sha256 == second.sha256 == glyphs.SHA256
    assert all(one.dtype == two.dtype for one, two in zip(first, second, strict=True))
    assert [path.suffix for path in folder.iterdir()] == [".npz"]


def test_glyphs_in_the_folder_of_ones_own_data_are_taken(cache, tmp_path, monkeypatch):
    folder, calls = cache
    glyphs.load()
    (tmp_path / "data").mkdir()
    folder.rename(tmp_path / "data" / "glyphs")
    monkeypatch.setenv("NBVAE_DATA", str(tmp_path / "data"))
    assert glyphs.load().sha256 == glyphs.SHA256
    assert len(calls) == 1
    assert not folder.exists()


@pytest.mark.parametrize("fault", ["empty", "truncated", "flipped", "no archive", "another's", "a folder", "altered"])
def test_a_damaged_cache_is_drawn_again_with_a_line_in_the_log(cache, caplog, fault):
    folder, calls = cache
    expected = glyphs.load().sha256
    (path,) = folder.iterdir()
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 255
    path.unlink()
    if fault == "a folder":
        path.mkdir()
    elif fault == "another's":
        np.savez(path, train=np.zeros(3))
    elif fault == "altered":  # a whole file, but another image than the hash is of
        path.write_bytes(content)
        with np.load(path) as file:
            arrays = {name: file[name].copy() for name in file.files}
        arrays["images"][0, 0, 0] ^= 1
        np.savez_compressed(path, **arrays)
    else:
        kinds = {"empty": b"", "truncated": content[: len(content) // 2], "flipped": bytes(flipped), "no archive": b"nothing"}
        path.write_bytes(kinds[fault])
    caplog.set_level(logging.WARNING, "nbvae.data")
    assert glyphs.load().sha256 == expected
    assert len(calls) == 2
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == f"glyphs are rendered again: {path} is damaged or not to be read"
    assert len(lines) == 1 + (fault == "a folder")  # which is nobody's to remove: it stays, and a second line says so
    assert all("\n" not in line for line in lines)
    if fault != "a folder":
        assert path.read_bytes() == content


def test_without_a_place_to_write_to_glyphs_are_drawn_each_time(cache, caplog, tmp_path):
    folder, calls = cache
    (tmp_path / "cache").write_text("a file where the folder should be")
    caplog.set_level(logging.WARNING, "nbvae.data")
    assert glyphs.load().sha256 == glyphs.SHA256
    assert glyphs.load().sha256 == glyphs.SHA256
    assert len(calls) == 2
    told = [record.getMessage() for record in caplog.records if "not cached" in record.getMessage()]
    assert told == [f"glyphs are not cached in {folder}: NotADirectoryError"] * 2


def test_other_images_than_those_of_the_recorded_results_are_told_and_not_mixed_with_them(cache, monkeypatch, caplog):
    folder, calls = cache
    glyphs.load()
    assert not caplog.records
    few = glyphs.render
    monkeypatch.setattr(glyphs, "render", lambda: few()._replace(images=255 - few().images))
    monkeypatch.setattr(matplotlib, "__version__", "3.99")
    caplog.set_level(logging.WARNING, "nbvae.data")
    for times in (1, 2):  # drawn once, told each time
        assert glyphs.load().images[0, 0, 0] == 255
        assert len(caplog.records) == times
    told = caplog.records[0].getMessage()
    assert told.startswith("glyphs differ from those of the book's results")
    assert "matplotlib 3.99, Pillow " in told
    assert "\n" not in told
    assert len(calls) == 3
    assert len(list(folder.iterdir())) == 2
    monkeypatch.undo()


def test_a_font_that_is_missing_is_named_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"^glyphs needs the fonts that come with matplotlib, but there is no [^\n]+$"):
        glyphs.render()
