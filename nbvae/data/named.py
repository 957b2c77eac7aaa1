"""`load`: the data sets by name, and how grey values become pixels."""

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from nbvae import checks
from nbvae.data import files, gaussian, glyphs, idx, patches
from nbvae.data.dataset import BINARIZE, Dataset, Parts, check_unit, float32


def load(name: str | os.PathLike, binarize: str | None = "default", **options) -> Dataset:
    """Load a data set by name, or a reader's own from a path to an `.npz`.

    - `name`: one of the names below, or the path.
    - `binarize`: "default", None (grey values in [0, 1]), "threshold", "static" or "dynamic", as `Dataset` describes them;
      the static draw is the same in every run.
    - `options`: `patches` takes `sizes`, the numbers of examples in the three splits; `gaussian` takes `sizes`, `spectrum`
      (the eigenvalues of its covariance, each >= 0, not all zero) and `seed` (of the samples, >= 0; the covariance depends
      on the spectrum alone). The others take none.

    | name | shape | train/validation/test | default `binarize` | what it is |
    |---|---|---|---|---|
    | `digits` | (1, 8, 8) | 1200/200/397 | "threshold" | scikit-learn's handwritten digits, a seeded permutation |
    | `patches` | (1, 16, 16) | 40000/5000/5000 | None only | grey patches of nine photographs, minus the training mean |
    | `gaussian` | (n,) | 60000/10000/10000 | None only | samples of N(0, `gaussian_covariance(spectrum)`) |
    | `mnist` | (1, 28, 28) | 50000/10000/10000 | "static" | the original files; validation is the end of its train |
    | `fashion_mnist` | (1, 28, 28) | 50000/10000/10000 | "static" | Zalando's clothes, as `mnist` |
    | `kmnist` | (1, 28, 28) | 50000/10000/10000 | "static" | Kuzushiji-MNIST, old Japanese letters, as `mnist` |
    | `glyphs` | (1, 28, 28) | 19570/3000/3001 | None | letters and digits of matplotlib's text fonts |
    | a path | (n,) or (C, H, W) | as in the file | None | see below |

    The files of `mnist`, `fashion_mnist` and `kmnist` are looked for in `$NBVAE_DATA/name` and the user's cache, those of
    `mnist` in `$NBVAE_DATA` as well, and downloaded into the cache once; the content of each is verified.

    `glyphs` are drawn in a few seconds and cached; no two images are equal. They are split by character: none is in two splits,
    nor are two that any font draws alike, so that the characters of the test split are new. Labels: 0 upper case, 1 lower case,
    2 another letter, 3 a digit. `.factors` has the weight, slant, serif and mono of the font. An image that several characters
    have is that of the lowest code point; one that fonts with other factors have as well is left out. Where the installed
    matplotlib or Pillow draws other images than those of the book's results, a line in the log says so.

    An `.npz` has the arrays `train`, `test` and optionally `validation`, `train_labels`, `validation_labels`,
    `test_labels`, and no others but numbers or texts without a dimension, which are taken for notes. Values are (N, n),
    (N, H, W), read as one channel, or (N, C, H, W). uint8 is divided by 255, and then all splits must be uint8; all else is
    taken as it is. A table may be on any scale, but images of whole numbers beyond 1, levels that nobody divided, are
    refused, and so are splits of which one has a mean |value| of more than 50 times that of another. Without `validation`,
    a tenth of `train`, chosen by a fixed seed, is held out for it. The data set is named after the file.

    Raises `ValueError` for an argument that is not allowed and for a file whose content is not as expected here or in
    `Dataset`, `FileNotFoundError` for a file that is neither here nor to be had: one line each. A bad file is left in place.

    >>> load("digits")
    Dataset('digits', shape=(1, 8, 8), 1200/200/397, binarize='threshold')
    """
    checks.choice("binarize", binarize, ("default", *BINARIZE))
    if isinstance(name, os.PathLike) or (isinstance(name, str) and name.lower().endswith(".npz")):
        path = Path(os.path.expanduser(name))  # of a home that does not exist, the file is not found; Path's would raise
        name, default = path.name, None
        _no_other_options(name, options, ())
        if not path.exists():
            raise FileNotFoundError(f"no file {path}; dataset must be one of {', '.join(SETS)}, or a path to an .npz")
        parts = files.read(path)
    elif isinstance(name, str) and name in SETS:
        read, default = SETS[name]
        _no_other_options(name, options, tuple(inspect.signature(read).parameters))
        if name in ("patches", "gaussian") and binarize not in ("default", None):
            raise ValueError(
                f"binarize must be None for {name}, which has no grey levels in [0, 1]; got {checks.short(binarize)}"
            )
        parts = read(**options)
    else:
        raise ValueError(f"dataset must be one of {', '.join(SETS)}, or a path to an .npz; got {checks.short(name)}")
    labels = [None if part is None else torch.from_numpy(np.array(part, np.int64)) for part in parts.labels]
    # Checked as grey values first: binarised, a nan would be a pixel like any other.
    values = (torch.from_numpy(float32(part)) for part in parts.values)
    grey = Dataset(name, *values, *labels, binarize=None, factors=parts.factors)
    binarize = default if binarize == "default" else binarize
    if binarize is None:
        return grey
    check_unit(name, binarize, (grey.train, grey.validation, grey.test))
    train, validation, test = (
        torch.from_numpy(float32(_binary(part, binarize, index))) for index, part in enumerate(parts.values)
    )
    return replace(grey, train=train, validation=validation, test=test, binarize=binarize)


def digits() -> Parts:
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    rows = np.split(np.random.default_rng(0).permutation(len(images)), [1200, 1400])
    return Parts([(images[part] / 16).reshape(-1, 1, 8, 8) for part in rows], [labels[part] for part in rows])


# How each is read, its options the reader's parameters, and its default `binarize`.
SETS: dict[str, tuple[Callable[..., Parts], str | None]] = {
    "digits": (digits, "threshold"),
    "patches": (patches.read, None),
    "gaussian": (gaussian.read, None),
    **{name: (partial(idx.read, name), "static") for name in idx.SOURCES},
    "glyphs": (glyphs.read, None),
}


def _binary(grey: np.ndarray, binarize: str, index: int) -> np.ndarray:
    """Split number `index` with values 0 and 1, but the training split as it is if dynamic."""
    if binarize == "threshold":
        return grey > 0.5
    if binarize == "dynamic" and index == 0:
        return grey
    # A stream for each split: its pixels do not depend on the size of the others.
    return np.random.default_rng([1, index]).random(grey.shape, dtype=np.float32) < grey


def _no_other_options(name: str, options: dict[str, object], known: Sequence[str]) -> None:
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; it has {', '.join(('binarize', *known))}")
