"""The ELBO taken apart: D, R and the terms of R with log q(z) over a whole data set, and what minibatches make of them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nbvae import checks, objectives, results
from nbvae._measuring import log_likelihood, measured, rate_of
from nbvae._randomness import seeded
from nbvae._tensors import double, parts, portions
from nbvae.posterior import (
    check_reference,
    encode,
    leave_one_out,
    log_density,
    log_weights,
    mean_and_std,
    mix,
    pairwise,
    partition,
)
from nbvae.results import Estimate

_DRAWS = 10_000


@dataclass(frozen=True, eq=False)
class Decomposition(results.Quantities):
    """D, R and the terms of R for x drawn from the reference, nats, with standard errors over the examples x.

    For the reference itself, as an enumerated data set, the values with own component are exact. For the population behind it,
    and an encoder that was not trained on this reference, they are bounds: ② lies between `mutual_information`, where q(z)
    contains x's own component, and `mutual_information_upper`, where it is left out; ④ between `marginal_kl_lower` and
    `marginal_kl`, the other way round (in expectation over the reference). `mutual_information` cannot exceed `log_n`: see
    `saturated`. `estimate` and `to_frame` have each by its name: `estimate("rate")`.
    """

    n_reference: int  # N, of the data set whose q(z) it is
    log_n: float  # log N, the most that ② can be on N examples
    distortion: float  # D = E −log p(x|z)
    distortion_stderr: float
    rate: float  # R = E KL(q(z|x) ‖ p(z)), in closed form
    rate_stderr: float
    mutual_information: float  # ② with the own component
    mutual_information_stderr: float
    mutual_information_upper: float  # ② with the own component left out
    mutual_information_upper_stderr: float
    marginal_kl: float  # ④ = KL(q(z) ‖ p(z)) with the own component
    marginal_kl_stderr: float
    marginal_kl_lower: float  # ④ with the own component left out
    marginal_kl_lower_stderr: float
    total_correlation: float  # TC = KL(q(z) ‖ Π_d q(z_d))
    total_correlation_stderr: float
    dimension_kl: float  # DW, the dimension-wise KL, = Σ_d KL(q(z_d) ‖ p(z_d))
    dimension_kl_stderr: float
    dimension_kl_per_latent: Float[Tensor, " k"]  # KL(q(z_d) ‖ p(z_d))
    dimension_kl_per_latent_stderr: Float[Tensor, " k"]
    information_per_latent: Float[Tensor, " k"]  # I(x; z_d), own component kept
    information_per_latent_stderr: Float[Tensor, " k"]
    between_groups: float | None = None  # HFVAE's TC: the total correlation between the groups of latents
    between_groups_stderr: float | None = None
    within_groups: float | None = None  # HFVAE's (i): the sum of the total correlations within each group
    within_groups_stderr: float | None = None
    n: int | None = None  # what the standard errors are over: so many
    over: str = "examples"  # of these; of a mean, "runs"

    @property
    def saturated(self) -> bool:
        """Whether R > log N and N examples no longer tell ②: its two bounds are more than half a nat apart."""
        return self.rate > self.log_n and self.mutual_information_upper - self.mutual_information > 0.5

    @classmethod
    def mean_of(cls, runs: Iterable["Decomposition"]) -> "Decomposition":
        """The mean of `runs`, decompositions of several trainings on one reference, with standard errors over the trainings."""
        runs = list(runs) if isinstance(runs, Iterable) else [runs]
        if any(not isinstance(run, cls) for run in runs):
            raise ValueError("a mean is of decompositions; held-out examples have CrossTerms, which are none")
        if len(runs) < 2 or len({(run.n_reference, run.within_groups is None) for run in runs}) > 1:
            raise ValueError("a mean needs at least two decompositions with one reference size and the same groups")
        values: dict[str, Any] = {"n_reference": runs[0].n_reference, "log_n": runs[0].log_n, "n": len(runs), "over": "runs"}
        for name in (field.name for field in fields(cls) if f"{field.name}_stderr" in cls.__dataclass_fields__):
            if getattr(runs[0], name) is not None:
                each = torch.stack([torch.as_tensor(getattr(run, name), dtype=torch.float64) for run in runs])
                mean, error = each.mean(0), each.std(0) / len(runs) ** 0.5
                values |= (
                    {name: mean.item(), f"{name}_stderr": error.item()}
                    if mean.dim() == 0
                    else {
                        name: mean,
                        f"{name}_stderr": error,
                    }
                )
        return cls(**values)

    def __str__(self) -> str:
        information = (
            _line(self, "I(x; z)", "mutual_information")
            + f", at most log N = {self.log_n:.3f}; without own component {self.mutual_information_upper:.3f}"
        )
        marginal = _line(self, "KL(q(z) ‖ p(z))", "marginal_kl") + f"; without own component {self.marginal_kl_lower:.3f}"
        lines = [
            _line(self, "D distortion", "distortion"),
            _line(self, "R rate", "rate"),
            information,
            marginal,
            _line(self, "TC total correlation", "total_correlation"),
            _line(self, "DW dimension-wise KL", "dimension_kl"),
        ]
        if self.between_groups is not None:
            lines += [
                _line(self, "TC between groups", "between_groups"),
                _line(self, "TC within groups", "within_groups"),
            ]
        if self.saturated:
            lines += [
                f"Saturated: R > log N = {self.log_n:.3f}. {self.n_reference} examples cannot tell I, KL and TC of the data.",
                f"For an encoder not trained on them, on average I(x; z) is between {self.mutual_information:.3f} and "
                f"{self.mutual_information_upper:.3f}, "
                f"KL(q(z) ‖ p(z)) between {max(0.0, self.marginal_kl_lower):.3f} and {self.marginal_kl:.3f}.",
            ]
        return "\n".join(lines)


def _line(terms: object, label: str, name: str) -> str:
    return f"{label:22s}{getattr(terms, name):9.3f} ± {getattr(terms, name + '_stderr'):.3f}"


@dataclass(frozen=True, eq=False)
class CrossTerms(results.Quantities):
    """The same expectations for held-out x against another data set's q(z): nats.

    Not divergences, so each may be negative and log N bounds none. Where x and the reference are independent draws of one
    population, E `cross_information` ≥ ② and E `cross_marginal` ≤ ④ of the population.

    `cross_information` is E log q(z|x)/q(z), `cross_marginal` E log q(z)/p(z), `cross_correlation` E log q(z)/Π q(z_d) and
    `cross_dimension` E log Π q(z_d)/p(z), z ~ q(z|x) for held-out x and q(z) of the reference.
    """

    n_reference: int  # of the data set whose q(z) it is
    distortion: float  # D = E −log p(x|z) of the held-out x
    distortion_stderr: float
    rate: float  # R = E KL(q(z|x) ‖ p(z)) of the held-out x
    rate_stderr: float
    cross_information: float
    cross_information_stderr: float
    cross_marginal: float
    cross_marginal_stderr: float
    cross_correlation: float
    cross_correlation_stderr: float
    cross_dimension: float
    cross_dimension_stderr: float
    n: int | None = None  # held-out examples

    def __str__(self) -> str:
        labels = {
            "distortion": "D distortion",
            "rate": "R rate",
            "cross_information": "E log q(z|x)/q(z)",
            "cross_marginal": "E log q(z)/p(z)",
            "cross_correlation": "E log q(z)/Π q(z_d)",
            "cross_dimension": "E log Π q(z_d)/p(z)",
        }
        head = f"held-out x against q(z) of {self.n_reference} others"
        return "\n".join([head, *(_line(self, label, name) for name, label in labels.items())])


@measured
def decompose(
    model: objectives.Model,
    x: Float[Tensor, "batch ..."],
    reference: Float[Tensor, "n ..."] | None = None,
    n_samples: int | None = None,
    groups: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
) -> Decomposition | CrossTerms:
    """The terms of the ELBO, with log q(z) over a whole data set.

    R = ② + ④ (Hoffman & Johnson 2016) and ④ = TC + DW (Chen et al. 2018).

    - `model`: the model that is measured, in evaluation mode. It is left as it was.
    - `x`: the examples (batch, *shape) that the terms are means over, at least two.
    - `reference`: the examples (N, *shape) whose posteriors make up q(z), at least two; by default x itself.
    - `n_samples`: the number of draws z ~ q(z|x) for each x, >= 1; by default there are at least 10⁴ in all.
    - `groups`: lists of latents, each latent in exactly one; they add HFVAE's terms, between and within the groups.
    - `seed`: the seed of the draws. torch's own stream is left as it was.

    All terms are in nats. The rate is exact for each x; the others are means of log-density ratios at the draws. They do not
    add up to the rate but within that noise: each is measured on its own.

    Where every row of x is in the reference, each is matched to its own component and a `Decomposition` is returned. Otherwise
    x is held out, and the result is `CrossTerms`: the same ratios under other names, for they are no divergences.

    Raises `ValueError` for fewer than two examples, unless posterior and prior are diagonal Gaussians, and for x that the
    model's likelihood is no likelihood for.

    >>> from nbvae import data, estimators, models
    >>> digits = data.load("digits")
    >>> model = models.VAE(digits.shape, 2, hidden=(8,))
    >>> terms = estimators.decompose(model, digits.test[:100], n_samples=10)
    >>> terms.mutual_information < terms.log_n, round(terms.log_n, 3)
    (True, 4.605)
    >>> abs(terms.total_correlation + terms.dimension_kl - terms.marginal_kl) < 1e-6
    True
    >>> held_out = estimators.decompose(model, digits.test[:100], reference=digits.train, n_samples=1)
    >>> type(held_out).__name__
    'CrossTerms'
    """
    objectives.check_data(model, x, least=2)
    reference = x if reference is None else reference
    objectives.check_input(model, reference, "the reference")
    check_reference(reference)
    n_samples = -(-_DRAWS // len(x)) if n_samples is None else checks.whole("n_samples", n_samples)
    seed = checks.seed("seed", seed)
    prior = model.prior()
    mean_and_std(prior)
    mean, std = encode(model, reference)
    k = mean.shape[-1]
    chosen = None if groups is None else partition(groups, k)
    own = _own_rows(x, reference)
    with seeded(seed, prior.mean.device):
        z, columns = _draws(model, x, n_samples)
    flat = z.flatten(0, 1)
    if own is None:
        log_q = log_q_rest = log_density(flat, mean, std)
    else:
        log_q, log_q_rest = leave_one_out(flat, mean, std, own.to(flat.device).repeat(n_samples))
    singles = torch.stack([log_density(flat[:, [d]], mean[:, [d]], std[:, [d]]) for d in range(k)], -1)
    log_p = torch.distributions.Normal(*map(double, mean_and_std(prior)), validate_args=False).log_prob(flat)
    own_singles = columns["log_own"].flatten(0, 1)
    log_own = own_singles.sum(-1)
    values = {
        "distortion": columns["distortion"],
        "rate": columns["rate"],
        "mutual_information": log_own - log_q,
        "marginal_kl": log_q - log_p.sum(-1),
        "total_correlation": log_q - singles.sum(-1),
        "dimension_kl": (singles - log_p).sum(-1),
    }
    if own is None:
        other = {
            "mutual_information": "cross_information",
            "marginal_kl": "cross_marginal",
            "total_correlation": "cross_correlation",
            "dimension_kl": "cross_dimension",
        }
        named = {other.get(name, name): value for name, value in values.items()}
        return CrossTerms(len(reference), **_means(named, n_samples), n=len(x))
    values["mutual_information_upper"] = log_own - log_q_rest
    values["marginal_kl_lower"] = log_q_rest - log_p.sum(-1)
    if chosen is not None:
        joint = torch.stack([log_density(flat[:, list(g)], mean[:, list(g)], std[:, list(g)]) for g in chosen]).sum(0)
        values["between_groups"] = log_q - joint
        values["within_groups"] = joint - singles.sum(-1)
    vectors = {"dimension_kl_per_latent": singles - log_p, "information_per_latent": own_singles - singles}
    vectors = {name: each.unflatten(0, (n_samples, len(x))).mean(0).cpu() for name, each in vectors.items()}
    return Decomposition(
        n_reference=len(reference),
        log_n=math.log(len(reference)),
        **{name: each.mean(0) for name, each in vectors.items()},
        **{f"{name}_stderr": each.std(0) / len(x) ** 0.5 for name, each in vectors.items()},
        **_means(values, n_samples),
        n=len(x),
    )


def _means(values: dict[str, Tensor], n_samples: int) -> dict[str, Any]:
    """Mean and standard error over examples of each (n_samples · batch,) or (n_samples, batch) tensor."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        estimate = Estimate.of(value.reshape(n_samples, -1).mean(0))
        result |= {name: estimate.value, f"{name}_stderr": estimate.stderr}
    return result


