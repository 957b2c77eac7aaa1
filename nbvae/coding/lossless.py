"""Lossless coding by bits-back: a trained VAE as the model of an entropy coder, at a price of −ELBO for each image.

To push an image x onto a stack of bits (Townsend et al. 2019): pop z from the stack as q(z|x) would have drawn it, push x under
p(x|z), push z under p(z). Net of what was popped, this takes −log p(x|z) − log p(z) + log q(z|x), on average D + R. To pop the
image, do the same backwards; the last step pushes the bits back that had chosen z.

z is on a grid of step 2⁻⁸ from −16 to 16; the network sees the middle of its cell. Where a posterior is less than a few steps
wide, or beyond the grid, the price is above −ELBO, and the images come back all the same.

Networks run in float64, and what they return is rounded before it is used: means to an eighth of the grid's step, log σ to
1/64, log odds to 1/256. Compressing and decompressing call them with the same batches. On one machine both compute the same;
elsewhere a sum in another order, wrong in the sixteenth digit, would have to straddle one of these roundings to make a
difference. If it does, the checksum of the images tells.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import special
from torch import Tensor, distributions

from nbvae.coding._bits import Intervals, Odds, Stack, Tree
from nbvae.coding._stream import RANKS, Header, frozen, hash_of, images_given, little, words_of
from nbvae.models import likelihoods

MAGIC, VERSION = b"NBVA", 1
_CELL, _HALF = 1 / 256, 4096  # the grid of z: 2·4096 cells
_MEAN, _LOG_STD = _CELL / 8, 1 / 64
_IMAGES, _PIXELS, _SHARE = 128, 1 << 18, 4
_TINY = 1e-9
_CUT = "the stream is not what was written with this model on this kind of machine"


@dataclass(frozen=True)
class Report:
    """What a lossless stream is made of.

    - `count`: the number of images; `shape`: of each; `levels`: grey values of a pixel.
    - `size`: bytes in all; `header`: of them before the stack; `initial`: on the stack before the first image.

    `net` is the rest, in bytes: what the images cost, to be compared with −ELBO. The initial bytes are lost only in so far as
    nothing useful was sent in them.

    >>> found = Report(count=1000, shape=(1, 8, 8), levels=2, size=4066, header=54, initial=12)
    >>> found.net, found.bits_per_dimension
    (4000, 0.5)
    """

    count: int
    shape: tuple[int, ...]
    levels: int
    size: int
    header: int
    initial: int

    @property
    def net(self) -> int:
        """Bytes without the header and the initial ones."""
        return self.size - self.header - self.initial

    @property
    def nats(self) -> float:
        """Net nats for each image."""
        return self.net * 8 * float(np.log(2)) / self.count

    @property
    def bits_per_dimension(self) -> float:
        """Net bits for each pixel."""
        return self.net * 8 / (self.count * int(np.prod(self.shape)))


def compress(model: Any, images: Float[Tensor, "batch *shape"], on_images: Callable[[int], None] | None = None) -> bytes:
    """A stream of bytes from which `decompress` makes the images again, bit for bit.

    - `model`: a VAE whose decoder is a probability mass: likelihood "bernoulli" or a discretised one, or `models.Discretized`
      of a Gaussian one. It may be on any device; it is copied and left as it was.
    - `images`: (n, *shape), n >= 1, of 0 and 1, or of the grey values j/(levels − 1) as float32 has them.
    - `on_images`: called with the number of images that each step has coded.

    Raises `ValueError` for a model of another kind, images that are not of its shape and values, and network outputs that are
    not finite. `report` says what the size is made of.

    >>> from nbvae import coding, data, models, training
    >>> digits = data.load("digits")
    >>> with training.seeded(0):
    ...     model = models.VAE(digits.shape, 2, hidden=(8,))
    >>> stream = coding.compress(model, digits.test[:20])
    >>> bool((coding.decompress(model, stream) == digits.test[:20]).all())
    True
    """
    coder = _Coder(model)
    images = images_given(images, coder.shape)
    coder.check(images)
    stack, added, digest = Stack(_initial(2)), 2, hashlib.sha256()
    for part in images.split([*_groups(len(images), coder.pixels)]):
        size, symbols = len(part), coder.symbols(part)
        digest.update(little(symbols, "<u4"))
        posterior = coder.posterior(symbols)
        stack, z, added = _popped(stack, posterior, size * coder.latents, added)
        stack.push(symbols.reshape(-1), coder.mass(z))
        stack.push(z, coder.prior(size))
        if on_images:
            on_images(size)
    header = Header(MAGIC, VERSION, coder.levels, len(images), added, coder.hash, digest.digest()[:8], coder.shape)
    return header.sealed(little(stack.words, "<u4"))


def decompress(model: Any, data: bytes, on_images: Callable[[int], None] | None = None) -> Float[Tensor, "batch *shape"]:
    """The images of a stream that `compress` made with this model, (n, *shape) in float32, on the CPU.

    - `model`: the model that the images were compressed with.
    - `data`: the stream.
    - `on_images`: called with the number of images that each step has decoded.

    Raises `ValueError` for any stream that is not whole and this model's own, and where the networks do not compute on this
    machine what they computed where it was made: an image that is wrong is never returned.

    >>> from nbvae import coding, models
    >>> coding.decompress(models.VAE((1, 8, 8), 2, hidden=(8,)), b"")
    Traceback (most recent call last):
    ValueError: this is no stream of the kind NBVA: it is empty
    """
    coder = _Coder(model)
    header, content = Header.opened(data, MAGIC, VERSION)
    if header.model != coder.hash:
        raise ValueError("the stream was made with another model than this one, or with other weights")
    words = words_of(content) if len(content) % 4 == 0 else np.empty(0, np.uint32)
    if header.shape != coder.shape or header.levels != coder.levels or not header.count or len(words) < 2 or not words[-1]:
        raise ValueError(_CUT)
    stack, found = Stack(words), []
    for size in _groups_back(header.count, coder.pixels):
        z = stack.pop(size * coder.latents, coder.prior(size))
        symbols = stack.pop(size * coder.pixels, coder.mass(z))
        if len(stack) < 2 or symbols.max() >= coder.levels:
            raise ValueError(_CUT)
        symbols = symbols.reshape(size, coder.pixels)
        found.append(symbols.astype(np.uint8 if coder.levels <= 256 else np.uint32))
        stack.push(z, coder.posterior(symbols))
        if on_images:
            on_images(size)
    digest = hashlib.sha256()
    for each in found[::-1]:
        digest.update(little(each, "<u4"))
    left = stack.words
    if digest.digest()[:8] != header.images or len(left) != header.initial or (left != _initial(len(left))).any():
        raise ValueError(_CUT)
    return coder.values(np.concatenate(found[::-1])).unflatten(1, coder.shape)


def report(data: bytes) -> Report:
    """What a stream of `compress` is made of, read from its header.

    `data` is the stream. Raises `ValueError` for one that is not whole.

    >>> from nbvae import coding, data, models, training
    >>> digits = data.load("digits")
    >>> with training.seeded(0):
    ...     found = coding.report(coding.compress(models.VAE(digits.shape, 2, hidden=(8,)), digits.test[:20]))
    >>> found.count, found.header, found.size == found.header + found.initial + found.net
    (20, 54, True)
    """
    header, _ = Header.opened(data, MAGIC, VERSION)
    return Report(header.count, header.shape, header.levels, len(data), header.size, 4 * header.initial)


class _Coder:
    """A model as the coder sees it: whole numbers in, masses of whole numbers out."""

    def __init__(self, model: Any):
        self.model = frozen(model)
        self.hash = hash_of(self.model)
        prior = self.model.prior()
        self.prior_mean, self.prior_std = _normal(prior)
        self.latents = len(self.prior_mean)
        with torch.inference_mode():
            likelihood = self.model.likelihood(prior.mean.unsqueeze(0))
        self.shape = tuple(likelihood.event_shape)
        if len(self.shape) > RANKS:
            raise ValueError(f"images of at most {RANKS} dimensions can be coded, the model's have the shape {self.shape}")
        self.pixels = int(np.prod(self.shape))
        self.levels = _levels(likelihood)

    def check(self, images: Tensor) -> None:
        """Raise `ValueError` unless these images would come back as they are."""
        for part in images.split(_IMAGES):
            if callable(getattr(self.model, "check", None)):
                self.model.check(part)
            if not torch.equal(self.values(self.symbols(part)), part.flatten(1)):
                kind = "0 or 1" if self.levels == 2 else f"j/{self.levels - 1} as float32 has them"
                raise ValueError(f"images must have pixels that are {kind}: others would not come back as they were")

    def symbols(self, images: Tensor) -> Int[np.ndarray, "batch n"]:
        return (images.flatten(1).double() * (self.levels - 1)).nan_to_num().round().clamp(0, self.levels - 1).long().numpy()

    def values(self, symbols: Int[np.ndarray, "batch n"]) -> Float[Tensor, "batch n"]:
        return torch.from_numpy(symbols.astype(np.int64)).float() / (self.levels - 1)

    @torch.inference_mode()
    def posterior(self, symbols: Int[np.ndarray, "batch n"]) -> Intervals:
        mean, std = _normal(self.model.posterior(self.values(symbols).double().unflatten(1, self.shape)))
        return _grid(np.rint(mean / _MEAN) * _MEAN, np.exp(np.rint(np.log(std) / _LOG_STD) * _LOG_STD))

    def prior(self, size: int) -> Intervals:
        return _grid(np.tile(self.prior_mean, size), np.tile(self.prior_std, size))

    @torch.inference_mode()
    def mass(self, z: Int[np.ndarray, " latents"]) -> Tree:
        """The mass of every pixel of the images with these codes."""
        code = torch.from_numpy((z + 0.5 - _HALF) * _CELL).reshape(-1, self.latents)
        each: Any = self.model.likelihood(code).base_dist
        if isinstance(each, distributions.Bernoulli):
            return Odds(_finite(each.logits))
        location, scale = _finite(each.location), np.maximum(_finite(each.scale), _TINY)
        if each.kind == "logistic":
            return Intervals(location, scale * (3**0.5 / np.pi), -each.step / 2, each.step, self.levels, special.log_expit)
        return Intervals(location, scale, -each.step / 2, each.step, self.levels)


def _levels(likelihood: Any) -> int:
    """The number of values of a pixel; `ValueError` for a decoder that is no probability mass."""
    each = getattr(likelihood, "base_dist", None)
    if isinstance(each, distributions.Bernoulli):
        return 2
    if isinstance(each, likelihoods.OnLevels):
        return each.levels
    raise ValueError(
        "lossless coding needs a decoder that is a probability mass: likelihood='bernoulli', 'discretized_gaussian' or "
        "'discretized_logistic'; models.Discretized makes one of a gaussian"
    )


def _normal(law: Any) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Means and standard deviations of a diagonal Gaussian, in one row."""
    if not isinstance(getattr(law, "base_dist", None), distributions.Normal):
        raise ValueError("the posterior and the prior must be diagonal Gaussians, as those of models.VAE are")
    return _finite(law.mean), np.maximum(_finite(law.stddev), _TINY)


