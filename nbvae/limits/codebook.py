"""Upper bounds on R(D) of data: a codebook that is fitted on some examples and measured on others."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nbvae import checks, results
from nbvae._measuring import check_examples
from nbvae._randomness import seeded
from nbvae._tensors import double
from nbvae.results import Estimate

_AT_ONCE = 1 << 22  # pairs of an example and a code at once
_EDGE = 1e-3  # how near codes of probabilities may come to 0 and 1
_LOOKS = 10  # how often a fit looks at the validation examples, at most
_LEAST = -80.0  # of an exponent beside the largest one: float32 has no smaller numbers that are quick
_FEW = 1.0  # examples' worth of the mean spread that is in the spread of each code; of a covariance, for each dimension
_FULL = 32  # the most dimensions in which covariances are tried unasked

Distortion = Callable[[Float[Tensor, "batch *shape"], Float[Tensor, "points *shape"]], Float[Tensor, "batch points"]]


class _Bilinear(NamedTuple):
    """A distortion d(x, y) = a(x) + b(y) + x · c(y), and the best code for a weighted mean of examples.

    `refuse` says what x must be, where it is not.
    """

    a: Callable[[Tensor], Tensor]
    b: Callable[[Tensor], Tensor]
    c: Callable[[Tensor], Tensor]
    best: Callable[[Tensor], Tensor]
    refuse: Callable[[Tensor], str | None]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (torch.addmm(self.b(y), x, self.c(y).T) + self.a(x)[:, None]).clamp(min=0)


def _clamped(y: Tensor) -> Tensor:
    return y.clamp(_EDGE, 1 - _EDGE)


DISTORTIONS = {
    "squared": _Bilinear(
        a=lambda x: x.square().sum(1),
        b=lambda y: y.square().sum(1),
        c=lambda y: -2 * y,
        best=lambda mean: mean,
        refuse=lambda x: None,
    ),
    "bernoulli": _Bilinear(
        a=lambda x: torch.zeros_like(x[:, 0]),
        b=lambda y: -(-_clamped(y)).log1p().sum(1),
        c=lambda y: -_clamped(y).logit(),
        best=_clamped,
        refuse=lambda x: None if ((x >= 0) & (x <= 1)).all() else "in [0, 1]",
    ),
    "hamming": _Bilinear(
        a=lambda x: x.sum(1),
        b=lambda y: y.sum(1),
        c=lambda y: -2 * y,
        best=lambda mean: (mean > 0.5).to(mean),
        refuse=lambda x: None if ((x == 0) | (x == 1)).all() else "0 or 1",
    ),
}


SPREADS = ("none", "round", "full")


@dataclass(frozen=True, eq=False)
class UpperBound(results.Quantities):
    """A codebook, and what it reaches on examples that it was not fitted to.

    - `rate`: E KL(q(y|x) ‖ w), nats; `distortion`: E d(x, y), in the unit of d; both with their standard errors.
    - `nats`: D/β + R, an `Estimate` whose values are those of the examples: what bounds are compared in. No code of the source
      is below R(D), and the expectation of this is above the least D/β + R.
    - `beta`: −dD/dR, in the unit of d per nat.
    - `codes`: (points, *shape); `weights`: their probabilities w, (points,); `spread`: the variance of each, (points,),
      or the covariances (points, n, n).
    """

    rate: float
    rate_stderr: float
    distortion: float
    distortion_stderr: float
    nats: Estimate
    beta: float
    codes: Float[Tensor, "points *shape"]
    weights: Float[Tensor, " points"]
    spread: Float[Tensor, "points ..."]


class Book(NamedTuple):
    """Codes (points, …), the logarithms of their probabilities, and the variance of each (points,) or covariance."""

    codes: Tensor
    log_w: Tensor
    spread: Tensor


def upper_bound(
    train: Float[Tensor, "batch *shape"],
    test: Float[Tensor, "batch *shape"],
    beta: float,
    points: int | Sequence[int] = (10, 100, 500),
    distortion: str | Distortion = "squared",
    passes: int = 40,
    step: float = 1.0,
    spread: str | None = None,
    validation: Float[Tensor, "batch *shape"] | None = None,
    seed: int = 0,
) -> UpperBound:
    """A point above R(D) of the source of some data: a codebook fitted on `train`, measured on `test` (Yang et al. 2023).

    For any codes y_j with probabilities w_j the test channel q(j|x) ∝ w_j exp(−d(x, y_j)/β) has

        D/β + R = −E log Σ_j w_j exp(−d(x, y_j)/β),        R = E KL(q(j|x) ‖ w) ≥ I(x; y),

    so that (R, D) is above R(D) of the source whatever the codes are; on average over examples that these do not know. Fitting
    lets the codes go down the Wasserstein gradient of this, y_j − η E[q(j|x)/w_j ∇_y d(x, y_j)], and multiplies w_j by
    E q(j|x)/w_j, Blahut and Arimoto's turn. With η for each distortion as a step of 1 has it, a code goes to the best answer
    to its share of the examples. On the examples that it was fitted to a codebook reaches D = 0 at log N nats: those measure
    nothing.

    A finite number of codes is loose where exp(R) is not far below it, and in the tails. Under squared error a code can be a
    whole Gaussian of reproductions, N(y_j, T_j), at no cost: its integral of exp(−‖x − y‖²/β) is known. T_j is fitted by the
    steps of expectation and maximisation for a mixture of Gaussians with the covariances T_j + β/2 I. Where all T_j are 0 the
    codes are points.

    - `train`: what codes are fitted to, which begin as some of them; it says on which device.
    - `test`: what the bound is measured on, two examples or more, independent of `train`.
    - `beta`: > 0, in the unit of d per nat. Squared error falls by β for a nat, twice the water level.
    - `points`: the number of codes, at most that of training examples; of several the best on `validation` is kept. Without
      spread they must be many: of a Gaussian in eight dimensions 2,000 are .09 nats short at 4 nats.
    - `distortion`: "squared", ‖x − y‖² summed over dimensions; "bernoulli", −log p(x|y) of pixels in [0, 1], nats, with y from
      .001 to .999; "hamming", the number of pixels in which 0s and 1s differ; or a function d(x, y) -> (batch, points) of
      examples (batch, *shape) and codes (points, *shape), whose gradient Adam follows.
    - `passes`: over the training examples, >= 1.
    - `step`: how far codes go, 1 for the best answer; for a function Adam's step.
    - `spread`: "none", codes are points; "round", Gaussians with T_j = τ_j² I; "full", with any covariance. Both need squared
      error. By default, under squared error, "round" and, in 32 dimensions or fewer, also "full" for so few codes that each has
      two examples for each dimension; the best on `validation` is kept.
    - `validation`: of the codebooks on the way the one that is best on these is kept; by default they are a fifth of `train`.
    - `seed`: which examples the codes begin as, and the order of batches.

    Raises `ValueError` for examples that do not fit one another or the distortion.

    >>> from nbvae import limits
    >>> x = torch.randn(6000, 1, generator=torch.Generator().manual_seed(0))  # R = 1/2 log 2/β for N(0, 1)
    >>> found = limits.upper_bound(x[:3000], x[3000:], beta=0.5, points=20)
    >>> bool(abs(found.rate - 0.693) < 0.05), found.codes.shape
    (True, torch.Size([20, 1]))
    """
    of = _chosen(distortion)
    accept_examples(train, test=test, validation=validation)
    for name, x in (("train", train), ("test", test), ("validation", validation)):
        if x is not None and isinstance(of, _Bilinear) and (told := of.refuse(x)):
            found = f"{float(x.min()):g} to {float(x.max()):g}"
            raise ValueError(f"{name} must be {told} for distortion={distortion!r}, got values from {found}")
    if spread is not None:
        checks.choice("spread", spread, SPREADS)
    if spread in ("round", "full") and distortion != "squared":
        raise ValueError(f"spread={spread!r} needs distortion='squared': of others the integral over a Gaussian is not known")
    book = fitted(train, validation, beta, points, of, passes, step, spread, seed)
    x = _as(test, train, isinstance(of, _Bilinear))
    rate, found = measured(of, x, book, beta)
    return UpperBound(
        rate=rate.value,
        rate_stderr=rate.stderr,
        distortion=found.value,
        distortion_stderr=found.stderr,
        nats=Estimate.of(found.values / beta + rate.values),
        beta=float(beta),
        codes=book.codes.reshape(-1, *train.shape[1:]),
        weights=book.log_w.exp(),
        spread=book.spread,
    )


def accept_examples(train: Tensor, **others: Tensor | None) -> None:
    """Refuse what are no examples (N, *shape), another shape than that of `train`, and fewer than two in `test`."""
    for name, x in {"train": train, **others}.items():
        if x is not None:
            check_examples(x, name, least=1 + (name == "test"))
            if x.dim() < 2 or x.shape[1:] != train.shape[1:]:
                raise ValueError(f"{name} must be examples (N, *shape) like those of train, got the shape {tuple(x.shape)}")


def fitted(
    train: Tensor,
    validation: Tensor | None,
    beta: float,
    points: int | Sequence[int],
    of: _Bilinear | Distortion,
    passes: int,
    step: float,
    spread: str | None,
    seed: int,
) -> Book:
    """The codebook that is best on the validation examples, or on a fifth of the training examples that is kept out."""
    beta, step, seed = checks.positive("beta", beta), checks.positive("step", step), checks.seed("seed", seed)
    counts = checks.wholes("points", points if isinstance(points, Sequence) else [checks.whole("points", points)])
    passes, flat = checks.whole("passes", passes), isinstance(of, _Bilinear)
    x = _as(train, train, flat)
    with seeded(seed, train.device), torch.no_grad():
        if validation is None:
            order = torch.randperm(len(x), device=x.device)
            x, others = x[order[len(x) // 5 :]], x[order[: max(1, len(x) // 5)]]
        else:
            others = _as(validation, train, flat)
        if not counts or max(counts) > len(x):
            raise ValueError(
                f"points must be at most the {len(x)} examples that codes can begin as, got {checks.short(points)}"
            )
        kinds = [spread] if spread else ["round", "full"] if of is DISTORTIONS["squared"] else ["none"]
        few = len(x) / 2 / math.prod(x.shape[1:]) if math.prod(x.shape[1:]) <= _FULL else 0  # codes with covariances
        found = [
            _fit(of, x, others, count, beta, passes, step, kind)
            for kind in kinds
            for count in counts
            if kind != "full" or spread or count <= few
        ]
    return min(found, key=lambda each: each[0])[1]


def _chosen(distortion: str | Distortion) -> _Bilinear | Distortion:
    if callable(distortion):
        return distortion
    return DISTORTIONS[str(checks.choice("distortion", distortion, DISTORTIONS))]


def _as(x: Tensor, like: Tensor, flat: bool) -> Tensor:
    x = x.to(like.device, like.dtype if like.is_floating_point() else torch.float32)
    return x.flatten(1) if flat else x


def _fit(
    of: _Bilinear | Distortion, x: Tensor, validation: Tensor, count: int, beta: float, passes: int, step: float, spread: str
) -> tuple[float, Book]:
    """D/β + R on the validation examples of the best codebook on the way, and this one."""
    codes = x[torch.randperm(len(x), device=x.device)[:count]].clone()
    log_w = torch.full((count,), -math.log(count), dtype=x.dtype, device=x.device)
    start = max(0.3 * float(x.var(0).mean()) - beta / 2, 0.0) if spread != "none" and len(x) > 1 else 0.0
    book = Book(codes, log_w, torch.full_like(log_w, start))
    if spread == "full":
        x = double(x)
        eye = torch.eye(x.shape[1], device=x.device, dtype=torch.float64)
        book = Book(double(codes), double(log_w), (start * eye).repeat(count, 1, 1))
    adam = None if isinstance(of, _Bilinear) else torch.optim.Adam([codes.requires_grad_()], lr=step)
    best, every = (math.inf, book), max(1, passes // _LOOKS)
    for turn in range(1, passes + 1):
        if isinstance(of, _Bilinear):
            book = _turn(of, x, book, beta, step, spread)
        else:
            assert adam is not None
            book = book._replace(log_w=_descend(of, x, book, beta, adam))
        if turn % every == 0 or turn == passes:
            now = book._replace(codes=book.codes.detach().clone())
            rate, distortion = measured(of, validation, now, beta)
            best = min(best, (rate.value + distortion.value / beta, now), key=lambda each: each[0])
    return best


def _terms(of: _Bilinear | Distortion, x: Tensor, book: Book, beta: float) -> tuple[Tensor, Tensor]:
    """log w_j and the logarithm of the mean of exp(−d/β) over the reproductions of code j, and E d there; (batch, points)."""
    n, s = math.prod(x.shape[1:]), beta / 2
    if book.spread.dim() == 1:  # points, and Gaussians that are round
        d, nearer = _table(of, x, book.codes), s / (s + book.spread)
        terms = book.log_w + 0.5 * n * nearer.log() - nearer * d / beta
        return terms, nearer.square() * d + n * nearer * book.spread
    root = torch.linalg.cholesky(_wider(book, s))
    inverse = torch.cholesky_inverse(root)
    whiten = torch.linalg.solve_triangular(root, torch.eye(n, dtype=root.dtype, device=root.device), upper=False)
    scale = root.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * n * math.log(s)
    terms = book.log_w - scale - 0.5 * _squares(whiten, x, book.codes)
    rest = s * (n - s * inverse.diagonal(dim1=-2, dim2=-1).sum(-1))
    return terms, s**2 * _squares(inverse, x, book.codes) + rest


def _squares(maps: Tensor, x: Tensor, codes: Tensor) -> Tensor:
    """‖M_j (x − y_j)‖² for each x and code, (batch, points)."""
    moved = x @ maps.flatten(0, 1).T - (maps @ codes[..., None]).flatten()
    return moved.square().unflatten(1, codes.shape).sum(2)


def _wider(book: Book, s: float) -> Tensor:
    return book.spread + s * torch.eye(book.spread.shape[-1], dtype=book.spread.dtype, device=book.spread.device)


def _turn(of: _Bilinear, x: Tensor, book: Book, beta: float, step: float, spread: str) -> Book:
    """One step of all codes and weights, on all examples."""
    codes, n, full = book.codes, x.shape[1], spread == "full"
    count, total, squares = torch.zeros_like(book.log_w), torch.zeros_like(codes), torch.zeros_like(book.spread)
    for part in _parts(x, book):
        terms, _ = _terms(of, part, book, beta)
        q = (terms - terms.amax(1, keepdim=True)).clamp(min=_LEAST).softmax(1)
        count += q.sum(0)
        total += q.T @ part
        if full:
            squares += (q.T @ (part[:, :, None] * part[:, None]).flatten(1)).unflatten(1, (n, n))
        elif spread == "round":
            squares += (q * of(part, codes)).sum(0)
    mean = total / count[:, None]
    best = of.best(mean)
    moved = of.best(codes + step * (best - codes)) if step != 1 else best
    wide = book.spread  # about the new centres; each has a little of what is common to all
    if full:
        squares = squares - count[:, None, None] * mean[:, :, None] * mean[:, None]
        shared = (squares + n * _FEW * squares.sum(0) / len(x)) / (count + n * _FEW)[:, None, None]
        values, axes = torch.linalg.eigh(shared)
        wide = (axes * (values - beta / 2).clamp(min=0)[:, None]) @ axes.mT
    elif spread == "round":
        squares = (squares - count * (mean - codes).square().sum(1)).clamp(min=0)
        wide = ((squares + _FEW * squares.sum() / len(x)) / (count + _FEW) / n - beta / 2).clamp(min=0)
    return Book(moved, (count / count.sum()).log(), wide)


def _descend(of: Distortion, x: Tensor, book: Book, beta: float, adam: torch.optim.Optimizer) -> Tensor:
    """One pass of a distortion that is a function: a step of Adam for each batch, and then the weights' turn."""
    count = torch.zeros_like(book.log_w)
    for part in _parts(x[torch.randperm(len(x), device=x.device)], book, most=200):
        with torch.enable_grad():
            terms = book.log_w - _table(of, part, book.codes) / beta
            if not terms.requires_grad:
                raise ValueError("distortion(x, y) must have a gradient in y")
            loss = -terms.logsumexp(1).mean() * len(book.codes)
        adam.zero_grad()
        loss.backward(inputs=[book.codes])
        adam.step()
        count += terms.detach().softmax(1).sum(0)
    return (count.clamp(min=1e-30) / len(x)).log().log_softmax(0)


