"""The key of a run: a hash of all that decides what comes out of it. And whether any of that changes while it is trained.

Two runs have one key if what they are made of is alike: the settings of model, objective and config, the initial weights and
buffers, the data, and the code (`_digest.py`), of which the library's own that trains is hashed as a whole.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

import nbvae
from nbvae import data
from nbvae._tensors import is_dense
from nbvae.training._config import TrainConfig, device
from nbvae.training._digest import Digest, Opaque

# What training needs of the library, under `nbvae`; the data have a hash of their own.
CODE = ("_measuring.py", "_randomness.py", "_sameness.py", "_tensors.py", "models", "objectives", "posterior", "training")
_PACKAGE = Path(nbvae.__file__).parent


def key_of(model: nn.Module, dataset: data.Dataset, objective: Any, config: TrainConfig) -> str:
    """The key of `fit(model, dataset, objective, config)`, 64 hexadecimal digits.

    Of the config's device its kind counts ("cpu", "cuda", "mps"), as each rounds in its own way. Raises `ValueError` for a
    model that could not be saved, and where something decides the result that cannot be told from others of its kind.
    """
    for name, value in model.state_dict().items():
        if not is_dense(value):
            raise ValueError(f"only a model whose state is dense tensors can be stored, and its {name} is none")
    digest = Digest()
    digest.add([of_library(), data.Dataset.draw.__code__, dataset.sha256, dataset.binarize])
    digest.add(asdict(config) | {"device": device(config.device).type})
    for what, thing in (("model", model), ("objective", objective), ("dataset", type(dataset))):
        try:
            digest.add(thing)
        except Opaque as error:
            raise ValueError(
                f"no store can tell the run from others: the {what} holds {error}, of which no content is known"
            ) from None
    return digest.hexdigest()


def key_of_stack(keys: Sequence[str]) -> str:
    """The key of models that are trained as one, whose rounding depends on who the others are."""
    return hashlib.sha256(" ".join(["stack", *keys]).encode()).hexdigest()


@functools.cache
def of_library() -> str:
    """A hash of the code that trains, without comments and docstrings."""
    digest = Digest()
    for path in sorted(each for name in CODE for each in (_PACKAGE / name, *(_PACKAGE / name).rglob("*.py"))):
        if path.suffix == ".py":
            digest.add(path.relative_to(_PACKAGE).as_posix())
            digest.add(compile(path.read_bytes(), path.name, "exec", dont_inherit=True, optimize=2))
    return digest.hexdigest()


class Watch:
    """Whether anything has changed since it began, beside the tensors of `modules`, that decides how training goes on."""

    def __init__(self, modules: Sequence[nn.Module], objective: Any):
        self.modules, self.objective = modules, objective
        self.before = self._now()  # with the things that were looked at: while they live, no other has the id of one

    def changed(self) -> bool:
        return self._now() != self.before

    def _now(self) -> "Digest":
        digest = Digest(held=self.modules)
        digest.add((*self.modules, self.objective))
        return digest
