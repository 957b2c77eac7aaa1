"""Training: `fit` for one model, `sweep` for many at once."""

from nbvae._randomness import seeded
from nbvae.training import calibration
from nbvae.training._config import DEVICES, OPTIMIZERS, SCHEDULES, TrainConfig, device
from nbvae.training._fit import Diverged, fit
from nbvae.training._keeping import Interrupted, Store
from nbvae.training._loop import watched
from nbvae.training._sweep import sweep
from nbvae.training.store import Run, load

__all__ = [
    "DEVICES",
    "OPTIMIZERS",
    "SCHEDULES",
    "Diverged",
    "Interrupted",
    "Run",
    "Store",
    "TrainConfig",
    "calibration",
    "device",
    "fit",
    "load",
    "seeded",
    "sweep",
    "watched",
]
