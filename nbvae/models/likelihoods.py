"""The decoder's distribution p(x|z): from the decoder network's output to a `torch.distributions` object over x.

Each likelihood is a module called with the output (*batch, n_outputs); it returns a distribution with event shape `shape`, so
that `log_prob` is in nats, summed over the n dimensions of each example. `check(x)` raises `ValueError` for x outside its
support. The scale σ of the Gaussian and of the discretised ones, in the units of x, has a mode:

| `sigma` | σ is | outputs |
|---|---|---|
| a number > 0 | that number ("fixed") | n |
| "global" | one learned parameter | n |
| "optimal" | √(MSE/n) of each batch in training, of the training set after it (Rybkin et al. 2021); Gaussian only | n |
| "z" | σ(z), one number for each z: its log σ² is the decoder's last output | n + 1 |
| "z_diag" | σ_d(z), one for each z and dimension: their log σ² are the decoder's last n outputs | 2n |

Learned ones start at σ = 1, in training at σ² = MSE/n of the untrained model. A σ that is not given is at least `FLOOR`: data
with dimensions that can be reproduced exactly would drive it to zero and the density to infinity. Above the floor nothing is
changed, and a σ on it is free to rise again. "optimal" needs batches of many values: of a single example it would be the
per-example σ of `objectives.LogMSE`. "global" moves by ten times a weight's step, for Adam moves all weights alike and a
network's output is moved by many: under plain gradient descent that is a hundredfold step.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, distributions, nn

from nbvae import checks

SIGMAS = ("global", "optimal", "z", "z_diag")
FLOOR = 1e-3
_PACE = 10.0


class Bernoulli(nn.Module):
    """Independent Bernoulli dimensions, whose logits are the network's output. A probability mass on {0, 1}ⁿ only.

    `shape` is the shape of one example. Called with the output (*batch, n), it returns the distribution of x (*batch, *shape).

    >>> Bernoulli((2, 3))(torch.zeros(5, 6)).log_prob(torch.ones(5, 2, 3))[0].div(math.log(2)).item()  # six times log ½
    -6.0
    """

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.shape = tuple(shape)
        self.n_outputs = math.prod(self.shape)

    def forward(self, output: Float[Tensor, "*batch n"]) -> distributions.Independent:
        return _independent(distributions.Bernoulli(logits=output.unflatten(-1, self.shape), validate_args=False), self.shape)

    def extra_repr(self) -> str:
        return f"shape={self.shape}"

    def check(self, x: Shaped[Tensor, "batch *shape"]) -> None:
        """Raise `ValueError` unless every pixel is 0 or 1: on grey pixels this "likelihood" has no normaliser."""
        if not ((x == 0) | (x == 1)).all():
            raise ValueError(
                "a bernoulli likelihood needs pixels that are 0 or 1: load the data with binarize='threshold', 'static' "
                "or 'dynamic', or use likelihood='gaussian'"
            )


class ContinuousBernoulli(Bernoulli):
    """A density on [0, 1]ⁿ: the Bernoulli formula with its normaliser (Loaiza-Ganem & Cunningham 2019); output: logits.

    Where data sit on 0 or 1 the density grows without bound with the logit λ, as log |λ|.

    `shape` is the shape of one example. Called with the output (*batch, n), it returns the distribution of x (*batch, *shape).

    >>> ContinuousBernoulli((3,))(torch.zeros(3)).log_prob(torch.rand(5, 3)).abs().max().item()  # uniform at λ = 0
    0.0
    """

    def forward(self, output: Float[Tensor, "*batch n"]) -> distributions.Independent:
        return _independent(OnUnitInterval(output.unflatten(-1, self.shape)), self.shape)

    def check(self, x: Shaped[Tensor, "batch *shape"]) -> None:
        """Raise `ValueError` unless every value is in [0, 1]."""
        if not ((x >= 0) & (x <= 1)).all():
            raise ValueError("a continuous_bernoulli likelihood needs values in [0, 1]; use likelihood='gaussian'")


class OnUnitInterval(distributions.Distribution):
    """p(x) = e^{λ(x − ½)} u/sinh u on [0, 1], u = |λ|/2: the continuous Bernoulli of logit λ, given as `logits`.

    torch's clamps λ in the normaliser only, in float32 from |λ| = 15.94 on: its integral is .8 at 20, and .4 at 40. `log_prob`
    is in nats, for each number alone.

    >>> [round(mean, 3) for mean in OnUnitInterval(torch.tensor([0.0, 40.0])).mean.tolist()]
    [0.5, 0.975]
    """

    arg_constraints: Any = {}  # noqa: RUF012  # pyright: ignore

    def __init__(self, logits: Tensor):
        self.logits = logits
        super().__init__(logits.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.logits * (value - 0.5) - self._log_normaliser()

    def _log_normaliser(self) -> Tensor:
        """log(sinh u/u), by its series near 0."""
        u = self.logits.abs() / 2
        small = u < 0.1
        far = torch.where(small, 1.0, u)
        series = u.square() / 6 - u**4 / 180 + u**6 / 2835
        return torch.where(small, series, far + (-torch.expm1(-2 * far)).log() - (2 * far).log())

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        p = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        # The inverse of the cdf at −|λ|, where the mass is at 0, and its mirror image.
        size = self.logits.abs()
        far = size.clamp(min=1e-3)
        x = torch.where(size < 1e-3, p, -torch.log1p(p * torch.expm1(-far)) / far).clamp(0, 1)
        return torch.where(self.logits > 0, 1 - x, x)

    @property
    def mean(self) -> Tensor:
        small = self.logits.abs() < 0.1
        far = torch.where(small, 1.0, self.logits)
        return torch.where(small, 0.5 + self.logits / 12 - self.logits**3 / 720, -1 / torch.expm1(-far) - 1 / far)

    @property
    def variance(self) -> Tensor:
        small = self.logits.abs() < 0.1
        far = torch.where(small, 1.0, self.logits)
        exact = far**-2 - 0.25 / torch.sinh((far / 2).clamp(-40, 40)).square()
        return torch.where(small, 1 / 12 - self.logits.square() / 240, exact)


class Gaussian(nn.Module):
    """N(output, σ²) for each dimension, with σ of one of the modes above. A density on all of Rⁿ.

    - `shape`: the shape of one example, n dimensions in all.
    - `sigma`: a number > 0 in the units of x, or one of `SIGMAS`.

    Called with the output (*batch, n_outputs), it returns the distribution of x (*batch, *shape). Attributes: `mode`, "fixed"
    or one of `SIGMAS`; `n_outputs`. Raises `ValueError` for another `sigma`.

    >>> gaussian = Gaussian((2, 3), sigma="global")
    >>> gaussian(torch.zeros(5, 6)).stddev[0].tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    >>> gaussian.set_variance(torch.tensor(0.25))
    >>> gaussian.scale.item()
    0.5
    """

    modes: tuple[str, ...] = SIGMAS
    sigma: Tensor
    variance: Tensor

    def __init__(self, shape: Sequence[int], sigma: float | str = 1.0):
        super().__init__()
        self.shape = tuple(shape)
        self.mode = sigma if isinstance(sigma, str) else "fixed"
        n, ones = math.prod(self.shape), (1,) * len(self.shape)  # full event rank, so that stacks of models broadcast
        self.n_outputs = n + {"z": 1, "z_diag": n}.get(self.mode, 0)
        if isinstance(sigma, str):
            if sigma not in self.modes:
                raise ValueError(f"sigma must be a number > 0 or one of {', '.join(self.modes)}; got {checks.short(sigma)}")
        else:
            self.register_buffer("sigma", torch.full(ones, checks.positive("sigma", sigma)))
        if self.mode == "global":
            self.log_ratio = nn.Parameter(torch.zeros(ones))
        if self.mode != "fixed":  # of "optimal" it is σ², of the others σ² where the learned part is 0
            self.register_buffer("variance", torch.ones(ones))

    def forward(self, output: Float[Tensor, "*batch outputs"]) -> distributions.Independent:
        return _independent(self.base_distribution(*self.location_scale(output)), self.shape)

    def extra_repr(self) -> str:
        return f"shape={self.shape}, mode={self.mode!r}"

    def base_distribution(self, location: Float[Tensor, "..."], scale: Float[Tensor, "..."]) -> distributions.Distribution:
        """The distribution of each dimension alone, at this location and σ."""
        return _normal(location, scale)

    def location_scale(self, output: Float[Tensor, "*batch outputs"]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """Location (*batch, *shape) and σ, which broadcasts against it."""
        n = math.prod(self.shape)
        location, rest = output[..., :n].unflatten(-1, self.shape), output[..., n:]
        if self.mode in ("z", "z_diag"):
            return location, self._learned(rest.unflatten(-1, self.shape if self.mode == "z_diag" else (1,) * len(self.shape)))
        return location, self.scale

    @property
    def scale(self) -> Float[Tensor, "..."]:
        """σ, of the event's rank, where it does not depend on z; `ValueError` where it does."""
        if self.mode in ("z", "z_diag"):
            raise ValueError(f"sigma={self.mode!r} depends on z: ask likelihood(z) for its stddev")
        if self.mode == "fixed":
            return self.sigma
        return self._learned(_PACE * self.log_ratio) if self.mode == "global" else self.variance.sqrt()

    def _learned(self, log_ratio: Tensor) -> Tensor:
        return (0.5 * _AtLeast.apply(log_ratio + self.variance.log(), 2 * math.log(FLOOR))).exp()

    @torch.no_grad()
    def set_variance(self, variance: Float[Tensor, "*models"]) -> None:
        """Set σ² (for each model of a stack) to the number, or to the floor; of learned modes, where they start from."""
        if self.mode == "global":
            self.log_ratio.zero_()
        if self.mode == "fixed":
            self.sigma.copy_(variance.clamp(min=FLOOR**2).sqrt().reshape_as(self.sigma))
        else:
            self.variance.copy_(variance.clamp(min=FLOOR**2).reshape_as(self.variance))

    def check(self, x: Shaped[Tensor, "batch *shape"]) -> None:
        """Raise `ValueError` unless every value is finite."""
        if not x.isfinite().all():
            raise ValueError("a gaussian likelihood needs finite data; the data hold nan or inf")