def _finite(values: Tensor) -> Float[np.ndarray, " n"]:
    if not values.isfinite().all():
        raise ValueError("the model returns nan or inf for these images: it has diverged")
    return values.reshape(-1).double().numpy()


def _grid(mean: Float[np.ndarray, " n"], std: Float[np.ndarray, " n"]) -> Intervals:
    return Intervals(mean, std, -_HALF * _CELL, _CELL, 2 * _HALF)


def _groups(count: int, pixels: int) -> Iterator[int]:
    """The numbers of images that are coded together, first to last.

    Their z are popped before any of them is pushed, so that a group takes its bits from the groups before it: a quarter of the
    images so far, at least one. Only the first groups need bits that no image has brought.
    """
    growing, full, rest = _plan(count, pixels)
    yield from growing
    yield from itertools.repeat(_most(pixels), full)
    yield from [rest] * (rest > 0)


def _groups_back(count: int, pixels: int) -> Iterator[int]:
    """`_groups`, last to first."""
    growing, full, rest = _plan(count, pixels)
    yield from [rest] * (rest > 0)
    yield from itertools.repeat(_most(pixels), full)
    yield from growing[::-1]


def _plan(count: int, pixels: int) -> tuple[list[int], int, int]:
    """The groups that grow; how many there are of full size; the images of the last."""
    growing, left, most = [], count, _most(pixels)
    while left and (size := max(1, sum(growing) // _SHARE)) < most:
        growing.append(min(size, left))
        left -= growing[-1]
    return growing, left // most, left % most


def _most(pixels: int) -> int:
    return max(1, min(_IMAGES, _PIXELS // pixels))


def _initial(count: int) -> np.ndarray:
    """The words at the bottom of the stack, the last of which is used first: the same for every stream, as good as random."""
    words = np.frombuffer(hashlib.shake_256(b"nbvae").digest(4 * count), "<u4")
    return words[::-1].astype(np.uint32)


def _popped(stack: Stack, tree: Tree, n: int, added: int) -> tuple[Stack, Int[np.ndarray, " n"], int]:
    """Pop n symbols; where the stack is too low, put below it as many more of the initial words as it takes, and no more."""
    start, reserve = stack.words, 0
    while True:
        after = Stack(np.concatenate([_initial(added + reserve)[:reserve], start]))
        symbols = after.pop(n, tree)
        lack = 2 - len(after)
        if lack <= 0 and (reserve == 0 or lack == 0):
            return after, symbols, added + reserve
        reserve = reserve + lack if lack < 0 else max(2 * reserve, 64)