def _draws(model: objectives.Model, x: Tensor, n_samples: int) -> tuple[Float[Tensor, "draws n k"], dict[str, Tensor]]:
    """z ~ q(z|x), `n_samples` for each x, with distortion and rate (draws, n) and log q(z_d|x) (draws, n, k) in float64."""
    prior = model.prior()
    codes, columns = [], {"distortion": [], "rate": [], "log_own": []}
    for part in parts(x, prior.mean):
        posterior = model.posterior(part)
        mean, std = (double(each) for each in mean_and_std(posterior))
        noise = torch.randn((n_samples, *mean.shape), dtype=part.dtype, device=part.device)
        # In float64: a float32 z misses its own posterior where that is narrower than the rounding of its mean.
        z = mean + std * double(noise)
        codes.append(z)
        some = z.to(part).split(list(portions(n_samples, part)))
        columns["distortion"].append(torch.cat([-log_likelihood(model, each, part) for each in some]))
        columns["rate"].append(rate_of(posterior, prior, len(part)).expand(z.shape[:-1]))
        columns["log_own"].append(torch.distributions.Normal(mean, std, validate_args=False).log_prob(z))
    return torch.cat(codes, 1), {name: double(torch.cat(each, 1)) for name, each in columns.items()}


def _own_rows(x: Tensor, reference: Tensor) -> Int64[Tensor, " batch"] | None:
    """The index in the reference of each row of x, or None if one of them is not there."""
    if x is reference or (x.shape == reference.shape and torch.equal(x, reference)):
        return torch.arange(len(x))
    # One rounded, the other not: compare what both can hold.
    both = (x.dtype, reference.dtype)
    floats = all(dtype.is_floating_point for dtype in both)
    coarse = max(both, key=lambda dtype: torch.finfo(dtype).eps) if floats else torch.promote_types(*both)
    rows, wanted = ((part.detach().to(coarse).double().cpu().flatten(1) + 0.0).numpy() for part in (reference, x))
    # (0.0 was added because −0.0 has other bytes than 0.0.)
    index = {row.tobytes(): i for i, row in enumerate(rows)}
    found = [index.get(row.tobytes(), -1) for row in wanted]
    return None if -1 in found else torch.tensor(found)