class _Normal(distributions.Normal):
    """torch's expands σ to every pixel before it takes its logarithm and its square: up to a sixth of a training step."""

    narrow: Tensor | None = None

    def log_prob(self, value: Tensor) -> Tensor:
        narrow = (self.scale if self.narrow is None else self.narrow).to(self.loc.dtype)
        standard = (value - self.loc) * narrow.reciprocal()
        return torch.addcmul(-narrow.log() - 0.5 * math.log(2 * math.pi), standard, standard, value=-0.5)


def _normal(location: Tensor, scale: Tensor) -> distributions.Normal:
    made = _Normal(location, scale, validate_args=False)
    made.narrow = scale
    return made


class DiscretizedGaussian(Gaussian):
    """A Gaussian integrated over the bins of data with `levels` grey values 0, 1/(levels − 1), …, 1: a probability mass.

    Each bin reaches half way to its neighbours, the first and the last to infinity (Salimans et al. 2017). Being a mass, it can
    be told in bits for each dimension, and compared with other masses on the same values. σ is that of the Gaussian.

    - `shape`: the shape of one example.
    - `sigma`: as of `Gaussian`, without "optimal".
    - `levels`: the number of grey values, at least 2.

    Raises `ValueError` for another `sigma` or `levels`.

    >>> mass = DiscretizedGaussian((1,), sigma=0.3, levels=3)(torch.full((1,), 0.5))
    >>> [round(mass.log_prob(torch.tensor([x])).exp().item(), 3) for x in (0.0, 0.5, 1.0)]
    [0.202, 0.595, 0.202]
    """

    modes = ("global", "z", "z_diag")
    kind = "gaussian"

    def __init__(self, shape: Sequence[int], sigma: float | str = 1.0, levels: int = 256):
        if sigma == "optimal":
            raise ValueError(
                f"sigma='optimal' belongs to likelihood='gaussian'; here sigma is a number or {', '.join(self.modes)}"
            )
        super().__init__(shape, sigma)
        self.levels = checks.whole("levels", levels, minimum=2)

    def base_distribution(self, location: Float[Tensor, "..."], scale: Float[Tensor, "..."]) -> distributions.Distribution:
        return OnLevels(location, scale, self.levels, self.kind)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, levels={self.levels}"

    def check(self, x: Shaped[Tensor, "batch *shape"]) -> None:
        """Raise `ValueError` unless every value is one of the levels."""
        check_levels(x, self.levels)


