"""The command: images in a file of numpy to a stream and back, by a run that was saved."""

import argparse
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nbvae import checks, models, training
from nbvae.coding import lossless


def main(arguments: list[str] | None = None) -> None:
    """`python -m nbvae.coding compress RUN IN.npz OUT.nbv` and `decompress RUN IN.nbv OUT.npz`."""
    parser = argparse.ArgumentParser(prog="python -m nbvae.coding", description="Images as bytes, by a VAE that was trained.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, said in (("compress", "an .npz of images to a stream"), ("decompress", "a stream to an .npz with `images`")):
        each = commands.add_parser(name, help=said)
        each.add_argument("run", type=Path, help="the folder that the run was saved in")
        each.add_argument("source", type=Path)
        each.add_argument("target", type=Path)
        each.add_argument("--beta", type=float, help="of a model of many β, the one to code with")
        each.add_argument("--levels", type=int, help="of a gaussian decoder, the grey values that it is discretised to")
    commands.choices["compress"].add_argument("--array", help="the array of the .npz, where it has several")
    options = parser.parse_args(arguments)
    try:
        model = _model(options.run, options.beta, options.levels)
        if options.command == "compress":
            images = _images(options.source, options.array)
            with _progress(len(images), "compress") as shown:
                stream = lossless.compress(model, images, shown)
            _write(options.target, lambda file: file.write(stream))
            found = lossless.report(stream)
            print(
                f"{found.count} images in {found.size} bytes: header {found.header}, initial {found.initial}, "
                f"net {found.net}, {found.bits_per_dimension:.4f} bits per dimension"
            )
        else:
            data = options.source.read_bytes()
            with _progress(lossless.report(data).count, "decompress") as shown:
                images = lossless.decompress(model, data, shown).numpy()
            _write(options.target, lambda file: np.savez_compressed(file, images=images))
            print(f"{len(images)} images of shape {images.shape[1:]}")
    except OSError as error:
        print(f"coding: {error.filename or options.source}: {checks.line(error.strerror or error)}", file=sys.stderr)
        raise SystemExit(1) from None
    except ValueError as error:
        print(f"coding: {checks.line(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"coding: stopped; {options.target} is as it was", file=sys.stderr)
        raise SystemExit(130) from None


def _model(run: Path, beta: float | None, levels: int | None) -> Any:
    try:
        model: Any = training.load(run).model
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None
    if hasattr(model, "at"):
        if beta is None:
            raise ValueError("the run is of a model of many β: say which with --beta")
        model = model.at(beta)
    elif beta is not None:
        raise ValueError("--beta is for a model of many β, and the run's has one")
    return model if levels is None else models.Discretized(model, levels)


def _images(path: Path, name: str | None) -> torch.Tensor:
    """The array of a file: bytes are divided by 255, as `data.load` does, unless they are 0 and 1."""
    try:
        with np.load(path) as arrays:
            name = name or (arrays.files[0] if len(arrays.files) == 1 else "images")
            if name not in arrays.files:
                raise ValueError(f"{path} has no array {name}: say with --array which of {', '.join(arrays.files)}")
            values = arrays[name]
    except (zipfile.BadZipFile, EOFError, ValueError, AttributeError, TypeError) as error:
        if "--array" in str(error):
            raise
        raise ValueError(f"{path} is no .npz of arrays ({checks.line(error)})") from None
    if values.dtype.kind not in "biuf" or not values.size:
        raise ValueError(f"{path}: {name} must hold real numbers, at least one")
    scale = 255 if values.dtype == np.uint8 and values.max() > 1 else 1
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)) / scale


def _write(path: Path, write: Callable[[Any], Any]) -> None:
    """Write a file in one step: whoever reads it finds all of it or none."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            write(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _progress(count: int, said: str) -> Iterator[Callable[[int], None]]:
    with tqdm(total=count, desc=said, unit="image", disable=not training.watched()) as bar:

        def shown(n: int) -> None:
            bar.update(n)

        yield shown


if __name__ == "__main__":
    main()
