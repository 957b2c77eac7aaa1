"""Samples of a Gaussian whose covariance is known, for everything that has a closed form."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from nbvae import checks
from nbvae.data.dataset import Parts, sizes_of

# The eigenvalues of the covariance of the data set "gaussian", if no others are given.
SPECTRUM = (5.0, 3.0, 1.5, 0.8, 0.4, 0.2, 0.1, 0.05)


def gaussian_covariance(spectrum: Sequence[float] = SPECTRUM) -> Float[np.ndarray, "n n"]:
    """The covariance U diag(spectrum) Uᵀ of `load("gaussian", spectrum=spectrum)`, float64; U is fixed by n.

    `spectrum` lists the n eigenvalues, each >= 0, not all zero; `ValueError` for anything else.

    >>> np.linalg.eigvalsh(gaussian_covariance([2.0, 0.5])).round(12).tolist()
    [0.5, 2.0]
    """
    rotation, eigenvalues = rotated(spectrum)
    return (rotation * eigenvalues) @ rotation.T


def read(spectrum: Sequence[float] = SPECTRUM, sizes: Sequence[int] = (60_000, 10_000, 10_000), seed: int = 0) -> Parts:
    rotation, eigenvalues = rotated(spectrum)
    root = rotation * np.sqrt(eigenvalues)
    streams = [np.random.default_rng([3, checks.whole("seed", seed, 0), index]) for index in range(3)]
    sizes = sizes_of(sizes)
    return Parts([rng.standard_normal((n, len(root))) @ root.T for rng, n in zip(streams, sizes, strict=True)])


def rotated(spectrum: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
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
