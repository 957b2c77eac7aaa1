"""MNIST and the data sets in its form: four gzipped IDX files, found or downloaded once, verified each time."""

import contextlib
import hashlib
import os
import sys
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pooch

from nbvae.data.dataset import Parts


class Source(NamedTuple):
    """Where the files of a data set are published, and their SHA-256."""

    mirrors: tuple[str, ...]
    sha256: dict[str, str]


# In the order train images and labels, test images and labels. A hash is either that of a file's uncompressed content, which
# is the same in every gzip, or that of the gzip as it is published, where no other is; a file that has it either way is right.
SOURCES = {
    # Of the uncompressed content.
    "mnist": Source(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        {
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    # Of the published gzips, as TensorFlow Datasets lists them. Zalando Research, MIT licence.
    "fashion_mnist": Source(
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        {
            "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
    # Of the published gzips, as TensorFlow Datasets lists them. "KMNIST Dataset" (created by CODH), adapted from "Kuzushiji
    # Dataset" (created by NIJL and others), doi:10.20676/00000341, CC BY-SA 4.0.
    "kmnist": Source(
        ("https://codh.rois.ac.jp/kmnist/dataset/kmnist/", "http://codh.rois.ac.jp/kmnist/dataset/kmnist/"),
        {
            "train-images-idx3-ubyte": "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            "train-labels-idx1-ubyte": "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            "t10k-images-idx3-ubyte": "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            "t10k-labels-idx1-ubyte": "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        },
    ),
}


def homes(name: str) -> list[Path]:
    """The folders where files of a data set are looked for: `$NBVAE_DATA`/name, and last the user's cache."""
    own = os.environ.get("NBVAE_DATA")
    return [*([Path(own).expanduser() / name] if own else []), Path(pooch.os_cache("nbvae")) / name]


def read(name: str) -> Parts:
    """The data set `name` of `SOURCES`: 60,000 images, of which the last 10,000 are for validation, and 10,000 for the test."""
    # The header of an IDX file: 4 bytes, and 4 for each dimension. Its content is known once the hash is.
    train, train_labels, test, test_labels = (
        np.frombuffer(content(name, file), np.uint8, offset=16 if "images" in file else 8) for file in SOURCES[name].sha256
    )
    images, test_images = (part.reshape(-1, 1, 28, 28) / np.float32(255) for part in (train, test))
    return Parts([images[:50_000], images[50_000:], test_images], [train_labels[:50_000], train_labels[50_000:], test_labels])


def content(name: str, file: str) -> bytes:
    """The verified, uncompressed content of a data set's file: local, cached, or downloaded into the cache."""
    mirrors, expected = SOURCES[name].mirrors, SOURCES[name].sha256[file]
    *own, cache = homes(name)
    # The files of all these data sets have the same names, so that only one of them may lie in $NBVAE_DATA itself.
    for home in (*own, *([home.parent for home in own] if name == "mnist" else []), cache):
        if (home / f"{file}.gz").is_file():
            return _verified(home / f"{file}.gz", expected)
    reasons = []
    logger = pooch.get_logger()
    level = logger.level
    for mirror in mirrors:
        try:
            logger.setLevel("WARNING")  # it would advise to pin the hash of the gzip, which is not always what is verified
            cache.mkdir(parents=True, exist_ok=True)
            # Apart, then renamed: what is cached is verified, and processes side by side do not collide.
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                bar = sys.stderr.isatty()
                path = pooch.retrieve(f"{mirror}{file}.gz", None, f"{file}.gz", folder, progressbar=bar)
                found = _verified(Path(path), expected)
                os.replace(path, cache / f"{file}.gz")
                return found
        except (OSError, ValueError) as error:
            kind = "altered content" if isinstance(error, ValueError) else type(error).__name__
            reasons.append(f"{mirror.split('/')[2]}: {kind}")
        finally:
            logger.setLevel(level)
    files = ", ".join(f"{each}.gz" for each in SOURCES[name].sha256)
    raise FileNotFoundError(
        f"{name} is neither here nor to be downloaded ({', '.join(reasons)}): "
        f"put {files} into {own[0] if own else f'$NBVAE_DATA/{name}'} or {cache}"
    )


def _verified(path: Path, expected: str) -> bytes:
    packed = path.read_bytes()
    unpacked = _gunzip(packed)
    as_it_is, inside = (hashlib.sha256(part).hexdigest() for part in (packed, unpacked))
    if expected not in (as_it_is, inside):
        raise ValueError(
            f"{path} is truncated or altered: it has SHA-256 {as_it_is}, its uncompressed content {inside}, expected "
            f"{expected}; delete or replace the file"
        )
    return unpacked


def _gunzip(packed: bytes) -> bytes:
    """What `packed` holds, as far as it can be decompressed: the hash decides whether that is enough."""
    if packed[:2] != b"\x1f\x8b":
        return packed  # decompressed already, or no gzip at all
    reader, parts = zlib.decompressobj(wbits=31), []
    with contextlib.suppress(zlib.error):
        parts.extend(reader.decompress(packed[start : start + 65536]) for start in range(0, len(packed), 65536))
    return b"".join(parts)
