"""Named data sets, verified, with fixed splits and seeded binarisation: `load(name)` returns a `Dataset`.

Whole data sets are single CPU tensors; batches are indices into them. Choices are made on the validation split and
reported on the test split. The global random streams of torch and numpy stay as they are, but for `Dataset.draw`.
"""

import contextlib
import hashlib
import inspect
import math
import os
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pooch
import torch
from jaxtyping import Float, Int64
from sklearn.datasets import load_digits, load_sample_images
from sklearn.feature_extraction.image import extract_patches_2d
from torch import Tensor

from nbvae import checks

BINARIZE = (None, "threshold", "static", "dynamic")
SPLITS = ("train", "validation", "test")
_NAMES = (*SPLITS, *(f"{split}_labels" for split in SPLITS))  # the arrays of an .npz, and the tensors of a `Dataset`
SPECTRUM = (5.0, 3.0, 1.5, 0.8, 0.4, 0.2, 0.1, 0.05)

# SHA-256 of the uncompressed IDX files: the wrapper differs from one gzip to the next, the content may not.
_MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")

# Three arrays of values (N, *shape) and three of labels (N,) or None, in the order of `SPLITS`.
_Arrays = tuple[Sequence[np.ndarray], Sequence[np.ndarray | None]]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Three splits of one data set, as `load` returns them or as a reader makes them from tensors.

    Arguments, which are also the attributes:

    - `name`: what tables and figures call the data set.
    - `train`, `validation`, `test`: values (N, *shape) of N examples, dense tensors on the CPU without a gradient. All
      three are float32, as from `load`, or all are float64.
    - `train_labels`, `validation_labels`, `test_labels`: the class of each example, an int64 tensor (N,), or None.
    - `binarize`: how grey values became pixels. None: they did not. "threshold": 1 above .5. "static": one Bernoulli draw
      for each pixel, made once. "dynamic": `train` keeps the grey values, the probabilities of `draw`; the other two splits
      are static, so that they measure every model on the same pixels. Unless None, values are in [0, 1].

    Raises `ValueError`, in one line, for tensors of another kind, and for splits that would go wrong later without a word:
    empty ones, splits that differ in shape, values that are not finite, and images with their channels last.

    >>> x = torch.rand(10, 4)
    >>> ds = Dataset("mine", train=x[:6], validation=x[6:8], test=x[8:])
    >>> ds.shape, ds.is_binary, ds.reach == float(x[:6].max())
    ((4,), False, True)
    """

    name: str
    train: Float[Tensor, "n_train *shape"]
    validation: Float[Tensor, "n_validation *shape"]
    test: Float[Tensor, "n_test *shape"]
    train_labels: Int64[Tensor, " n_train"] | None = None
    validation_labels: Int64[Tensor, " n_validation"] | None = None
    test_labels: Int64[Tensor, " n_test"] | None = None
    binarize: str | None = None

    def __post_init__(self):
        if not isinstance(self.name, str):
            raise ValueError(f"name must be a string, got {_kind(self.name)}")
        checks.choice("binarize", self.binarize, BINARIZE)
        splits = {split: getattr(self, split) for split in SPLITS}
        for split, x in splits.items():
            _plain_tensor(split, x)
        if len({x.dtype for x in splits.values()}) > 1:
            each = ", ".join(f"{split} {x.dtype}" for split, x in splits.items())
            raise ValueError(f"the splits must have one dtype, float32 or float64; got {each}")
        _check_splits(splits)
        for split, x in splits.items():
            labels = getattr(self, f"{split}_labels")
            whole = isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.device.type == "cpu"
            if labels is not None and not (whole and labels.shape == (len(x),)):
                raise ValueError(
                    f"{split}_labels must be an int64 tensor ({len(x)},) on the CPU, or None; got {_kind(labels)}"
                    + (f" of shape {tuple(labels.shape)}" if whole else "")
                )
        if self.binarize is not None:
            _check_unit(self.name, self.binarize, splits.values())

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example: (n,), or (channels, height, width)."""
        return tuple(self.train.shape[1:])

    @cached_property
    def is_binary(self) -> bool:
        """Whether training sees 0 and 1 only: all values of `train` are, or each batch is a Bernoulli draw."""
        return self.binarize == "dynamic" or bool(((self.train == 0) | (self.train == 1)).all())

    @cached_property
    def reach(self) -> float:
        """The largest |value| of `train`, in its own units: 1 for pixels, and what a model's first layer has to bear."""
        return max(map(abs, _range(self.train)))

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the splits with their labels, types and shapes; with the grey `train` if "dynamic"."""
        digest = hashlib.sha256()
        for name in _NAMES:
            tensor = getattr(self, name)
            if tensor is not None:
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                array = tensor.contiguous().numpy()
                digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False))
        return digest.hexdigest()

    def check_scale(self) -> None:
        """Raise `ValueError` where `train` reaches far beyond 1, so that networks at their start overflow on it.

        >>> load("digits").check_scale()
        """
        if self.reach > 30:
            cure = "scale it to about 1 (minus the training mean, over the standard deviation)"
            raise ValueError(f"dataset {self.name} reaches {self.reach:.4g}: {cure}")

    def draw(self, x: Float[Tensor, "batch *shape"], generator: torch.Generator | None = None) -> Float[Tensor, "batch *shape"]:
        """A batch of `train` as training sees it: x, or if "dynamic" a fresh Bernoulli draw of each pixel.

        The draw takes from `generator`, or from torch's global stream without one.

        >>> ds = load("digits", binarize="dynamic")
        >>> ds.draw(ds.train[:100]).unique().tolist()
        [0.0, 1.0]
        """
        return torch.bernoulli(x, generator=generator) if self.binarize == "dynamic" else x

    def __repr__(self) -> str:
        sizes = "/".join(str(len(getattr(self, split))) for split in SPLITS)
        return f"Dataset({self.name!r}, shape={self.shape}, {sizes}, binarize={self.binarize!r})"


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
    | `patches` | (1, 16, 16) | 10000/2000/2000 | None only | grey patches of two photographs, minus the training mean |
    | `gaussian` | (n,) | 60000/10000/10000 | None only | samples of N(0, `gaussian_covariance(spectrum)`) |
    | `mnist` | (1, 28, 28) | 50000/10000/10000 | "static" | the original files; validation is the end of its train |
    | a path | (n,) or (C, H, W) | as in the file | None | see below |

    MNIST is looked for in `$NBVAE_DATA/mnist`, `$NBVAE_DATA` and the user's cache, and downloaded into the cache once.

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
        values, labels = _npz(path)
    elif isinstance(name, str) and name in _SETS:
        read, default = _SETS[name]
        _no_other_options(name, options, tuple(inspect.signature(read).parameters))
        if name in ("patches", "gaussian") and binarize not in ("default", None):
            raise ValueError(f"binarize must be None for {name}, which has no grey levels in [0, 1]; got {binarize!r}")
        values, labels = read(**options)
    else:
        raise ValueError(f"dataset must be one of {', '.join(_SETS)}, or a path to an .npz; got {checks.short(name)}")
    targets = [None if part is None else torch.from_numpy(np.array(part, np.int64)) for part in labels]
    # Checked as grey values first: binarised, a nan would be a pixel like any other.
    grey = Dataset(name, *(torch.from_numpy(_float32(part)) for part in values), *targets, binarize=None)
    binarize = default if binarize == "default" else binarize
    if binarize is None:
        return grey
    _check_unit(name, binarize, (grey.train, grey.validation, grey.test))
    train, validation, test = (torch.from_numpy(_float32(_binary(part, binarize, index))) for index, part in enumerate(values))
    return replace(grey, train=train, validation=validation, test=test, binarize=binarize)


def gaussian_covariance(spectrum: Sequence[float] = SPECTRUM) -> Float[np.ndarray, "n n"]:
    """The covariance U diag(spectrum) Uᵀ of `load("gaussian", spectrum=spectrum)`, float64; U is fixed by n.

    `spectrum` lists the n eigenvalues, each >= 0, not all zero; `ValueError` for anything else.

    >>> np.linalg.eigvalsh(gaussian_covariance([2.0, 0.5])).round(12).tolist()
    [0.5, 2.0]
    """
    rotation, eigenvalues = _rotation(spectrum)
    return (rotation * eigenvalues) @ rotation.T


def _binary(grey: np.ndarray, binarize: str, index: int) -> np.ndarray:
    """Split number `index` with values 0 and 1, but the training split as it is if dynamic."""
    if binarize == "threshold":
        return grey > 0.5
    if binarize == "dynamic" and index == 0:
        return grey
    # A stream for each split: its pixels do not depend on the size of the others.
    return np.random.default_rng([1, index]).random(grey.shape, dtype=np.float32) < grey


def _digits() -> _Arrays:
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    parts = np.split(np.random.default_rng(0).permutation(len(images)), [1200, 1400])
    return [(images[part] / 16).reshape(-1, 1, 8, 8) for part in parts], [labels[part] for part in parts]


def _patches(sizes: Sequence[int] = (10_000, 2_000, 2_000)) -> _Arrays:
    sizes = _sizes(sizes)
    # The luma weights of ITU-R BT.601, and byte values to [0, 1].
    pictures = [picture @ np.array([0.299, 0.587, 0.114]) / 255 for picture in load_sample_images().images]
    raw = _strips(pictures, sizes)
    mean = raw[0].mean(0)
    return [(part - mean)[:, None] for part in raw], [None] * 3


def _strips(pictures: Sequence[np.ndarray], sizes: Sequence[int]) -> list[np.ndarray]:
    """Patches (size, 16, 16) for each split, no pixel of a picture in two splits.

    Each picture is cut into four bands of 160 columns, and each band into strips of 96, 32 and 32 columns for the three
    splits: patches stay inside a strip, and every split sees every part of the scene.
    """
    splits = []
    for index, (split, size, start, stop) in enumerate(zip(SPLITS, sizes, (0, 96, 128), (96, 128, 160), strict=True)):
        strips = [picture[:, left + start : left + stop] for picture in pictures for left in range(0, 640, 160)]
        room = len(strips) * min((strip.shape[0] - 15) * (strip.shape[1] - 15) for strip in strips)
        if size > room:
            raise ValueError(f"sizes must be at most {room} for the {split} split of patches, got {size}")
        counts = [size // len(strips) + (number < size % len(strips)) for number in range(len(strips))]
        patches = [
            extract_patches_2d(strip, (16, 16), max_patches=count, random_state=100 * index + number)
            for number, (strip, count) in enumerate(zip(strips, counts, strict=True))
            if count
        ]
        # Mixed, so that the first rows of a split are a sample of it.
        splits.append(np.random.default_rng([2, index]).permutation(np.concatenate(patches)))
    return splits


def _gaussian(spectrum: Sequence[float] = SPECTRUM, sizes: Sequence[int] = (60_000, 10_000, 10_000), seed: int = 0) -> _Arrays:
    rotation, eigenvalues = _rotation(spectrum)
    root = rotation * np.sqrt(eigenvalues)
    streams = [np.random.default_rng([3, checks.whole("seed", seed, 0), index]) for index in range(3)]
    sizes = _sizes(sizes)
    return [rng.standard_normal((n, len(root))) @ root.T for rng, n in zip(streams, sizes, strict=True)], [None] * 3


def _rotation(spectrum: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """A fixed rotation (n, n) and the eigenvalues (n,), checked."""
    try:
        eigenvalues = np.array(spectrum, dtype=np.float64)
    except (TypeError, ValueError):
        eigenvalues = np.array([np.nan])
    if eigenvalues.ndim != 1 or not np.isfinite(eigenvalues).all() or (eigenvalues < 0).any() or not eigenvalues.any():
        raise ValueError(f"spectrum must be a list of finite numbers >= 0, not all zero; got {checks.short(spectrum)}")
    n = len(eigenvalues)
    rotation, upper = np.linalg.qr(np.random.default_rng([4, n]).standard_normal((n, n)))
    # QR is unique up to signs, which differ between LAPACKs: make the diagonal of R positive, then the determinant.
    rotation = rotation * np.sign(np.diag(upper))
    rotation[:, 0] *= np.sign(np.linalg.det(rotation))
    return rotation, eigenvalues


def _npz(path: Path) -> _Arrays:
    arrays = _read_npz(path)
    if missing := [name for name in ("train", "test") if name not in arrays]:
        raise ValueError(f"{path} has no array {' and no array '.join(missing)}; it has {', '.join(arrays) or 'none'}")
    # Refused, since a split or labels under a misspelt name would be left out without a word; a number or a text alone, a
    # reader's note, can be neither.
    if unknown := [name for name, array in arrays.items() if name not in _NAMES and array.ndim]:
        raise ValueError(f"{path} has unknown arrays: {', '.join(unknown)}; an .npz may have {', '.join(_NAMES)}")
    for split in SPLITS:
        if split not in arrays and f"{split}_labels" in arrays:
            raise ValueError(f"{path}: {split}_labels needs an array {split}")
    values = {split: arrays[split] for split in SPLITS if split in arrays}
    for split, part in values.items():
        if part.dtype.kind not in "buif":
            raise ValueError(f"{path}: {split} must hold real numbers, got dtype {part.dtype}")
        if part.ndim not in (2, 3, 4):
            raise ValueError(f"{path}: {split} must be (N, n), (N, H, W) or (N, C, H, W), got {part.shape}")
    values = {split: part[:, None] if part.ndim == 3 else part for split, part in values.items()}
    white = _white(values, path)
    values = {split: _float32(part) / white for split, part in values.items()}
    _check_splits({split: torch.from_numpy(part) for split, part in values.items()}, f"{path}: ")
    _check_one_scale(values, path)
    for split, part in values.items():
        if part.ndim == 4 and abs(part).max() > 1 and (part == np.rint(part)).all():
            raise ValueError(
                f"{path}: {split} holds images of whole numbers up to {abs(part).max():g}: divide by 255, or by the level that "
                "is white, before saving; or save bytes as uint8"
            )
    labels = {split: arrays.get(f"{split}_labels") for split in values}
    for split, part in labels.items():
        n = len(values[split])
        if part is not None and (part.dtype.kind not in "bui" or part.shape != (n,) or (part != part.astype(np.int64)).any()):
            raise ValueError(f"{path}: {split}_labels must be {n} whole numbers, got {part.dtype} of shape {part.shape}")
    if "validation" not in values:
        n = len(values["train"])
        if n < 2:
            raise ValueError(f"{path}: train needs at least 2 examples for validation to be held out, got {n}")
        order, held = np.random.default_rng(5).permutation(n), max(1, n // 10)
        # Sorted: the order of the file is kept.
        for split, rows in (("validation", np.sort(order[:held])), ("train", np.sort(order[held:]))):
            labels[split] = None if arrays.get("train_labels") is None else arrays["train_labels"][rows]
            values[split] = values["train"][rows]
    return [values[split] for split in SPLITS], [labels[split] for split in SPLITS]


def _white(values: Mapping[str, np.ndarray], path: Path) -> np.float32:
    """What the splits of a file are divided by: 255 if they are bytes, else 1."""
    are_bytes = [part.dtype == np.uint8 for part in values.values()]
    if not any(are_bytes):
        return np.float32(1)
    if not all(are_bytes):
        each = ", ".join(f"{split} {part.dtype}" for split, part in values.items())
        raise ValueError(
            f"{path}: uint8 is divided by 255 and nothing else is, so that splits must be all uint8 or none: {each}"
        )
    # Divided by 255, pixels that are 0 or 1 would all but vanish, as would the 17 levels of the digits.
    if 0 < (most := max(part.max(initial=0) for part in values.values())) <= 16:
        raise ValueError(
            f"{path}: uint8 is read as 0..255, but no value is above {most}; "
            + ("save 0/1 pixels as bool or float32" if most == 1 else "save the values divided by that level, as float32")
        )
    return np.float32(255)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise FileNotFoundError(f"no file {path}; dataset must be one of {', '.join(_SETS)}, or a path to an .npz")
    try:
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            # An altered header can make numpy stop short of the end of an array, where its checksum would be compared.
            if file.zip.testzip() is not None:
                raise zipfile.BadZipFile
            return {name: np.asarray(file[name]) for name in file.files}
    except PermissionError:
        raise
    # All that numpy and zipfile were seen to raise on damaged bytes; AttributeError of what is an array, but no archive.
    except (ValueError, OSError, EOFError, TypeError, AttributeError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        # numpy's own word for arrays that only pickle can hold.
        reason = "it holds Python objects" if "Object arrays" in str(error) else "it is not an .npz, or damaged"
        raise ValueError(f"cannot read {path} as arrays of numbers: {reason}") from None


def _mnist() -> _Arrays:
    # The header of an IDX file: 4 bytes, and 4 for each dimension. Its content is known once the hash is.
    train, train_labels, test, test_labels = (
        np.frombuffer(_mnist_file(name), np.uint8, offset=16 if "images" in name else 8) for name in _MNIST
    )
    values = [part.reshape(-1, 1, 28, 28) / np.float32(255) for part in (train, test)]
    return [values[0][:50_000], values[0][50_000:], values[1]], [
        train_labels[:50_000],
        train_labels[50_000:],
        test_labels,
    ]


def _mnist_file(name: str) -> bytes:
    """The verified, uncompressed content of an MNIST file: local, cached, or downloaded into the cache."""
    cache = Path(pooch.os_cache("nbvae")) / "mnist"
    own = os.environ.get("NBVAE_DATA")
    homes = [Path(own).expanduser() / "mnist", Path(own).expanduser()] if own else []
    for home in (*homes, cache):
        if (home / f"{name}.gz").is_file():
            return _verified(home / f"{name}.gz", _MNIST[name])
    reasons = []
    logger = pooch.get_logger()
    level = logger.level
    for mirror in _MIRRORS:
        try:
            logger.setLevel("WARNING")  # it would advise to pin the hash of the gzip, which is not what is verified
            cache.mkdir(parents=True, exist_ok=True)
            # Apart, then renamed: what is cached is verified, and processes side by side do not collide.
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                bar = sys.stderr.isatty()
                file = pooch.retrieve(f"{mirror}{name}.gz", None, f"{name}.gz", folder, progressbar=bar)
                content = _verified(Path(file), _MNIST[name])
                os.replace(file, cache / f"{name}.gz")
                return content
        except (OSError, ValueError) as error:
            kind = "altered content" if isinstance(error, ValueError) else type(error).__name__
            reasons.append(f"{mirror.split('/')[2]}: {kind}")
        finally:
            logger.setLevel(level)
    raise FileNotFoundError(
        f"mnist is neither here nor to be downloaded ({', '.join(reasons)}): "
        f"put {', '.join(f'{file}.gz' for file in _MNIST)} into {homes[0] if own else '$NBVAE_DATA/mnist'} or {cache}"
    )


def _verified(path: Path, expected: str) -> bytes:
    content = _gunzip(path.read_bytes())
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise ValueError(
            f"{path} is truncated or altered: its uncompressed content has SHA-256 {actual}, expected {expected}; "
            "delete or replace the file"
        )
    return content


def _gunzip(packed: bytes) -> bytes:
    """What `packed` holds, as far as it can be decompressed: the hash decides whether that is enough."""
    if packed[:2] != b"\x1f\x8b":
        return packed  # decompressed already, or no gzip at all
    reader, parts = zlib.decompressobj(wbits=31), []
    with contextlib.suppress(zlib.error):
        parts.extend(reader.decompress(packed[start : start + 65536]) for start in range(0, len(packed), 65536))
    return b"".join(parts)


def _plain_tensor(name: str, x: object) -> None:
    """Raise `ValueError` unless x is the plain kind of tensor that everything else computes with."""
    if not isinstance(x, Tensor):
        cure = "torch.as_tensor makes one of an array or a list"
    elif x.dtype not in (torch.float32, torch.float64):
        bytes_ = "bytes become one by x.float() / 255"
        cure = bytes_ if x.dtype == torch.uint8 else "x.float() makes one of real numbers"
    elif x.device.type != "cpu":
        cure = "x.cpu() is there; training moves it to the device of its config"
    elif x.requires_grad or x.layout != torch.strided:
        cure = "x.detach() has no gradient" if x.requires_grad else "x.to_dense() is dense"
    else:
        return
    raise ValueError(f"{name} must be a dense float32 or float64 tensor on the CPU, without a gradient, got {_kind(x)}: {cure}")


def _check_splits(splits: Mapping[str, Tensor], where: str = "") -> None:
    """Raise `ValueError` for splits of floats that would go wrong without a word; the docstring of `Dataset` lists them."""
    for split, x in splits.items():
        shape = tuple(x.shape)
        if len(shape) < 2:
            raise ValueError(f"{where}{split} must have the shape (N, n) or (N, C, H, W), N examples; got {shape}")
        if 0 in shape:
            raise ValueError(f"{where}{split} is empty: its shape is {shape}")
    if len({x.shape[1:] for x in splits.values()}) > 1:
        each = ", ".join(f"{split} {tuple(x.shape[1:])}" for split, x in splits.items())
        raise ValueError(f"{where}examples must have one shape in all splits, got {each}")
    for split, x in splits.items():
        # Five channels or more of at most four columns: no picture has that shape, and all with their channels last do.
        if x.dim() == 4 and x.shape[3] <= 4 < min(x.shape[1:3]):
            cure = f"x.{'transpose' if where else 'permute'}(0, 3, 1, 2)"
            raise ValueError(
                f"{where}{split} must be (N, C, H, W), but {tuple(x.shape)} looks like (N, H, W, C): make it {cure}"
            )
        if not all(map(math.isfinite, _range(x))):
            raise ValueError(f"{where}{split} holds values that are not finite in {str(x.dtype).removeprefix('torch.')}")


def _check_one_scale(values: Mapping[str, np.ndarray], path: Path) -> None:
    """Raise `ValueError` if the splits of a file differ in scale, as where one of them was divided by 255."""
    # The mean, since the largest value is that of one outlier. Iid splits of three rows differ by as much in one of 10^5.
    sizes = {split: float(abs(part).mean(dtype=np.float64)) for split, part in values.items() if len(part) >= 3}
    sizes = {split: size for split, size in sizes.items() if size > 0}
    if sizes and max(sizes.values()) > 50 * min(sizes.values()):
        each = ", ".join(f"{split} {size:.3g}" for split, size in sizes.items())
        raise ValueError(f"{path}: all splits must be on one scale, but their mean |value| is: {each}")


def _check_unit(name: str, binarize: str, splits: Iterable[Tensor]) -> None:
    """Raise `ValueError` unless all values can be probabilities of pixels."""
    lows, highs = zip(*map(_range, splits), strict=True)
    if min(lows) < 0 or max(highs) > 1:
        raise ValueError(f"binarize={binarize!r} needs values in [0, 1], but {name} has {min(lows):g} to {max(highs):g}")


def _range(x: Tensor) -> tuple[float, float]:
    """The smallest and the largest value, in one pass; both nan if there is one."""
    low, high = x.aminmax()
    return float(low), float(high)


def _float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is refused as such
        return np.ascontiguousarray(values, np.float32)


def _kind(x: object) -> str:
    """What x is, in a few words."""
    if not isinstance(x, Tensor):
        return f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")
    odd = [f"on {x.device}"] * (x.device.type != "cpu") + [str(x.layout)] * (x.layout != torch.strided)
    return ", ".join([str(x.dtype), *odd, *["with a gradient"] * x.requires_grad])


def _sizes(sizes: object) -> list[int]:
    if isinstance(sizes, str) or not isinstance(sizes, Sequence) or len(sizes) != 3:
        raise ValueError(f"sizes must be three whole numbers, for train, validation and test; got {checks.short(sizes)}")
    return [checks.whole(f"sizes[{index}]", size) for index, size in enumerate(sizes)]


def _no_other_options(name: str, options: dict[str, object], known: Sequence[str]) -> None:
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; it has {', '.join(('binarize', *known))}")


_SETS = {
    "digits": (_digits, "threshold"),
    "patches": (_patches, None),
    "gaussian": (_gaussian, None),
    "mnist": (_mnist, "static"),
}
