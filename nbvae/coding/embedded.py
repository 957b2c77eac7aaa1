"""Embedded streams from a ladder of codes: any prefix decodes, the longer the finer. Lossy, by relative entropy coding.

The code of each rung is a draw of q(z'|z, x) that is told to one who knows p(z'|z), the density that the ladder has learned, in
about KL(q ‖ p) nats: both list the same draws of p, and the sender tells the number of one that is, over lists, a draw of q. It
is the first of the list's arrivals T₁ < T₂ < … (a Poisson process) at the smallest Tᵢ p(zᵢ)/q(zᵢ), the Poisson functional
representation of Li & El Gamal (2018): log₂ of its number is at most KL + 1 or so, in bits, on average, and telling a number of
unknown size takes about log₂(KL + 1) + 4 more. So this overhead is paid for each block, and each block is a search: the list is
as long as it takes for some of its draws to look like q's, a multiple of E_q[q/p], which is more than 2^KL. Images are coded in
groups, no larger than can be searched.

Bits-back has no such overhead, but its bits come back only once x is known: it cannot send the coarse without the fine.
"""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import special
from torch import Tensor, distributions

from nbvae import checks
from nbvae.coding._bits import Intervals, Stack
from nbvae.coding._stream import frozen, hash_of, images_given, little, words_of
from nbvae.models.vae import normal

MAGIC, VERSION = b"NBVE", 1
_FIXED, _RUNG, _CHECK = struct.Struct("<4sBBBI8s"), struct.Struct("<IBBB4s"), 4
_CHUNK = 1024  # candidates that are drawn at once
_DRAWS = 512  # of q, which tell how long to search
_LONGEST = 24  # log₂ of the most candidates
_KEPT = 1e-6  # weights of a mixture below it are none
_GROUP = 64
_PASS = 128
_PART = 1 / 8  # unit in which the size of numbers is told


@dataclass(frozen=True)
class Rung:
    """What one rung of an embedded stream takes.

    - `nats`: KL(q ‖ p) of all images, the ideal; `size`: bytes.
    - `blocks`: the number of blocks, each of the codes of `group` images.
    - `candidates`: how many were looked at, over all blocks; `short`: for how many blocks they were fewer than asked for.

    >>> Rung(nats=69.3147, size=20, blocks=10, group=2, candidates=10_000, short=0).overhead.__round__(3)
    6.0
    """

    nats: float
    size: int
    blocks: int
    group: int
    candidates: int
    short: int

    @property
    def overhead(self) -> float:
        """Bits more than the ideal, for each block."""
        return (8 * self.size - self.nats / float(np.log(2))) / self.blocks


@dataclass(frozen=True)
class Embedding:
    """An embedded stream, and what the sender knows of it.

    - `data`: the stream; `header`: bytes of it before the first rung.
    - `rungs`: what each takes, from coarse to fine.
    - `codes`: the codes (n, k) of each, which the receiver finds too.

    >>> rungs = (Rung(10.0, 3, 5, 2, 5000, 0), Rung(12.0, 4, 5, 2, 5000, 0))
    >>> Embedding(b"head" + b"one" + b"more", 4, rungs, ()).prefix(1)
    b'headone'
    """

    data: bytes = field(repr=False)
    header: int
    rungs: tuple[Rung, ...]
    codes: tuple[Float[Tensor, "batch k"], ...] = field(repr=False)

    def prefix(self, rungs: int) -> bytes:
        """The stream up to and with so many rungs, at least one."""
        rungs = checks.whole("rungs", rungs)
        return self.data[: self.header + sum(rung.size for rung in self.rungs[:rungs])]


