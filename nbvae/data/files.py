"""A reader's own data set: the arrays of an .npz, and all that can be wrong with them, each in one line."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from nbvae.data.dataset import NAMES, SPLITS, Parts, check_splits, float32


def read(path: Path) -> Parts:
    """The arrays of an .npz as `load` describes it; `ValueError` for one that is not as it should be."""
    arrays = read_arrays(path)
    if missing := [name for name in ("train", "test") if name not in arrays]:
        raise ValueError(f"{path} has no array {' and no array '.join(missing)}; it has {', '.join(arrays) or 'none'}")
    # Refused, since a split or labels under a misspelt name would be left out without a word; a number or a text alone, a
    # reader's note, can be neither.
    if unknown := [name for name, array in arrays.items() if name not in NAMES and array.ndim]:
        raise ValueError(f"{path} has unknown arrays: {', '.join(unknown)}; an .npz may have {', '.join(NAMES)}")
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
    values = {split: float32(part) / white for split, part in values.items()}
    check_splits({split: torch.from_numpy(part) for split, part in values.items()}, f"{path}: ")
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
    return Parts([values[split] for split in SPLITS], [labels[split] for split in SPLITS])


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


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz; `ValueError` for one that is damaged or holds anything else."""
    try:
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            # An altered header can make numpy stop short of the end of an array, where its checksum would be compared.
            if file.zip.testzip() is not None:
                raise zipfile.BadZipFile
            return {name: np.asarray(file[name]) for name in file.files}
    except (FileNotFoundError, PermissionError):
        raise
    # All that numpy and zipfile were seen to raise on damaged bytes; AttributeError of what is an array, but no archive.
    except (ValueError, OSError, EOFError, TypeError, AttributeError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        # numpy's own word for arrays that only pickle can hold.
        reason = "it holds Python objects" if "Object arrays" in str(error) else "it is not an .npz, or damaged"
        raise ValueError(f"cannot read {path} as arrays of numbers: {reason}") from None


def _check_one_scale(values: Mapping[str, np.ndarray], path: Path) -> None:
    """Raise `ValueError` if the splits of a file differ in scale, as where one of them was divided by 255."""
    # The mean, since the largest value is that of one outlier. Iid splits of three rows differ by as much in one of 10^5.
    sizes = {split: float(abs(part).mean(dtype=np.float64)) for split, part in values.items() if len(part) >= 3}
    sizes = {split: size for split, size in sizes.items() if size > 0}
    if sizes and max(sizes.values()) > 50 * min(sizes.values()):
        each = ", ".join(f"{split} {size:.3g}" for split, size in sizes.items())
        raise ValueError(f"{path}: all splits must be on one scale, but their mean |value| is: {each}")