def measured(of: _Bilinear | Distortion, x: Tensor, book: Book, beta: float) -> tuple[Estimate, Estimate]:
    """Rate and distortion of each example, in float64."""
    book = Book(*map(double, book))
    rates, distortions = [], []
    for part in _parts(double(x), book):
        terms, d = _terms(of, part, book, beta)
        found = (terms.softmax(1) * d).sum(1)
        rates.append(-terms.logsumexp(1) - found / beta)
        distortions.append(found)
    return Estimate.of(torch.cat(rates).cpu()), Estimate.of(torch.cat(distortions).cpu())


def _table(of: _Bilinear | Distortion, x: Tensor, codes: Tensor) -> Tensor:
    d = of(x, codes)
    shape = (len(x), len(codes))
    if not isinstance(of, _Bilinear) and not (isinstance(d, Tensor) and d.shape == shape and d.isfinite().all()):
        raise ValueError(f"distortion(x, y) must give finite numbers {shape}, got {checks.short(d)}")
    return d


def _parts(x: Tensor, book: Book, most: int = 1 << 30) -> Iterator[Tensor]:
    each = len(book.codes) * (2 * book.spread.shape[-1] if book.spread.dim() == 3 else 1)
    yield from x.split(min(most, max(1, _AT_ONCE // each)))
