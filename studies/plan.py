"""What an experiment is given: a frozen plan whose fields are checked, changed by a command line and compared with a record."""

import hashlib
import json
import math
import types
import typing
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from nbvae import checks, data

BUDGETS = ("full", "quick", "smoke")
_LATER = [
    ("against", 2.0),
    ("sides", []),
    ("unclaimed", []),
    ("start", 0.0),
    ("start_passes", 100),
    ("margin", 0.0),
    ("finer", []),
    ("closed", []),
]  # what records were made with before there were such fields


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every experiment is given; each has a subclass with fields of its own.

    - `dataset`: a name that `data.load` knows, or the path of a reader's file.
    - `binarize`: as for `data.load`; "default" or "none" (grey values), "threshold", "static", "dynamic".
    - `images`: how many training images are used at most, the first ones; None for all.
    - `seeds`: of initial weights, batches and noise, one training for each.

    Values are checked by the annotations of their fields and may be texts, as a command line has them: "0,1,2" is a tuple and
    "none" is None. Raises `ValueError`, in one line, for a value of another type.

    >>> Plan(seeds="0,1").seeds, Plan(images="none").images
    ((0, 1), None)
    """

    dataset: str = "digits"
    binarize: str | None = "default"
    images: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self)).items():
            object.__setattr__(self, name, _read(name, hint, getattr(self, name)))
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different whole numbers >= 0, at least one; got {checks.short(self.seeds)}")
        checks.choice("binarize", self.binarize, ("default", *data.BINARIZE))
        if self.images is not None:
            checks.whole("images", self.images)

    def changed(self, **values: Any) -> Self:
        """The plan with other `values` in some fields; `ValueError` for a field that it has not."""
        known = [field.name for field in fields(self)]
        for name in values:
            if name not in known:
                raise ValueError(f"the plan has no field {name!r}; it has {', '.join(known)}")
        return replace(self, **values)

    @property
    def settings(self) -> dict[str, Any]:
        """The fields as JSON has them: lists for tuples."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def hash(self) -> str:
        """A hash of the fields: two plans that ask for the same have the same."""
        counted = {name: value for name, value in self.settings.items() if (name, value) not in _LATER}
        return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:16]

    def stretched(self, *names: str) -> Self:
        """The plan for a file of fewer than 1,000 training examples: as many steps, so more passes, in the fields `names`."""
        if not self.dataset.lower().endswith(".npz"):
            return self
        few = 1000 / min(1000, len(self.data().train))
        return self.changed(**{name: math.ceil(few * getattr(self, name)) for name in names})

    def data(self) -> data.Dataset:
        """The data set, with the training images that the plan has."""
        return load(self.dataset, self.binarize, self.images)


def load(dataset: str, binarize: str | None = "default", images: int | None = None) -> data.Dataset:
    """A data set with its first training examples, at most `images`."""
    whole = data.load(dataset, binarize)
    return whole if images is None else whole.first(min(images, len(whole.train)))


def accept_labels(ds: data.Dataset) -> None:
    """Refuse data whose images cannot be compared in the features of a classifier of their own labels.

    What trains the classifier comes later: `metrics.classifier`, which keeps it in the user's cache.
    """
    labels, least = ds.train_labels, 33  # more images than the classifier has features
    if labels is None or ds.test_labels is None or len(labels.unique()) < 2:
        raise ValueError(
            f"dataset {ds.name} needs labels, for samples are compared in the features of a classifier: save train_labels and"
            " test_labels, of two kinds or more, in the .npz"
        )
    if len(ds.test) < least:
        raise ValueError(f"dataset {ds.name} has {len(ds.test)} test examples: samples are compared with at least {least}")


def _read(name: str, hint: Any, value: Any) -> Any:
    """A field's value by its annotation, from a text too."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kind, _ = typing.get_args(hint)  # of a type or None
        return None if value is None or value == "none" else _read(name, kind, value)
    if typing.get_origin(hint) is tuple:
        kind, _ = typing.get_args(hint)
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise ValueError(f"{name} must be {_WORDS[kind]}s with commas between them, got {checks.short(value)}")
        return tuple(_read(name, kind, part) for part in parts)
    if hint in (int, float) and isinstance(value, str):
        try:
            value = hint(value)
        except ValueError:
            raise ValueError(f"{name} must be {_WORDS[hint]}, got {value!r}") from None
    if hint is bool and value in ("true", "false"):
        value = value == "true"
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ValueError(f"{name} must be {_WORDS[hint]}, got {checks.short(value)}")
    if hint is float and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return value


def accept_ladder(ladder: tuple[float, ...], lowest: float, highest: float) -> None:
    """Refuse a ladder of β that does not fall, or does not lie in the range of β that its model is trained for."""
    if len(ladder) < 2 or list(ladder) != sorted(set(ladder), reverse=True):
        raise ValueError(f"ladder must be at least two βs that fall; got {checks.short(ladder)}")
    if not 0 < lowest <= ladder[-1] or not ladder[0] <= highest:
        raise ValueError("lowest and highest must be the ends of a range that has the whole ladder, and lowest above 0")


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
