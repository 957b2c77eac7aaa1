"""Letters and digits in the text fonts that matplotlib ships: images of new characters, with known factors, without a network.

The images are rendered in seconds and cached. What they are is fixed by the versions of matplotlib, which brings the fonts,
and of Pillow, which draws them.
"""

import hashlib
import json
import logging
import os
import tempfile
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import PIL
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont, features
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nbvae.data.dataset import Factors, Parts
from nbvae.data.files import read_arrays
from nbvae.data.idx import homes

SIDE = 28
SIZE = 22  # pixels of an em; larger, and more of the wide letters would not fit
HELD_OUT = 3_000  # images of the validation split, and of the test split, at least
LEVELS = {
    "weight": ("regular", "bold"),
    "slant": ("upright", "slanted"),
    "serif": ("no", "yes"),
    "mono": ("no", "yes"),
}
# The text fonts: family, serif, mono, and its files regular, bold, slanted, and both. Not here: the TeX fonts, whose code
# points are not their characters; those of symbols, without letters; LastResort, whose glyphs stand for whole blocks.
_FAMILIES = (
    ("DejaVuSans", 0, 0, ("", "-Bold", "-Oblique", "-BoldOblique")),
    ("DejaVuSansMono", 0, 1, ("", "-Bold", "-Oblique", "-BoldOblique")),
    ("DejaVuSerif", 1, 0, ("", "-Bold", "-Italic", "-BoldItalic")),
    ("STIXGeneral", 1, 0, ("", "Bol", "Italic", "BolIta")),
)
# The factors of each font, in the order of `LEVELS`.
FONTS = {
    f"{family}{style}": (number % 2, number // 2, serif, mono)
    for family, serif, mono, styles in _FAMILIES
    for number, style in enumerate(styles)
}
# Of the arrays of `render()`, with the versions in constraints.txt.
SHA256 = "5ad6b84001ec0807326fdd4bd44f0bda629712ea857a940fcfc0460f079868fc"
_log = logging.getLogger("nbvae.data")


class Glyphs(NamedTuple):
    """Distinct images, white on black, with the character and the font of each.

    - `images`: bytes (N, 28, 28).
    - `codes`: (N,), the code points.
    - `fonts`: (N,), numbers in the list of fonts.
    - `groups`: (N,), the lowest code point among the characters that have to be in one split: those that look alike somewhere.
    """

    images: np.ndarray
    codes: np.ndarray
    fonts: np.ndarray
    groups: np.ndarray

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for name, array in self._asdict().items():
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        return digest.hexdigest()


def read() -> Parts:
    glyphs = load()
    parts = split(glyphs.groups, HELD_OUT)
    labels = np.array([label(chr(code)) for code in glyphs.codes], np.int64)
    factors = torch.tensor(list(FONTS.values()))[torch.from_numpy(glyphs.fonts.astype(np.int64))]
    return Parts(
        [glyphs.images[part][:, None] / np.float32(255) for part in parts],
        [labels[part] for part in parts],
        Factors(LEVELS, *(factors[torch.from_numpy(part)] for part in parts)),
    )


def label(character: str) -> int:
    """0 for an upper-case letter, 1 for a lower-case one, 2 for another letter, 3 for a digit.

    >>> [label(character) for character in "Aaª7"]
    [0, 1, 2, 3]
    """
    return {"Lu": 0, "Ll": 1, "Nd": 3}.get(unicodedata.category(character), 2)


def is_text(character: str) -> bool:
    """Whether a character is a letter or a digit whose style is the font's.

    Those of the mathematical alphabets are bold, script or slanted in any font.

    >>> [is_text(character) for character in "Aé7+𝐀"]
    [True, True, True, False, False]
    """
    category = unicodedata.category(character)
    return (category[0] == "L" or category == "Nd") and not unicodedata.decomposition(character).startswith("<font>")


def split(groups: np.ndarray, held_out: int) -> list[np.ndarray]:
    """The rows of train, validation and test: whole groups in a seeded order, to the test split until it has `held_out` rows,
    to validation until it has, and the rest to train; each split in an order of its own.
    """
    rng = np.random.default_rng(6)
    names, group = np.unique(groups, return_inverse=True)
    order = rng.permutation(len(names))
    filled = np.cumsum(np.bincount(group)[order])
    place = np.empty(len(names), int)
    first = np.searchsorted(filled, held_out)
    second = np.searchsorted(filled, filled[first] + held_out)
    place[order] = np.repeat([2, 1, 0], [first + 1, second - first, len(names) - second - 1])
    return [rng.permutation(np.flatnonzero(place[group] == index)) for index in range(3)]


def render(fonts: Sequence[str] = tuple(FONTS), characters: Collection[str] | None = None) -> Glyphs:
    """Draw every letter and digit of some fonts, or those of them in `characters`, each different image once.

    Left out are images without ink, those that do not fit, and those that fonts with other factors have as well: of these the
    factors are not known. The character of an image is the first that has it: that of the first font, and of the lowest code
    point. Characters are in one group if any font draws them alike, in grey or with the pixels above one half white.
    """
    users: dict[bytes, list[tuple[int, int]]] = {}
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for number, font in enumerate(fonts):
        path = folder / f"{font}.ttf"
        if not path.is_file():
            raise FileNotFoundError(f"glyphs needs the fonts that come with matplotlib, but there is no {path}")
        # Not Raqm, which is not in every build of Pillow and would shape the letters by their context.
        face = ImageFont.truetype(str(path), SIZE, layout_engine=ImageFont.Layout.BASIC)
        for character in map(chr, sorted(FT2Font(str(path)).get_charmap())):
            if is_text(character) and (characters is None or character in characters):
                image = _drawn(face, character)
                if image is not None:
                    users.setdefault(image.tobytes(), []).append((number, ord(character)))
    group = _groups(users)
    kept = {image: who[0] for image, who in users.items() if len({FONTS[fonts[number]] for number, _ in who}) == 1}
    images = np.frombuffer(b"".join(kept), np.uint8).reshape(-1, SIDE, SIDE)
    numbers, codes = np.array(list(kept.values()), np.int32).reshape(-1, 2).T
    return Glyphs(images, codes, numbers, np.array([group[code] for code in codes], np.int32))


def _drawn(face: ImageFont.FreeTypeFont, character: str) -> np.ndarray | None:
    """A character (28, 28), the box of its ink in the middle; None if there is no ink, or too much."""
    canvas = Image.new("L", (4 * SIDE, 4 * SIDE))
    ImageDraw.Draw(canvas).text((SIDE, SIDE), character, fill=255, font=face)
    box = canvas.getbbox()
    if box is None:
        return None
    left, top, right, bottom = box
    if max(right - left, bottom - top) > SIDE:
        return None
    image = Image.new("L", (SIDE, SIDE))
    image.paste(canvas.crop(box), ((SIDE - right + left) // 2, (SIDE - bottom + top) // 2))
    return np.asarray(image)


def _groups(users: dict[bytes, list[tuple[int, int]]]) -> dict[int, int]:
    """The lowest code point of each code point's group: the parts of the graph in which characters hang together by images."""
    codes = sorted({code for who in users.values() for _, code in who})
    shapes = {shape: len(codes) + number for number, shape in enumerate(dict.fromkeys(map(_thresholded, users)))}
    row = {code: number for number, code in enumerate(codes)}
    edges = [(row[code], shapes[_thresholded(image)]) for image, who in users.items() for _, code in who]
    size = len(codes) + len(shapes)
    starts, ends = np.array(edges, int).reshape(-1, 2).T
    component = connected_components(coo_array((np.ones(len(edges)), (starts, ends)), (size, size)), directed=False)[1]
    lowest: dict[int, int] = {}
    return {code: lowest.setdefault(int(component[row[code]]), code) for code in codes}


def _thresholded(image: bytes) -> bytes:
    """The same for two images that are the same with the pixels above one half white; so it is for equal ones."""
    return (np.frombuffer(image, np.uint8) > 127).tobytes()


def load() -> Glyphs:
    """All glyphs, from the cache if they are there, else rendered into it; a damaged file is rendered again."""
    versions = {
        "matplotlib": matplotlib.__version__,
        "Pillow": PIL.__version__,
        "FreeType": features.version("freetype2"),
        "Unicode": unicodedata.unidata_version,
    }
    # Other versions, or another edition of this module, are another file.
    name = f"{hashlib.sha256(json.dumps([SHA256, versions]).encode()).hexdigest()[:16]}.npz"
    *own, cache = homes("glyphs")
    glyphs = next((found for home in (*own, cache) if (found := _cached(home / name))), None)
    if glyphs is None:
        glyphs = render()
        _cache(glyphs, cache / name)
    if glyphs.sha256 != SHA256:
        drawn = ", ".join(f"{each} {version}" for each, version in versions.items())
        _log.warning(
            "glyphs differ from those of the book's results, whose versions are in constraints.txt: drawn by %s", drawn
        )
    return glyphs


def _cached(path: Path) -> Glyphs | None:
    """The glyphs in a file, or None if it is not there, or not as it was written."""
    try:
        arrays = read_arrays(path)
        glyphs = Glyphs(*(arrays[name] for name in Glyphs._fields))
        if glyphs.sha256 != str(arrays["sha256"]):
            raise ValueError
    except FileNotFoundError:
        return None
    except (KeyError, ValueError, OSError):
        _log.warning("glyphs are rendered again: %s is damaged or not to be read", path)
        return None
    return glyphs


def _cache(glyphs: Glyphs, path: Path) -> None:
    """Write the glyphs whole or not at all; without a place to write to they are rendered each time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            np.savez_compressed(Path(folder) / path.name, sha256=np.array(glyphs.sha256), **glyphs._asdict())
            os.replace(Path(folder) / path.name, path)
    except OSError as error:
        _log.warning("glyphs are not cached in %s: %s", path.parent, type(error).__name__)