class Embedded:
    """The embedded code of a ladder.

    - `chain`: a `samplers.Chain`: models from coarse to fine, densities of each code given the one before, and the coupling by
      which the codes of an image are drawn together.
    - `bits`: log₂ of how many candidates may be looked at for a block: images share one as far as this allows.
    - `spare`: how many times E_q[q/p] candidates are looked at.
    - `seed`: of the list of candidates, < 2³²; sender and receiver must have the same.

    `encode` makes a stream, `decode` images of any prefix with at least one whole rung. With candidates without end the code
    that is chosen has the law q exactly; with so many its density is q's to about a share 1/`spare`, and wider. Blocks of a
    single image for which 2^bits are too few get no more: `Rung.short` counts them. Raises `ValueError` for what is no chain.

    >>> from nbvae import coding, data, models, samplers
    >>> digits = data.load("digits")
    >>> many = models.MultiBetaVAE(digits.shape, 2, hidden=(8,))
    >>> chain = samplers.Chain(many, digits.train, betas=[1.0, 10.0], n_components=1, coupling="channel")
    >>> embedded = coding.Embedded(chain, bits=10)
    >>> found = embedded.encode(digits.test[:10])
    >>> [embedded.decode(found.prefix(rungs)).shape for rungs in (1, 2)]
    [torch.Size([10, 1, 8, 8]), torch.Size([10, 1, 8, 8])]
    """

    def __init__(self, chain: Any, bits: float = 16.0, spare: float = 16.0, seed: int = 0):
        if not all(hasattr(chain, name) for name in ("views", "steps", "couplings", "given")):
            raise ValueError(f"an embedded code needs a samplers.Chain, got {checks.short(chain)}")
        self.chain, self.bits = chain, checks.between("bits", bits, 1, _LONGEST)
        self.spare, self.seed = checks.between("spare", spare, 1, 2**_LONGEST), checks.seed("seed", seed, bits=32)
        self.views = [frozen(view) for view in chain.views]
        found = hashlib.sha256(str(self.seed).encode())
        for view in self.views:
            found.update(hash_of(view))
        for step in chain.steps:
            for _, value in sorted((name, each) for name, each in vars(step).items() if isinstance(each, Tensor)):
                found.update(little(value.double().numpy(), "<f8"))
        self.hash = found.digest()[:8]
        with torch.inference_mode():
            self.shape = tuple(self.views[0].likelihood(self.views[0].prior().mean.unsqueeze(0)).event_shape)

    @torch.inference_mode()
    def encode(self, images: Float[Tensor, "batch *shape"], on_images: Callable[[int], None] | None = None) -> Embedding:
        """The stream of these images, and what it is made of.

        - `images`: (n, *shape), n >= 1, which the models' encoders take.
        - `on_images`: called with the number of images whose code of one rung was found: n times for each rung in all.

        Raises `ValueError` for images of another shape, or not finite.
        """
        x = images_given(images, self.shape)
        if not x.isfinite().all():
            raise ValueError("images must be finite, they hold nan or inf")
        posteriors = [_posterior(view, x) for view in self.views]
        rungs, codes, table, contents = [], [], [], []
        for t, own in enumerate(posteriors):
            target: Any = normal(*own)
            if t:
                target = self.chain.couplings[t - 1].given(posteriors[t - 1], own, codes[-1])
            search = _Search(target, self._proposal(t, codes, len(x)), self.seed, t)
            left = self.bits - np.log2(self.spare)
            group = int(np.clip(left / max(search.needed.mean(), 1e-9), 1, _GROUP))
            numbers, looked, short = [], 0, 0
            for block, rows in enumerate(_blocks(len(x), group)):
                wanted = self.spare * 2 ** min(float(search.needed[rows].sum()), 2.0 * _LONGEST)
                number, candidates, ended = search.number(block, rows, int(min(wanted, 2 ** (self.bits + 1))))
                numbers.append(number)
                looked += candidates
                short += not ended and wanted > candidates
                if on_images:
                    on_images(len(rows))
            content, size = _packed(np.array(numbers))
            codes.append(search.proposal.codes(numbers, group, self.seed, t))
            contents.append(content)
            table.append(_RUNG.pack(len(content), group, *size, _check(content, codes[-1])))
            nats = float(search.bits.sum() * np.log(2))
            rungs.append(Rung(nats, len(content), len(numbers), group, looked, short))
        head = _FIXED.pack(MAGIC, VERSION, len(self.shape), len(rungs), len(x), self.hash)
        head += struct.pack(f"<{len(self.shape)}I", *self.shape) + b"".join(table)
        head += hashlib.sha256(head).digest()[:_CHECK]
        return Embedding(head + b"".join(contents), len(head), tuple(rungs), tuple(codes))

    @torch.inference_mode()
    def codes(self, data: bytes) -> list[Float[Tensor, "batch k"]]:
        """The codes (n, k) of every rung that a prefix of a stream has whole, from coarse to fine.

        `data` is the prefix. Raises `ValueError` where it has no whole rung, is altered, or is of another ladder.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise ValueError(f"a stream is bytes, got {type(data).__name__}")
        data = bytes(data)
        if not data.startswith(MAGIC):
            raise ValueError(f"this is no embedded stream: it {'is empty' if not data else 'begins with another mark'}")
        if len(data) < _FIXED.size or data[len(MAGIC)] != VERSION:
            raise ValueError(f"the stream is of another version than {VERSION}, or cut")
        _, _, rank, many, count, known = _FIXED.unpack_from(data)
        table = _FIXED.size + 4 * rank
        start = table + many * _RUNG.size + _CHECK
        head = data[: start - _CHECK]
        if len(data) < start or hashlib.sha256(head).digest()[:_CHECK] != data[start - _CHECK : start]:
            raise ValueError("the stream is cut or altered: its header is not whole")
        shape = struct.unpack_from(f"<{rank}I", data, _FIXED.size)
        if known != self.hash or shape != self.shape or many != len(self.views) or not count:
            raise ValueError("the stream was made with another ladder than this one, or with another seed")
        codes: list[Tensor] = []
        for t in range(many):
            size, group, mean, std, check = _RUNG.unpack_from(data, table + t * _RUNG.size)
            content = data[start : start + size]
            if len(content) < size:
                break
            numbers = _unpacked(content, -(-count // max(1, group)), mean, std)
            found = self._proposal(t, codes, count).codes(numbers, group, self.seed, t)
            if _check(content, found) != check:
                raise ValueError("the stream is altered, or this machine computes otherwise: its codes are not what was sent")
            codes.append(found)
            start += size
        else:
            if len(data) > start:
                raise ValueError("the stream is altered: it goes on after its last rung")
        if not codes:
            raise ValueError("the stream is cut before the end of its first rung")
        return codes

    @torch.inference_mode()
    def decode(self, data: bytes) -> Float[Tensor, "batch *shape"]:
        """Images of a prefix of a stream: decoder means (n, *shape) at the finest rung that it has whole, float32.

        `data` is the prefix. Raises `ValueError` where it has no whole rung, is altered, or is of another ladder.
        """
        codes = self.codes(data)
        return self.images(codes[-1], len(codes) - 1)

    @torch.inference_mode()
    def images(self, codes: Float[Tensor, "batch k"], rung: int) -> Float[Tensor, "batch *shape"]:
        """Decoder means (n, *shape), float32, of the `codes` (n, k) of one `rung`, counted from 0."""
        return torch.cat([self.views[rung].likelihood(part).mean for part in codes.split(_PASS)]).float()

    def _proposal(self, t: int, codes: list[Tensor], count: int) -> "_Proposal":
        """p(z) of the coarsest code, p(z'|z) of the others, for each image."""
        if t:
            law: Any = self.chain.given(t - 1, codes[-1])
            parts = law.component_distribution
            return _Proposal(law.mixture_distribution.probs.numpy(), parts.mean.numpy(), parts.scale_tril[0].numpy())
        prior = self.views[0].prior()
        mean = prior.mean.double().expand(count, 1, -1).numpy()
        return _Proposal(np.ones((count, 1)), mean, np.diag(prior.stddev.double().numpy())[None])


class _Proposal:
    """A mixture of Gaussians for each image: weights (n, C), means (n, C, k), roots of covariances (C, k, k)."""

    def __init__(self, weight: Float[np.ndarray, "n c"], mean: Float[np.ndarray, "n c k"], root: Float[np.ndarray, "c k k"]):
        weight = np.where(weight < _KEPT, 0.0, weight)
        self.weight, self.mean, self.root = weight / weight.sum(1, keepdims=True), mean, root
        self.edges = self.weight.cumsum(1)
        self.inverse = np.linalg.inv(root)
        self.log_det = np.log(np.diagonal(root, axis1=1, axis2=2)).sum(1)

    def __len__(self) -> int:
        return len(self.mean)

    def draw(self, row: int, uniform: Float[np.ndarray, " m"], noise: Float[np.ndarray, "m k"]) -> Float[np.ndarray, "m k"]:
        """Draws for one image."""
        kinds = np.minimum(np.searchsorted(self.edges[row], uniform, side="right"), np.flatnonzero(self.weight[row])[-1])
        found = np.empty_like(noise)
        for kind in np.unique(kinds):
            mine = kinds == kind
            found[mine] = self.mean[row, kind] + noise[mine] @ self.root[kind].T
        return found

    def log_prob(self, row: int, z: Float[np.ndarray, "m k"]) -> Float[np.ndarray, " m"]:
        """Log-densities for one image, but for the factor (2π)^(−k/2)."""
        total = np.full(len(z), -np.inf)
        for kind in np.flatnonzero(self.weight[row]):
            white = (z - self.mean[row, kind]) @ self.inverse[kind].T
            own = np.log(self.weight[row, kind]) - self.log_det[kind] - 0.5 * np.square(white).sum(1)
            total = np.logaddexp(total, own)
        return total

    def codes(self, numbers: Any, group: int, seed: int, t: int) -> Float[Tensor, "n k"]:
        """The codes that these numbers of candidates, from 0, stand for."""
        found = np.empty((len(self), self.mean.shape[2]))
        for block, rows in enumerate(_blocks(len(self), group)):
            chunk, place = divmod(int(numbers[block]), _CHUNK)
            _, uniform, noise = _listed(seed, t, block, chunk, len(rows), found.shape[1])
            for i, row in enumerate(rows):
                found[row] = self.draw(row, uniform[place : place + 1, i], noise[place : place + 1, i])[0]
        return torch.from_numpy(found)


class _Search:
    """The numbers of candidates that are draws of the target, one block of images at a time.

    From draws, for each image: `bits`, KL(q ‖ p) of target and proposal, and `needed`, log₂ E_q[q/p].
    """

    def __init__(self, target: distributions.Distribution, proposal: _Proposal, seed: int, t: int):
        law: Any = target
        n, k = law.mean.shape
        root = law.scale_tril if hasattr(law, "scale_tril") else torch.diag_embed(law.stddev)
        self.mean, self.root = law.mean.double().cpu().numpy(), root.double().cpu().numpy()
        self.inverse = np.linalg.inv(self.root)
        self.log_det = np.log(np.diagonal(self.root, axis1=1, axis2=2)).sum(1)
        self.proposal, self.seed, self.t = proposal, seed, t
        source = np.random.default_rng([seed, t])
        draws = (self.mean[row] + source.standard_normal((_DRAWS, k)) @ self.root[row].T for row in range(n))
        self.ratios = np.array([self.log_ratio(row, each) for row, each in enumerate(draws)])  # (n, draws)
        self.bits = np.maximum(self.ratios.mean(1), 0) / np.log(2)
        self.needed = np.maximum(special.logsumexp(self.ratios, axis=1) - np.log(_DRAWS), 0) / np.log(2)

    def log_ratio(self, row: int, z: Float[np.ndarray, "m k"]) -> Float[np.ndarray, " m"]:
        """log q − log p."""
        white = (z - self.mean[row]) @ self.inverse[row].T
        return -self.log_det[row] - 0.5 * np.square(white).sum(1) - self.proposal.log_prob(row, z)

    def number(self, block: int, rows: Int[np.ndarray, " g"], most: int) -> tuple[int, int, bool]:
        """The number of the chosen candidate, from 0; how many were looked at, about `most` at most; whether that was all.

        It was all if no later arrival could be chosen whose ratio of densities is at most the largest of the draws.
        """
        largest = self.ratios[rows].sum(0).max()
        best, chosen, time, chunk, ended = np.inf, 0, 0.0, 0, False
        while not ended and chunk * _CHUNK < most:
            wait, uniform, noise = _listed(self.seed, self.t, block, chunk, len(rows), self.mean.shape[1])
            arrivals = time + np.cumsum(wait)
            score = np.log(arrivals)
            for i, row in enumerate(rows):
                score -= self.log_ratio(row, self.proposal.draw(row, uniform[:, i], noise[:, i]))
            place = int(score.argmin())
            if score[place] < best:
                best, chosen = float(score[place]), chunk * _CHUNK + place
            time, chunk = arrivals[-1], chunk + 1
            ended = bool(np.log(time) - largest > best)
        return chosen, chunk * _CHUNK, ended


def _listed(seed: int, t: int, block: int, chunk: int, group: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Waiting times, uniform and normal noise of one chunk of a block's candidates: from a counter, so in any order."""
    source = np.random.Generator(np.random.Philox(key=[seed << 32 | t, block], counter=[0, chunk, 0, 0]))
    wait = source.standard_exponential(_CHUNK)
    return wait, source.random((_CHUNK, group)), source.standard_normal((_CHUNK, group, k))


def _posterior(view: Any, x: Tensor) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    laws = [view.posterior(part.double()) for part in x.split(_PASS)]
    return torch.cat([law.mean for law in laws]), torch.cat([law.stddev for law in laws])


def _blocks(n: int, group: int) -> list[Int[np.ndarray, " g"]]:
    return [np.arange(start, min(start + group, n)) for start in range(0, n, group)]


def _packed(numbers: Int[np.ndarray, " blocks"]) -> tuple[bytes, tuple[int, int]]:
    """Numbers from 0 as bytes: of each number plus one the place of its highest bit, under a Gaussian, and its other bits."""
    places = np.array([int(number + 1).bit_length() - 1 for number in numbers])
    size = int(np.clip(round(places.mean() / _PART), 0, 255)), int(np.clip(round(places.std() / _PART), 2, 255))
    rest = [(int(number) + 1) >> i & 1 for number, place in zip(numbers, places, strict=True) for i in range(place)]
    stack = Stack()
    stack.push_bits(np.array(rest, dtype=np.int64), np.zeros(len(rest)))
    stack.push(places, _places(len(places), *size))
    return little(stack.words, "<u4").rstrip(b"\0"), size


def _unpacked(content: bytes, blocks: int, mean: int, std: int) -> list[int]:
    words = words_of(content + bytes(-len(content) % 4))
    if (len(words) and not words[-1]) or not std or blocks > 2 * _GROUP * (8 * len(content) + 64):
        raise ValueError("the stream is altered: one of its rungs is no list of numbers")
    stack = Stack(words)
    places = stack.pop(blocks, _places(blocks, mean, std))
    if places.max(initial=0) > _LONGEST:
        raise ValueError("the stream is altered: one of its rungs is no list of numbers")
    rest = stack.pop_bits(np.zeros(int(places.sum())))
    starts = np.concatenate([[0], np.cumsum(places)])
    found = []
    for start, place in zip(starts[:-1], places, strict=True):
        low = sum(int(bit) << i for i, bit in enumerate(rest[start : start + place]))
        found.append((1 << int(place) | low) - 1)
    return found


def _places(blocks: int, mean: int, std: int) -> Intervals:
    return Intervals(np.full(blocks, mean * _PART), np.full(blocks, std * _PART), -0.5, 1.0, 32)


def _check(content: bytes, codes: Tensor) -> bytes:
    """A hash of what was sent and of the codes that it stands for, to the sixteenth binary digit."""
    return hashlib.sha256(content + little(np.rint(codes.numpy() * 65536), "<i8")).digest()[:4]
