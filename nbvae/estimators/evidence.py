"""log p(x) of a trained decoder from below and from above: importance sampling (IWAE) and annealed importance sampling.

No training here: every function works without gradients of the weights, in nats, with standard errors.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from nbvae import checks, objectives
from nbvae._measuring import log_likelihood, measured, rate_of
from nbvae._randomness import seeded
from nbvae._tensors import parts, portions
from nbvae.estimators import _annealing
from nbvae.results import Estimate


@measured
def iwae(model: objectives.Model, x: Float[Tensor, "batch ..."], n_samples: int = 500, seed: int = 0) -> Estimate:
    """A lower bound on log p(x): log (1/K) Σ_k p(x, z_k)/q(z_k|x) with K draws z_k ~ q(z|x) (Burda et al. 2016, eq. 8).

    - `model`: the model that is measured, in evaluation mode; q(z|x) may be any distribution. It is left as it was.
    - `x`: the examples (batch, *shape); one is enough.
    - `n_samples`: K, the number of draws for each example, >= 1.
    - `seed`: the seed of the draws. torch's own stream is left as it was.

    The value is the mean over the examples, in nats: higher is better. `per_example` has the bound of each, and the standard
    error is over them, with the draws' noise in it. In expectation the bound is at most log p(x), rises with K, and is the ELBO
    at K = 1. Its bias falls like Var[p(x, z)/q(z|x)]/2K relative to p(x)², where that variance is finite: where q has lighter
    tails than the true posterior it may not be.

    Raises `ValueError` for x that the model's likelihood is no likelihood for.

    >>> from nbvae import data, estimators, models
    >>> digits = data.load("digits")
    >>> model = models.VAE(digits.shape, 2, hidden=(8,))
    >>> bound = estimators.iwae(model, digits.test[:50], n_samples=20)
    >>> bound.value < 0, bound.per_example.shape
    (True, torch.Size([50]))
    """
    objectives.check_data(model, x)
    n_samples, seed = checks.whole("n_samples", n_samples), checks.seed("seed", seed)
    prior = model.prior()
    values = []
    with seeded(seed, prior.mean.device):
        for part in parts(x, prior.mean):
            posterior = model.posterior(part)
            total = torch.full((len(part),), -math.inf, dtype=torch.float64)
            for count in portions(n_samples, part):
                z = posterior.sample((count,))
                weight = log_likelihood(model, z, part) + prior.log_prob(z) - posterior.log_prob(z)
                total = torch.logaddexp(total, weight.cpu().double().logsumexp(0))
            values.append(total - math.log(n_samples))
    return Estimate.of(torch.cat(values))


@measured
def ais(
    model: objectives.Model,
    x: Float[Tensor, "batch ..."],
    n_chains: int = 16,
    n_steps: int = 200,
    n_leapfrog: int = 8,
    posterior_samples: Float[Tensor, "chains batch k"] | None = None,
    seed: int = 0,
) -> Estimate:
    """log p(x) by annealed importance sampling from the prior to p(z|x), with Hamiltonian moves (Neal 2001; Wu et al. 2017).

    - `model`: the model that is measured, in evaluation mode; its encoder is not used. It is left as it was.
    - `x`: the examples (batch, *shape); one is enough.
    - `n_chains`: the number of chains for each example, >= 1.
    - `n_steps`: the number of temperatures from the prior to the posterior, >= 1.
    - `n_leapfrog`: the number of leapfrog steps in each move, >= 1.
    - `posterior_samples`: exact draws from p(z|x), (chains, batch, k), from which the chains run back to the prior; `n_chains`
      is then their number. They are known for a linear-Gaussian model, and for x drawn from the model with its own z.
    - `seed`: the seed of the chains. torch's own stream is left as it was.

    The value is the mean over the examples, in nats. `per_example` has those of each, and the standard error is over them. The
    weights of the chains are averaged inside the logarithm, so the expected value is at most log p(x), for any number of steps
    and chains. From `posterior_samples` it is at *least* log p(x) (Grosse et al. 2015).

    The path is f_t(z) = p(z) p(x|z)^t, t from 0 to 1 on a sigmoid schedule, with one Hamiltonian move at each temperature. Step
    sizes are adapted to an acceptance of .65 for each example and temperature in a run of their own, forwards, and fixed for
    the run that counts: adapting in that run would spoil the bounds. The moves take gradients in z, also under `torch.no_grad`.

    Raises `ValueError` for x that the model's likelihood is no likelihood for, and for a model whose weights can have no
    gradients because it was made in `torch.inference_mode`.

    >>> from nbvae import data, estimators, models
    >>> digits = data.load("digits")
    >>> model = models.VAE(digits.shape, 2, hidden=(8,))
    >>> estimators.ais(model, digits.test[:5], n_chains=2, n_steps=3, n_leapfrog=2).value < 0
    True
    """
    objectives.check_data(model, x)
    n_chains, n_steps = checks.whole("n_chains", n_chains), checks.whole("n_steps", n_steps)
    n_leapfrog, seed = checks.whole("n_leapfrog", n_leapfrog), checks.seed("seed", seed)
    _annealing.check_gradients(model)
    prior = model.prior()
    k = prior.event_shape[-1]
    if posterior_samples is not None:
        given = tuple(posterior_samples.shape) if isinstance(posterior_samples, Tensor) else type(posterior_samples).__name__
        if given[1:] != (len(x), k) or given[0] == 0:
            raise ValueError(f"posterior_samples must be a tensor (chains, {len(x)}, {k}), got {given}")
        n_chains = len(posterior_samples)
    times = _annealing.temperatures(n_steps)

    def run(path: _annealing.Path, sizes: list[Tensor], rows: slice) -> Tensor:
        if posterior_samples is None:
            *_, (_, weight, _) = path.forward(times, n_chains, sizes)
            return weight.logsumexp(0) - math.log(n_chains)
        weight = path.backward(times, posterior_samples[:, rows].to(prior.mean, copy=True), sizes)
        return math.log(n_chains) - (-weight).logsumexp(0)

    return Estimate.of(_annealing.over_parts(model, x, times, n_chains, n_leapfrog, seed, run))


@measured
def gap(
    model: objectives.Model, x: Float[Tensor, "batch ..."], evidence: Estimate, n_samples: int = 100, seed: int = 0
) -> Estimate:
    """What the ELBO lacks to log p(x): log p(x) − ELBO(x) = KL(q(z|x) ‖ p(z|x)).

    - `model`: the model that is measured, in evaluation mode. It is left as it was.
    - `x`: the examples (batch, *shape) that `evidence` is of.
    - `evidence`: log p(x) of each example, as `iwae` or `ais` estimate it. Too low a one makes the gap too small by as much.
    - `n_samples`: the number of draws for each example over which the ELBO's distortion is averaged, >= 1; its rate is exact.
    - `seed`: the seed of the draws. torch's own stream is left as it was.

    The value is the mean over the examples, in nats, and the standard error that of the paired differences.

    Raises `ValueError` unless `evidence` has a value for each example, and where the rate has no closed form.

    >>> from nbvae import data, estimators, models
    >>> digits = data.load("digits")
    >>> model, x = models.VAE(digits.shape, 2, hidden=(8,)), digits.test[:50]
    >>> evidence = estimators.iwae(model, x, n_samples=50)
    >>> estimators.gap(model, x, evidence, n_samples=50).per_example.shape
    torch.Size([50])
    """
    objectives.check_data(model, x)
    per_example = getattr(evidence, "per_example", None)
    if per_example is None or len(per_example) != len(x):
        found = f"is for {len(per_example)} examples" if per_example is not None else f"has none: {checks.short(evidence)}"
        raise ValueError(f"evidence must be an Estimate of iwae or ais with a value for each of {len(x)} examples; it {found}")
    n_samples, seed = checks.whole("n_samples", n_samples), checks.seed("seed", seed)
    prior = model.prior()
    elbo = []
    with seeded(seed, prior.mean.device):
        for part in parts(x, prior.mean):
            posterior = model.posterior(part)
            value = -rate_of(posterior, prior, len(part)).cpu().double()
            for count in portions(n_samples, part):
                value += log_likelihood(model, posterior.sample((count,)), part).cpu().double().sum(0) / n_samples
            elbo.append(value)
    return Estimate.of(torch.as_tensor(per_example).cpu().double() - torch.cat(elbo))