def check_levels(x: Shaped[Tensor, "..."], levels: int) -> None:
    """Raise `ValueError` unless every value of x is one of 0, 1/(levels − 1), …, 1, up to what float32 makes of them.

    >>> check_levels(torch.tensor([0.0, 0.25, 1.0]), 5)
    """
    grid = x * (levels - 1)
    if not ((x >= 0) & (x <= 1) & ((grid - grid.round()).abs() < 1e-3)).all():
        raise ValueError(
            f"a discretized likelihood with levels={levels} needs values j/{levels - 1} in [0, 1]; "
            "set levels to the number of grey values, or use likelihood='gaussian'"
        )


class DiscretizedLogistic(DiscretizedGaussian):
    """As `DiscretizedGaussian`, with a logistic density of standard deviation σ: heavier tails (Kingma et al. 2016).

    >>> mass = DiscretizedLogistic((1,), sigma=0.3, levels=3)(torch.full((1,), 0.5))
    >>> [round(mass.log_prob(torch.tensor([x])).exp().item(), 3) for x in (0.0, 0.5, 1.0)]
    [0.181, 0.639, 0.181]
    """

    kind = "logistic"


class OnLevels(distributions.Distribution):
    """The mass of a Gaussian or logistic density in the bins around 0, 1/(levels − 1), …, 1; the outer bins are infinite.

    - `location`, `scale`: mean and standard deviation of the density, which broadcast against each other; in the units of x.
    - `levels`: the number of values, at least 2.
    - `kind`: "gaussian" or "logistic".

    `log_prob` is in nats, for each number alone. Raises `ValueError` for another `kind`.

    >>> OnLevels(torch.tensor(0.5), torch.tensor(0.3), levels=3).mean.item()
    0.5
    """

    arg_constraints: Any = {}  # noqa: RUF012  # pyright: ignore

    def __init__(self, location: Tensor, scale: Tensor, levels: int, kind: str = "gaussian"):
        self.location, self.scale = torch.broadcast_tensors(location, scale)
        self.levels, self.kind, self.step = levels, checks.choice("kind", kind, ("gaussian", "logistic")), 1 / (levels - 1)
        super().__init__(self.location.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        lower, upper = (self._standard(value + side * self.step / 2) for side in (-1, 1))
        if self.kind == "logistic":
            below, above = nn.functional.logsigmoid(upper), nn.functional.logsigmoid(-lower)
            inside = below + above + (-torch.expm1(-self.step * math.pi / math.sqrt(3) / self.scale)).log()
        else:
            below, above = _LogNdtr.apply(upper), _LogNdtr.apply(-lower)
            # In the right half the mirror image: there both probabilities are near one and their difference is lost.
            right = lower + upper > 0
            small = _LogNdtr.apply(torch.where(right, -upper, lower))
            large = torch.where(right, above, below)
            inside = large + (-torch.expm1((small - large).clamp(max=-1e-12))).log()
        return torch.where(value < self.step / 2, below, torch.where(value > 1 - self.step / 2, above, inside))

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        if self.kind == "logistic":
            uniform = torch.rand(shape, dtype=self.location.dtype, device=self.location.device)
            noise = (uniform.log() - (-uniform).log1p()) * (math.sqrt(3) / math.pi)
        else:
            noise = torch.randn(shape, dtype=self.location.dtype, device=self.location.device)
        return ((self.location + self.scale * noise) / self.step).round().clamp(0, self.levels - 1) * self.step

    @property
    def mean(self) -> Tensor:
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        first, second = self._moments()
        return second - first**2

    def _moments(self) -> tuple[Tensor, Tensor]:
        """E x and E x², by summation over the levels: Σ_j P(x ≥ jh)·h, and with (2j − 1)h² in the place of h."""
        first = second = torch.zeros_like(self.location)
        for level in range(1, self.levels):
            edge = self._standard(torch.as_tensor((level - 0.5) * self.step, dtype=self.location.dtype))
            tail = torch.sigmoid(-edge) if self.kind == "logistic" else torch.special.ndtr(-edge)
            first = first + self.step * tail
            second = second + (2 * level - 1) * self.step**2 * tail
        return first, second

    def _standard(self, value: Tensor) -> Tensor:
        scale = self.scale * (math.sqrt(3) / math.pi) if self.kind == "logistic" else self.scale
        return (value - self.location) / scale


class _LogNdtr(torch.autograd.Function):
    """log Φ(x), with the gradient φ/Φ as √(2/π)/erfcx(−x/√2): torch's own cancels in float32 far in the tail."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.special.log_ndtr(x)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], *args: Tensor) -> tuple[Tensor, int]:
        return _LogNdtr.apply(*args), in_dims[0]  # for each number alone; torch would map it in a loop

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * math.sqrt(2 / math.pi) / torch.special.erfcx(-x / math.sqrt(2))


class _AtLeast(torch.autograd.Function):
    """max(x, floor), with the gradient of x below the floor where a step along it leads up: nothing gets stuck there."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, floor: float) -> Tensor:
        return x.clamp(min=floor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        x, floor = inputs
        ctx.save_for_backward(x > floor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (free,) = ctx.saved_tensors
        return gradients[0] * (free | (gradients[0] < 0)), None


LIKELIHOODS = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "gaussian": Gaussian,
    "discretized_gaussian": DiscretizedGaussian,
    "discretized_logistic": DiscretizedLogistic,
}


def make(name: str, shape: Sequence[int], sigma: float | str | None = None, levels: int | None = None) -> Bernoulli | Gaussian:
    """The likelihood called `name`, as a module.

    - `name`: one of `LIKELIHOODS`.
    - `shape`: the shape of one example.
    - `sigma`: of the Gaussian and the discretised ones, 1 by default.
    - `levels`: of the discretised ones, 256 by default.

    Raises `ValueError` for another name, and for an option that the likelihood has not.

    >>> make("gaussian", (1, 8, 8), sigma="z").n_outputs
    65
    """
    checks.choice("likelihood", name, LIKELIHOODS)
    kind = LIKELIHOODS[name]
    options: dict[str, Any] = {}
    for option, value, owner in (("sigma", sigma, Gaussian), ("levels", levels, DiscretizedGaussian)):
        if value is not None:
            if not issubclass(kind, owner):
                owners = " or ".join(f"'{each}'" for each, one in LIKELIHOODS.items() if issubclass(one, owner))
                raise ValueError(f"{option} belongs to likelihood={owners}; likelihood={name!r} has none")
            options[option] = value
    return kind(shape, **options)


def gaussian_distortion(mse: float, sigma2: float, n: int) -> float:
    """−log N(x; x̂, σ²I) in nats: n/2 log 2πσ² + mse/2σ².

    - `mse`: the squared error ‖x − x̂‖², summed over the n dimensions.
    - `sigma2`: σ².
    - `n`: the number of dimensions.

    >>> round(gaussian_distortion(mse=0.0, sigma2=1.0, n=2), 4)  # log 2π
    1.8379
    """
    return n / 2 * math.log(2 * math.pi * sigma2) + mse / (2 * sigma2)


def _independent(each: distributions.Distribution, shape: Sequence[int]) -> distributions.Independent:
    return distributions.Independent(each, len(shape), validate_args=False)
