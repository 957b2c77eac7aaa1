"""Lower bounds on R(D) of data under squared error, from its dual problem."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nbvae import checks, results
from nbvae._randomness import seeded
from nbvae.limits import codebook
from nbvae.results import Estimate

_AT_ONCE = 1 << 22  # pairs of a draw and a reproduction at once
_LARGEST, _LEAST = 60.0, -80.0  # of exponents, in float32
_CLIMBERS = 64  # the best starts, which climb
_SHARES, _SLOPES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98), (0.0, 0.25, 0.5, 0.75, 1.0)  # of tapers
_LESS = (2.0, 3.0, 4.0)  # by how much the largest log g is below that of the draws: of C each is at most about this part
_SORTED = 1 << 20  # examples that quantiles are taken of, at most


@dataclass(frozen=True, eq=False)
class LowerBound(results.Quantities):
    """A straight line under R(D): R(D) ≥ nats − D/β, for every D.

    - `nats`: a bound on D/β + R of every code from below, an `Estimate` whose values are those of the draws; they have the
      bound as their mean.
    - `beta`: −dD/dR of the line, in squared error per nat.
    - `log_partition`: log C of the draws, nats: what the search for the largest mean took from the bound.
    - `distortion`: where the line is meant to be near R(D), the squared error of the codebook that it begins with on the same
      draws; `rate`: the line there, nats, not below 0; `rate_stderr`: its error.
    """

    nats: Estimate
    beta: float
    log_partition: float
    distortion: float
    rate: float
    rate_stderr: float

    def at(self, distortion: float) -> float:
        """What R(D) is at least at this squared error, nats.

        >>> LowerBound(Estimate(3.0, 0.1), 0.5, 0.0, 1.0, 1.0, 0.1).at(0.5)
        2.0
        """
        return max(0.0, self.nats.value - checks.not_negative("distortion", distortion) / self.beta)


class Taper(NamedTuple):
    """log g as a function of the codebook's nats t: t up to `knee`, beyond it at the slope `slope`, and at most `most`."""

    knee: float
    slope: float
    most: float

    def __call__(self, t: Tensor) -> Tensor:
        return (t.clamp(max=self.knee) + self.slope * (t - self.knee).clamp(min=0)).clamp(max=self.most)


def lower_bound(
    train: Float[Tensor, "batch *shape"],
    test: Float[Tensor, "batch *shape"],
    beta: float,
    points: int | Sequence[int] = (1, 10, 50),
    starts: int = 1000,
    climbs: int = 30,
    passes: int = 40,
    validation: Float[Tensor, "batch *shape"] | None = None,
    seed: int = 0,
) -> LowerBound:
    """A line below R(D) of the source of some data, under squared error (Csiszár 1974; Yang & Mandt 2022).

    For any function g > 0, and C the largest E g(x) exp(−‖x − y‖²/β) over all y, every code has

        D/β + R ≥ E log g(x) − log C ≥ E log g(x) − C/α − log α + 1,        for any α > 0,

    with equality at the optimum of both sides, where g is 1/E_y exp(−‖x − y‖²/β) over the best reproductions. Here g is that
    of a codebook as of `upper_bound`, fitted on `train`, and lower where x is improbable: beyond a knee log g grows more
    slowly, as tails that few draws are in would make C uncertain. The knee and α are chosen on `train` too.

    C is then the largest mean over the draws of `test`, which these do not know. The largest mean over draws is, on average, at
    least the largest expectation, and −C/α is linear in it: *so the bound is too low on average, never too high*, for any
    number of draws. How far depends on their number k: whatever g is, a bound on D/β + R is below log k, and near only where
    that is well below it. Of Gaussians a million draws are within .05 nats of 2 nats in 8 dimensions; in 16, where D/β alone is
    8 nats, no number of draws that can be had is near 4. What is not certain is that the search finds the largest mean: it
    begins at many draws and codes, and climbs from the best of them.

    - `train`: what g is fitted to; it says on which device.
    - `test`: the draws that C and the mean are taken over, two or more, independent of `train`.
    - `beta`: > 0, squared error per nat, twice the water level.
    - `points`, `passes`: of the codebook, as for `upper_bound`.
    - `starts`: from how many draws the search begins, >= 1; it also begins at the codes.
    - `climbs`: how many steps it climbs, >= 1.
    - `validation`: what the codebook is chosen on; by default a fifth of `train`.
    - `seed`: of the codebook, and of which draws are starts.

    Its error is the standard error over the draws at the y that was found, with α fixed.

    Raises `ValueError` for examples that do not fit one another, and for numbers that are not as above.

    >>> from nbvae import limits
    >>> x = torch.randn(9000, 1, generator=torch.Generator().manual_seed(0))  # R = 1/2 log 2/β for N(0, 1)
    >>> found = limits.lower_bound(x[:3000], x[3000:], beta=0.5)
    >>> 0.5 < found.at(0.25) < 0.70
    True
    """
    codebook.accept_examples(train, test=test, validation=validation)
    starts, climbs = checks.whole("starts", starts), checks.whole("climbs", climbs)
    of = codebook.DISTORTIONS["squared"]
    book = codebook.fitted(train, validation, beta, points, of, passes, 1.0, None, seed)
    place = train.new_zeros(()) if train.is_floating_point() else torch.zeros((), device=train.device)
    book = codebook.Book(book.codes.to(place), book.log_w.to(place), book.spread)
    with seeded(seed, place.device), torch.no_grad():
        x, known = test.to(place).flatten(1), train.to(place).flatten(1)
        t, mse = _nats(x, book, beta)
        own, _ = _nats(known, book, beta)
        some = torch.randperm(len(known), device=place.device)[: len(x)]
        taper, alpha = _tapered(known[some], own[some], book, beta, starts, climbs, len(x))
        log_g = taper(t)
        where, log_c = _largest(x, log_g, _begin(x, book, starts), beta, climbs)
        at = (log_g - _distances(where[None], x)[0] / beta).double()
        values = log_g.double() - (at - alpha).exp() - alpha + 1
    nats = Estimate.of(values.cpu())
    distortion = float(mse.mean())
    return LowerBound(
        nats=nats,
        beta=float(beta),
        log_partition=log_c,
        distortion=distortion,
        rate=max(0.0, nats.value - distortion / beta),
        rate_stderr=nats.stderr,
    )


