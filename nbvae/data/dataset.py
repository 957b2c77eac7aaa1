"""`Dataset`, three splits of one data set, and `Factors`, what is known of each of its examples; both check what they hold."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nbvae import checks

# How grey values may become pixels, as `Dataset` describes it.
BINARIZE = (None, "threshold", "static", "dynamic")
SPLITS = ("train", "validation", "test")  # the parts of a data set, by which functions are asked for one
NAMES = (*SPLITS, *(f"{split}_labels" for split in SPLITS))  # the tensors of a `Dataset`, and the arrays of an .npz


@dataclass(frozen=True, eq=False, repr=False)
class Factors:
    """What is known of how each example of a data set came about, such as the weight of the font of a letter.

    Arguments, which are also the attributes:

    - `levels`: the factors by name and, for each, the names of its values: {"weight": ("regular", "bold"), ...}.
    - `train`, `validation`, `test`: the values, int64 tensors (N, k) on the CPU: a row for each example of the split, a column
      for each of the k factors in the order of `levels`, in it the number of the value, from 0.

    Raises `ValueError`, in one line, for anything else.

    >>> from nbvae import data
    >>> factors = data.load("glyphs").factors
    >>> factors.levels["weight"]
    ('regular', 'bold')
    >>> sorted(factors.by_name("test")), factors.by_name("test")["weight"].unique().tolist()
    (['mono', 'serif', 'slant', 'weight'], [0, 1])
    """

    levels: Mapping[str, Sequence[str]]
    train: Int64[Tensor, "n_train k"]
    validation: Int64[Tensor, "n_validation k"]
    test: Int64[Tensor, "n_test k"]

    def __post_init__(self):
        if not isinstance(self.levels, Mapping) or not self.levels or not all(map(_is_factor, self.levels.items())):
            told = checks.short(self.levels)
            raise ValueError(f"levels must name at least one factor, and for each the names of its values; got {told}")
        object.__setattr__(self, "levels", {name: tuple(values) for name, values in self.levels.items()})
        sizes = torch.tensor([len(values) for values in self.levels.values()])
        for split in SPLITS:
            x = getattr(self, split)
            if not (_is_whole(x) and x.dim() == 2 and x.shape[1] == len(sizes)):
                raise ValueError(
                    f"{split} of factors must be an int64 tensor (N, {len(sizes)}) on the CPU, got {_described(x)}"
                )
            if not ((x >= 0) & (x < sizes)).all():
                name = list(self.levels)[int(((x < 0) | (x >= sizes)).any(0).nonzero()[0])]
                raise ValueError(f"{split} of factors has values of {name} outside 0..{len(self.levels[name]) - 1}")

    def by_name(self, split: str) -> dict[str, Int64[Tensor, " n"]]:
        """The factors of the examples of one `split`, by name.

        >>> number = torch.tensor([[0], [1]])
        >>> Factors({"slant": ("upright", "slanted")}, train=number, validation=number, test=number).by_name("train")
        {'slant': tensor([0, 1])}
        """
        return dict(zip(self.levels, getattr(self, str(checks.choice("split", split, SPLITS))).T, strict=True))

    def __repr__(self) -> str:
        return f"Factors({', '.join(self.levels)})"


class Parts(NamedTuple):
    """What the readers of this room return: the values (N, *shape) of each split and its labels (N,), or None."""

    values: Sequence[np.ndarray]
    labels: Sequence[np.ndarray | None] = (None, None, None)
    factors: Factors | None = None


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
    - `factors`: what is known of each example, `Factors` with a row for each, or None.

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
    factors: Factors | None = None

    def __post_init__(self):
        if not isinstance(self.name, str):
            raise ValueError(f"name must be a string, got {_kind(self.name)}")
        checks.choice("binarize", self.binarize, BINARIZE)
        splits = {split: getattr(self, split) for split in SPLITS}
        for split, x in splits.items():
            plain_tensor(split, x)
        if len({x.dtype for x in splits.values()}) > 1:
            each = ", ".join(f"{split} {x.dtype}" for split, x in splits.items())
            raise ValueError(f"the splits must have one dtype, float32 or float64; got {each}")
        check_splits(splits)
        for split, x in splits.items():
            labels = getattr(self, f"{split}_labels")
            if labels is not None and not (_is_whole(labels) and labels.shape == (len(x),)):
                raise ValueError(
                    f"{split}_labels must be an int64 tensor ({len(x)},) on the CPU, or None; got {_described(labels)}"
                )
        self._check_factors()
        if self.binarize is not None:
            check_unit(self.name, self.binarize, splits.values())

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
        """SHA-256 of the splits with their labels and factors, types and shapes; with the grey `train` if "dynamic"."""
        digest = hashlib.sha256()
        tensors = {name: getattr(self, name) for name in NAMES}
        if self.factors is not None:
            digest.update(f"factors {json.dumps(self.factors.levels)}\n".encode())
            tensors |= {f"{split}_factors": getattr(self.factors, split) for split in SPLITS}
        for name, tensor in tensors.items():
            if tensor is not None:
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                array = tensor.contiguous().numpy()
                digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False))
        return digest.hexdigest()

    def check_scale(self) -> None:
        """Raise `ValueError` where `train` never varies, or reaches so far beyond 1 that networks at their start overflow.

        >>> from nbvae import data
        >>> data.load("digits").check_scale()
        """
        if self.reach > 30:
            cure = "scale it to about 1 (minus the training mean, over the standard deviation)"
            raise ValueError(f"dataset {self.name} reaches {self.reach:.4g}: {cure}")
        if not (self.train != self.train.flatten()[0]).any():
            raise ValueError(f"dataset {self.name} never varies: there is nothing to code")

    def first(self, n: int) -> "Dataset":
        """The same with the first n training examples only, with their labels and factors; `ValueError` if there are fewer.

        >>> from nbvae import data
        >>> data.load("digits").first(1000)
        Dataset('digits', shape=(1, 8, 8), 1000/200/397, binarize='threshold')
        """
        if checks.whole("n", n) > len(self.train):
            raise ValueError(f"n must be at most {len(self.train)}, the training examples of {self.name}; got {n}")
        labels = None if self.train_labels is None else self.train_labels[:n]
        factors = None if self.factors is None else replace(self.factors, train=self.factors.train[:n])
        return replace(self, train=self.train[:n], train_labels=labels, factors=factors)

    def draw(self, x: Float[Tensor, "batch *shape"], generator: torch.Generator | None = None) -> Float[Tensor, "batch *shape"]:
        """A batch of `train` as training sees it: x, or if "dynamic" a fresh Bernoulli draw of each pixel.

        The draw takes from `generator`, or from torch's global stream without one.

        >>> from nbvae import data
        >>> ds = data.load("digits", binarize="dynamic")
        >>> ds.draw(ds.train[:100]).unique().tolist()
        [0.0, 1.0]
        """
        return torch.bernoulli(x, generator=generator) if self.binarize == "dynamic" else x

    def __repr__(self) -> str:
        sizes = "/".join(str(len(getattr(self, split))) for split in SPLITS)
        return f"Dataset({self.name!r}, shape={self.shape}, {sizes}, binarize={self.binarize!r})"

    def _check_factors(self) -> None:
        """Raise `ValueError` unless there is a row of factors for each example, or none at all."""
        if self.factors is None:
            return
        if not isinstance(self.factors, Factors):
            raise ValueError(f"factors must be data.Factors or None, got {_kind(self.factors)}")
        for split in SPLITS:
            rows, n = len(getattr(self.factors, split)), len(getattr(self, split))
            if rows != n:
                raise ValueError(f"factors must have a row for each example, but {split} has {n} examples and {rows} rows")


def plain_tensor(name: str, x: object) -> None:
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


def check_splits(splits: Mapping[str, Tensor], where: str = "") -> None:
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


def check_unit(name: str, binarize: str, splits: Iterable[Tensor]) -> None:
    """Raise `ValueError` unless all values can be probabilities of pixels."""
    lows, highs = zip(*map(_range, splits), strict=True)
    if min(lows) < 0 or max(highs) > 1:
        raise ValueError(f"binarize={binarize!r} needs values in [0, 1], but {name} has {min(lows):g} to {max(highs):g}")


def _range(x: Tensor) -> tuple[float, float]:
    """The smallest and the largest value, in one pass; both nan if there is one."""
    low, high = x.aminmax()
    return float(low), float(high)


def float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is refused as such
        return np.ascontiguousarray(values, np.float32)


def _kind(x: object) -> str:
    """What x is, in a few words."""
    if not isinstance(x, Tensor):
        return f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")
    odd = [f"on {x.device}"] * (x.device.type != "cpu") + [str(x.layout)] * (x.layout != torch.strided)
    return ", ".join([str(x.dtype), *odd, *["with a gradient"] * x.requires_grad])


def _is_whole(x: object) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.int64 and x.device.type == "cpu"


def _described(x: object) -> str:
    return _kind(x) + (f" of shape {tuple(x.shape)}" if isinstance(x, Tensor) and _is_whole(x) else "")


def _is_factor(item: tuple[Any, Any]) -> bool:
    name, values = item
    listed = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
    return isinstance(name, str) and listed and all(isinstance(value, str) for value in values)


def sizes_of(sizes: object) -> list[int]:
    """The numbers of examples in the three splits, as a reader gives them to `load`, checked."""
    if isinstance(sizes, str) or not isinstance(sizes, Sequence) or len(sizes) != 3:
        raise ValueError(f"sizes must be three whole numbers, for train, validation and test; got {checks.short(sizes)}")
    return [checks.whole(f"sizes[{index}]", size) for index, size in enumerate(sizes)]
