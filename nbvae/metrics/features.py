"""Feature extractors for distances between sets of images: a classifier of the data set's own labels, or Inception.

An extractor is anything that takes images (N, *shape) and returns features (N, d).
"""

import contextlib
import os
import tempfile
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import torch
from jaxtyping import Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from nbvae import checks, data

# Images for which Inception runs at once.
_BATCH = 128
_NO_INCEPTION = (
    "Inception needs the extra nbvae[inception] and its weights, which are downloaded once; "
    "the default, metrics.classifier(dataset), needs neither"
)


class Classifier:
    """The last hidden layer of an MLP that was trained on a data set's labels: (N, *shape) -> (N, d) features.

    - `shape`: shape of one example.
    - `layers`: weight and bias of each layer, as `classifier` trains them.
    - `accuracy`: the share of the test images that it labels rightly. Features of a poor classifier measure little.
    """

    def __init__(self, shape: Sequence[int], layers: Sequence[tuple[np.ndarray, np.ndarray]], accuracy: float):
        self.shape, self.accuracy = tuple(shape), accuracy
        self.layers = [(torch.from_numpy(weight).float(), torch.from_numpy(bias).float()) for weight, bias in layers]
        self.dim = len(self.layers[-2][1])

    def __call__(self, images: Float[Tensor, "n *shape"]) -> Float[Tensor, "n d"]:
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(f"images must have the shape (n, {', '.join(map(str, self.shape))}), got {tuple(images.shape)}")
        x = images.detach().float().cpu().flatten(1)
        for weight, bias in self.layers[:-1]:
            x = (x @ weight + bias).relu()
        return x

    def __repr__(self) -> str:
        return f"Classifier({self.dim} features, accuracy {self.accuracy:.3f})"


def classifier(dataset: data.Dataset, hidden: Sequence[int] = (256, 32), epochs: int = 20, seed: int = 0) -> Classifier:
    """A `Classifier` of a data set's own labels: trained on its training split, or taken from the user's cache.

    - `dataset`: a `data.Dataset` with labels of the training and the test split.
    - `hidden`: the widths of the hidden layers; the last one is the number of features.
    - `epochs`: the number of passes over the training images, >= 1.
    - `seed`: the seed of weights and batches, < 2³².

    The cache's key is the data set's hash and the arguments. Raises `ValueError` for a data set without labels, or with one
    label only.

    >>> from nbvae import data, metrics
    >>> digits = data.load("digits")
    >>> extract = metrics.classifier(digits)
    >>> extract(digits.test).shape, extract.accuracy > 0.9
    (torch.Size([397, 32]), True)
    """
    if not isinstance(dataset, data.Dataset):
        raise ValueError(f"dataset must be a data.Dataset, as data.load gives, got {checks.short(dataset)}")
    hidden = tuple(checks.whole("hidden", width) for width in checks.listed("hidden", hidden))
    epochs, seed = checks.whole("epochs", epochs), checks.seed("seed", seed, bits=32)
    if dataset.train_labels is None or dataset.test_labels is None:
        raise ValueError(f"{dataset.name} has no labels to train a classifier on: give an extractor of your own")
    names = "-".join(map(str, (*hidden, epochs, seed)))
    path = Path(pooch.os_cache("nbvae")) / "classifiers" / f"{dataset.sha256[:24]}-{names}.npz"
    keys = ["accuracy", *(f"{kind}{i}" for kind in ("weight", "bias") for i in range(len(hidden) + 1))]
    found = _read(path, keys)
    if found is None:
        found = _train(dataset, hidden, epochs, seed)
        _write(path, found)
    layers = [(found[f"weight{i}"], found[f"bias{i}"]) for i in range(len(hidden) + 1)]
    return Classifier(dataset.shape, layers, float(found["accuracy"]))


def inception(device: str | torch.device = "cpu") -> Any:
    """The 2,048 features of Inception-v3 in which Fréchet distances are published: images in [0, 1], grey or RGB.

    It runs on `device`. Values are clipped to [0, 1] and become bytes on that one scale. Needs the extra `inception`
    (torchmetrics with torch-fidelity), and the network for the weights: `RuntimeError` in one line without them.

    >>> from nbvae import metrics
    >>> extract = metrics.inception()  # doctest: +SKIP
    >>> extract(images).shape  # doctest: +SKIP
    torch.Size([100, 2048])
    """
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3  # pyright: ignore[reportMissingImports]

        network = NoTrainInceptionV3("inception-v3-compat", ["2048"]).to(device)
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: a torchvision of another build of torch
        raise RuntimeError(f"{_NO_INCEPTION} ({type(error).__name__})") from None

    @torch.no_grad()
    def extract(images: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n 2048"]:
        if images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"Inception takes images (n, 1 or 3, height, width), got {tuple(images.shape)}")
        parts = [
            network((part.to(device).clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)).cpu()
            for part in images.split(_BATCH)
        ]
        return torch.cat(parts)

    return extract


def _train(dataset: data.Dataset, hidden: tuple[int, ...], epochs: int, seed: int) -> dict[str, np.ndarray]:
    x, labels = dataset.train.flatten(1).numpy(), dataset.train_labels.numpy()  # pyright: ignore[reportOptionalMemberAccess]
    if len(np.unique(labels)) < 2:
        raise ValueError(f"{dataset.name} has one label only: there is nothing to classify")
    network = MLPClassifier(hidden, max_iter=epochs, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is given
        network.fit(x, labels)
    pairs = zip(network.coefs_, network.intercepts_, strict=True)
    arrays = {f"{kind}{i}": array for i, pair in enumerate(pairs) for kind, array in zip(("weight", "bias"), pair, strict=True)}
    return arrays | {"accuracy": np.array(network.score(dataset.test.flatten(1).numpy(), dataset.test_labels))}


def _read(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path) as arrays:
            return {key: arrays[key] for key in keys}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Apart, then renamed, so that what is cached is whole; a cache that cannot be written is done without."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            file = Path(folder) / path.name
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
            os.replace(file, path)
