"""Named data sets, verified, with fixed splits and seeded binarisation: `load(name)` returns a `Dataset`.

Whole data sets are single CPU tensors; batches are indices into them. Choices are made on the validation split and
reported on the test split. The global random streams of torch and numpy stay as they are, but for `Dataset.draw`.
"""

from nbvae.data.dataset import BINARIZE, SPLITS, Dataset, Factors
from nbvae.data.gaussian import SPECTRUM, gaussian_covariance
from nbvae.data.named import load

__all__ = ["BINARIZE", "SPECTRUM", "SPLITS", "Dataset", "Factors", "gaussian_covariance", "load"]
