"""nbvae: the rate–distortion view of variational autoencoders, as a thin library over PyTorch.

The rooms, from the ones that know least to the ones that know most; each is loaded on first use:

- `data`: named data sets and a reader's own, with fixed splits.
- `results`: what is measured: estimates with their errors, tidy frames, means over seeds, pairs.
- `curves`: rate–distortion points and curves as records, and comparisons of them.
- `analytic`: closed forms to hold everything else to.
- `models`: VAEs as three distributions, `posterior(x)`, `likelihood(z)`, `prior()`.
- `posterior`: the aggregated posterior q(z) of a data set.
- `objectives`: the published losses as weights on the terms of the ELBO.
- `training`: `fit` for one model, `sweep` for many, runs on disk.
- `estimators`: rate, distortion, the four terms, log p(x), with standard errors.
- `metrics`: distances between sets of images, alignment of latents.
- `samplers`: ways to draw from a trained model.
- `plotting`, `notebook`: figures, and what chapters need.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "analytic",
    "curves",
    "data",
    "estimators",
    "metrics",
    "models",
    "notebook",
    "objectives",
    "plotting",
    "posterior",
    "results",
    "samplers",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"nbvae.{name}")
    raise AttributeError(f"module 'nbvae' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
