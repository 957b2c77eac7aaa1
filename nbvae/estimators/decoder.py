"""The rate–distortion curve of a decoder and its prior alone: what the best encoder would reach at each β. Nats."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nbvae import checks, curves, objectives
from nbvae._measuring import measured
from nbvae.estimators import _annealing
from nbvae.results import Estimate


@measured
def decoder_curve(
    model: objectives.Model,
    x: Float[Tensor, "batch ..."],
    betas: Sequence[float],
    n_chains: int = 16,
    n_steps: int = 200,
    n_leapfrog: int = 8,
    seed: int = 0,
) -> curves.RDCurve:
    """The curve of the best encoder for a fixed decoder and prior, by annealed importance sampling (Huang et al. 2020).

    Over all encoders, with t = 1/β,

        min E_q[−log p(x|z)] + β KL(q(z|x) ‖ p(z)) = −β log Z_t(x),        Z_t(x) = ∫ p(z) p(x|z)^t dz,

    reached at q(z|x) = p(z) p(x|z)^t / Z_t(x). One run of the chains of `ais` through p(z) p(x|z)^t passes all of them: the
    mean weight of the K chains estimates Z_t, and a mean over their states by these weights that of −log p(x|z) under this q.

    - `model`: the model that is measured, in evaluation mode; its encoder is not used. It is left as it was.
    - `x`: the examples (batch, *shape); one is enough.
    - `betas`: β of each point, > 0, in any order, each once.
    - `n_chains`: the number K of chains for each example, >= 1.
    - `n_steps`: the number of temperatures from the prior to t = 1, those of `ais`, and again for each factor of ten that t
      goes beyond it, >= 1. Where the smallest β is above 1 the chains end before.
    - `n_leapfrog`: the number of leapfrog steps in each move, >= 1.
    - `seed`: the seed of the chains. torch's own stream is left as it was.

    Of each point of the curve the distortion is that weighted mean, and the rate what is then left of −β log Z_t, so that
    `loss()`, D + βR, is the estimate of −β log Z_t itself. All are means over the examples, nats, with standard errors over
    them; the MSE is not measured.

    *In expectation* D + βR is at least the optimum, for any number of steps and chains, since log Z_t is too low on average.
    The loss of a VAE on the same examples, less this one, thus understates what its encoder lacks. The point itself can be
    reached. Let an encoder run the chains and draw one of their last states by its weight: on average the D of the point is its
    distortion, and the R at least its rate. For its D + βR is above the optimum by β times a divergence of that state's
    distribution, and the estimate by β times the divergence of all that the chains drew, which is no smaller. So a curve errs
    up and to the right. At β = 1 `loss()` is minus `ais`.

    Raises `ValueError` for βs that are not, for x that the model's likelihood is no likelihood for, and for a model whose
    weights can have no gradients because it was made in `torch.inference_mode`.

    >>> from nbvae import data, estimators, models
    >>> digits = data.load("digits")
    >>> model = models.VAE(digits.shape, 2, hidden=(8,))
    >>> curve = estimators.decoder_curve(model, digits.test[:5], [1.0, 4.0], n_chains=2, n_steps=3, n_leapfrog=2)
    >>> [point.beta for point in curve], curve[1.0].loss() > 0
    ([1.0, 4.0], True)
    """
    objectives.check_data(model, x)
    # A curve refuses what is no β, and the same one twice.
    betas = curves.RDCurve([curves.RDPoint(beta, 0.0, 0.0) for beta in checks.listed("betas", betas)]).betas.tolist()
    n_chains, n_steps = checks.whole("n_chains", n_chains), checks.whole("n_steps", n_steps)
    n_leapfrog, seed = checks.whole("n_leapfrog", n_leapfrog), checks.seed("seed", seed)
    _annealing.check_gradients(model)
    reached = {1 / beta: beta for beta in reversed(betas)}
    times = _annealing.temperatures(n_steps, [*reached])

    def run(path: _annealing.Path, sizes: list[Tensor], rows: slice) -> Tensor:
        found = []
        for t, weight, likely in path.forward(times, n_chains, sizes):
            if t in reached:
                loss = -reached[t] * (weight.logsumexp(0) - math.log(n_chains))
                distortion = -(weight.softmax(0) * likely).sum(0)
                found.append(torch.stack([distortion, (loss - distortion) / reached[t], loss]))
        return torch.stack(found)

    values = _annealing.over_parts(model, x, times, n_chains, n_leapfrog, seed, run)
    return curves.RDCurve([_point(beta, *each) for beta, each in zip(reached.values(), values, strict=True)])


def _point(beta: float, *values: Tensor) -> curves.RDPoint:
    """The point of distortion, rate and loss of each example."""
    distortion, rate, loss = map(Estimate.of, values)
    return curves.RDPoint(
        beta=beta,
        rate=rate.value,
        distortion=distortion.value,
        rate_stderr=rate.stderr,
        distortion_stderr=distortion.stderr,
        loss_stderr=loss.stderr,
        n_examples=len(values[0]),
    )