def _nats(x: Tensor, book: codebook.Book, beta: float) -> tuple[Tensor, Tensor]:
    """D/β + R under the codebook, and D, of each example."""
    rate, distortion = codebook.measured(codebook.DISTORTIONS["squared"], x, book, beta)
    return (rate.values + distortion.values / beta).to(x), distortion.values


def _tapered(
    x: Tensor, t: Tensor, book: codebook.Book, beta: float, starts: int, climbs: int, draws: int
) -> tuple[Taper, float]:
    """The taper for so many draws that has the best bound on these examples, and log C there."""
    y = _begin(x, book, starts)
    tried = dict.fromkeys(
        Taper(float(knee), slope, math.log(draws) - less)
        for knee in t[:_SORTED].quantile(torch.tensor(_SHARES).to(t))
        for slope in _SLOPES
        for less in _LESS
    )
    log_g = torch.stack([taper(t) for taper in tried])
    shift = log_g.amax(1, keepdim=True)
    first = torch.zeros(len(tried), len(y), dtype=torch.float64, device=x.device)
    second = torch.zeros_like(first)
    for rows in _slices(len(x), len(y) + len(tried)):
        kernel = (-_distances(y, x[rows]) / beta).clamp(min=_LEAST / 2).exp()
        g = (log_g[:, rows] - shift).clamp(min=_LEAST / 2).exp()
        first += (g @ kernel.T).double() / len(x)
        second += (g.square() @ kernel.square().T).double() / len(x)
    log_c, where = first.log().max(1)
    spread = (second.gather(1, where[:, None])[:, 0] / (2 * log_c).exp() - 1).clamp(min=0) / len(x)
    bound = log_g.double().mean(1) - log_c - shift[:, 0] - spread.sqrt()  # other draws may have more, by about its error
    best = list(tried)[int(bound.argmax())]
    return best, _largest(x, best(t), y, beta, climbs)[1]


def _begin(x: Tensor, book: codebook.Book, starts: int) -> Tensor:
    return torch.cat([x[torch.randperm(len(x), device=x.device)[:starts]], book.codes])


def _largest(x: Tensor, log_g: Tensor, y: Tensor, beta: float, climbs: int) -> tuple[Tensor, float]:
    """Where the mean of g(x) exp(−‖x − y‖²/β) is largest, and its logarithm: mean shift from the best of the starts y."""
    shift = max(0.0, float(log_g.max()) - _LARGEST)
    best, where = -math.inf, y[0]
    for turn in range(climbs + 1):
        total = torch.zeros(len(y), dtype=torch.float64, device=x.device)
        moved = torch.zeros_like(y)
        for rows in _slices(len(x), len(y)):
            weight = (log_g[rows] - shift - _distances(y, x[rows]) / beta).clamp(min=_LEAST).exp()
            total += weight.sum(1, dtype=torch.float64)
            moved += weight @ x[rows]
        top = int(total.argmax())
        if float(total[top]) > best:
            best, where = float(total[top]), y[top]
        y = moved / total[:, None].to(moved)
        if turn == 0:
            y = y[total.topk(min(len(y), _CLIMBERS)).indices]
    return where, math.log(best / len(x)) + shift


def _distances(y: Tensor, x: Tensor) -> Tensor:
    return (torch.addmm(x.square().sum(1), y, x.T, alpha=-2) + y.square().sum(1)[:, None]).clamp(min=0)


def _slices(n: int, width: int) -> Iterator[slice]:
    step = max(1, _AT_ONCE // width)
    yield from (slice(first, first + step) for first in range(0, n, step))
