"""Small pieces of photographs, in grey: natural images whose covariance is that of a long chain of shrinking eigenvalues."""

from collections.abc import Sequence

import numpy as np
from skimage import data as photographs
from sklearn.datasets import load_sample_images

from nbvae.data.dataset import SPLITS, Parts, sizes_of

SIDE = 16
# Two photographs come with scikit-learn (CC BY, their authors are named there). With scikit-image come many more; these are the
# sharp ones of scenes and surfaces whose authors gave up their rights: CC0 by Lav Varshney, Stefan van der Walt, Rachel
# Michetti, CC0 Textures (brick and gravel) and Linolafett (grass); the astronaut is NASA's, in the public domain.
NAMES = ("astronaut", "camera", "chelsea", "coffee", "brick", "grass", "gravel")


def read(sizes: Sequence[int] = (40_000, 5_000, 5_000)) -> Parts:
    sizes = sizes_of(sizes)
    colour = [*load_sample_images().images, *(getattr(photographs, name)() for name in NAMES)]
    raw = cut([grey(picture) for picture in colour], sizes)
    # Sums of whole numbers, so that the values are the same to the last bit on every machine.
    mean = raw[0].sum(0, dtype=np.int64) / len(raw[0])
    return Parts([((part - mean) / 255_000)[:, None] for part in raw])


def grey(picture: np.ndarray) -> np.ndarray:
    """The luma (H, W) of bytes (H, W) or (H, W, 3), by ITU-R BT.601, in whole numbers of which 255,000 is white."""
    whole = picture.astype(np.int32)
    return 1000 * whole if whole.ndim == 2 else (whole * np.array([299, 587, 114], np.int32)).sum(2, dtype=np.int32)


def cut(pictures: Sequence[np.ndarray], sizes: Sequence[int]) -> list[np.ndarray]:
    """Patches (size, 16, 16) for each split, all at different places, no pixel of a picture in two splits.

    Each picture is cut into bands of about 160 columns, and each band into strips of 3/5, 1/5 and 1/5 of its columns for the
    three splits: patches stay inside a strip, and every split sees every part of the scene. All places of all strips are
    equally likely.
    """
    strips: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for picture in pictures:
        width = picture.shape[1]
        bands = max(1, round(width / 160))
        for left, right in ((width * band // bands, width * (band + 1) // bands) for band in range(bands)):
            edges = [left + (right - left) * fifths // 5 for fifths in (0, 3, 4, 5)]
            for split, start, stop in zip(SPLITS, edges[:-1], edges[1:], strict=True):
                strips[split].append(picture[:, start:stop])
    return [_drawn(split, strips[split], size, index) for index, (split, size) in enumerate(zip(SPLITS, sizes, strict=True))]


def _drawn(split: str, strips: Sequence[np.ndarray], size: int, index: int) -> np.ndarray:
    windows = [np.lib.stride_tricks.sliding_window_view(strip, (SIDE, SIDE)) for strip in strips]
    ends = np.cumsum([window.shape[0] * window.shape[1] for window in windows])
    if size > ends[-1]:
        raise ValueError(f"sizes must be at most {ends[-1]} for the {split} split of patches, got {size}")
    # In an order of their own, so that the first rows of a split are a sample of it.
    places = np.random.default_rng([2, index]).choice(int(ends[-1]), size, replace=False)
    patches = np.empty((size, SIDE, SIDE), strips[0].dtype)
    for window, start, stop in zip(windows, [0, *ends[:-1]], ends, strict=True):
        inside = (places >= start) & (places < stop)
        patches[inside] = window[np.unravel_index(places[inside] - start, window.shape[:2])]
    return patches