class MinibatchTerms(NamedTuple):
    """Means over batches of what a minibatch estimator takes for ②, ④, TC and DW, nats, with standard errors over batches."""

    mutual_information: Estimate  # ② = I(x; z)
    marginal_kl: Estimate  # ④ = KL(q(z) ‖ p(z))
    total_correlation: Estimate  # TC = KL(q(z) ‖ Π_d q(z_d))
    dimension_kl: Estimate  # DW = Σ_d KL(q(z_d) ‖ p(z_d))

    estimates, estimate, to_frame = results.Quantities.estimates, results.Quantities.estimate, results.Quantities.to_frame


@measured
def minibatch_terms(
    model: objectives.Model,
    reference: Float[Tensor, "n ..."],
    batch_size: int,
    estimator: str = "weighted",
    n_batches: int = 100,
    seed: int = 0,
) -> MinibatchTerms:
    """What training on minibatches would take for the terms that `decompose` measures.

    - `model`: the model that is measured, in evaluation mode. It is left as it was.
    - `reference`: the examples (N, *shape) that batches are drawn from, without replacement, at least two.
    - `batch_size`: the number of examples in each batch, 1 to N.
    - `estimator`: "weighted", "stratified" or "hfvae": how q(z) is estimated from a batch, as in the objectives; `log_weights`
      of `nbvae.posterior` describes them.
    - `n_batches`: the number of batches, at least two.
    - `seed`: the seed of batches and draws. torch's own stream is left as it was.

    Each term is a mean over the batches, in nats, with the standard error over them. Raises `ValueError` for a batch that is
    larger than the reference, and unless the posterior is a diagonal Gaussian.

    >>> from nbvae import data, estimators, models
    >>> digits = data.load("digits")
    >>> model = models.VAE(digits.shape, 2, hidden=(8,))
    >>> terms = estimators.minibatch_terms(model, digits.train, batch_size=64, n_batches=5)
    >>> exact = estimators.decompose(model, digits.train, n_samples=1)
    >>> terms.mutual_information.value > exact.mutual_information  # the weighted estimate takes far too much
    True
    """
    objectives.check_input(model, reference, "the reference")
    check_reference(reference)
    batch_size, n_batches = checks.whole("batch_size", batch_size), checks.whole("n_batches", n_batches, minimum=2)
    seed = checks.seed("seed", seed)
    # In float64, as a float32 z misses its own posterior where that is narrower than the rounding of its mean.
    mean, std = map(double, encode(model, reference))
    prior = model.prior()
    weights = log_weights(estimator, batch_size, len(reference), mean)
    rows = []
    with seeded(seed, mean.device):
        for _ in range(n_batches):
            batch = torch.randperm(len(mean), device=mean.device)[:batch_size]
            mu, sigma = mean[batch], std[batch]
            z = torch.normal(mu, sigma)
            log_q = mix(pairwise(z, mu, sigma), weights)
            own = torch.distributions.Normal(mu, sigma, validate_args=False).log_prob(z).sum(-1)
            log_p, singles = double(prior.log_prob(z.to(prior.mean))), log_q.latents.sum(-1)
            ratios = (own - log_q.joint, log_q.joint - log_p, log_q.joint - singles, singles - log_p)
            rows.append(torch.stack([ratio.mean() for ratio in ratios]))
    return MinibatchTerms(*(Estimate.of(row, "batches") for row in torch.stack(rows, 1)))
