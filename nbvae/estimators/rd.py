"""Rate, distortion and MSE of a model on data, and curves of them, without gradients, with standard errors. Nats."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbvae import checks, curves, objectives
from nbvae._measuring import check_examples, log_prob, measured, rate_of, repeated
from nbvae._randomness import seeded
from nbvae._tensors import parts, portions
from nbvae.results import Estimate

_DRAWS = 10_000


@measured
def evaluate(
    model: objectives.Model, x: Float[Tensor, "..."], beta: float | None = None, n_samples: int | None = None, seed: int = 0
) -> curves.RDPoint:
    """Rate, distortion and MSE of a model on data, as a point of the rate–distortion plane.

    - `model`: the model that is measured, in evaluation mode. It is left as it was.
    - `x`: the examples (batch, *shape) that the values are means over; one is enough.
    - `beta`: the β that the point is labelled with, > 0; by default that of a view of one β, and else 1. It weighs the point's
      loss D + βR and nothing else.
    - `n_samples`: the number of draws z ~ q(z|x) for each example, >= 1; by default there are at least 10⁴ in all.
    - `seed`: the seed of the draws. torch's own stream is left as it was.

    The rate KL(q(z|x) ‖ p(z)) is exact, in nats. The distortion −log p(x|z), in nats, and the MSE ‖x − E[x|z]‖², a sum over
    dimensions, are means over the draws, never taken at the posterior's mean. The standard errors are those of the means over
    the examples, and the draws' noise is part of them; a single example has none: nan.

    Raises `ValueError` for x that the model's likelihood is no likelihood for, and where the rate has no closed form.

    >>> from nbvae import data, estimators, models
    >>> digits = data.load("digits")
    >>> model = models.VAE(digits.shape, 2, hidden=(8,))
    >>> point = estimators.evaluate(model, digits.test, beta=2.0, n_samples=1)
    >>> point.rate > 0, point.distortion > 0, point.n_examples
    (True, True, 397)
    """
    objectives.check_data(model, x)
    beta = checks.positive("beta", getattr(model, "beta", 1.0) if beta is None else beta)
    seed = checks.seed("seed", seed)
    n_samples = -(-_DRAWS // len(x)) if n_samples is None else checks.whole("n_samples", n_samples)
    prior = model.prior()
    columns = []
    with seeded(seed, prior.mean.device):
        for part in parts(x, prior.mean):
            posterior = model.posterior(part)
            sums = torch.zeros(2, len(part), dtype=torch.float64)
            for count in portions(n_samples, part):
                z = posterior.sample((count,))
                rows, likelihood = repeated(part, z), model.likelihood(z.flatten(0, 1))
                each = torch.stack([-log_prob(likelihood, rows), (rows - likelihood.mean).square().flatten(1).sum(-1)])
                sums += each.unflatten(1, (count, -1)).cpu().double().sum(1)
            columns.append(torch.cat([rate_of(posterior, prior, len(part)).cpu().double()[None], sums / n_samples]))
    rate, distortion, mse = map(Estimate.of, torch.cat(columns, -1))
    loss = Estimate.of(distortion.values + beta * rate.values)
    return curves.RDPoint(
        beta=beta,
        rate=rate.value,
        distortion=distortion.value,
        mse=mse.value,
        rate_stderr=rate.stderr,
        distortion_stderr=distortion.stderr,
        mse_stderr=mse.stderr,
        loss_stderr=loss.stderr,
        n_examples=len(x),
    )


def rd_curve(
    runs: Any,
    x: Float[Tensor, "..."],
    n_samples: int | None = None,
    seed: int = 0,
    betas: Sequence[float] | None = None,
) -> curves.RDCurve:
    """The rate–distortion curve of trained models on data: one point for each β.

    - `runs`: one run or several, each with `.model` and `.objective.beta`, as `fit` and `sweep` return them; with `betas` a
      model of many β, its run, or a list of either with one for each seed.
    - `x`: the examples (batch, *shape) that every model is measured on.
    - `n_samples`, `seed`: the draws for each example, and their seed, as for `evaluate`.
    - `betas`: the βs at which models of many β are measured.

    Where several runs share a β (seeds), the point is their mean and its standard errors are those of that mean over the
    runs: the spread of training, on the same examples. It keeps the points of the runs, each with the seed that it was trained
    with: `to_frame` has a row for each, and `regret(other, paired=True)` compares seed by seed. A single run has the standard
    errors of `evaluate`, over examples.

    Raises `ValueError` for no runs, for an objective without a β, and for runs of one β that differ in more than their seed, or
    not in their seed: in the settings of the model (σ, say), in its networks, in the objective or in how they were trained.
    Split them first.

    >>> from nbvae import data, estimators, models
    >>> digits = data.load("digits")
    >>> many = models.MultiBetaVAE(digits.shape, 2, hidden=(8,))
    >>> curve = estimators.rd_curve(many, digits.test[:50], n_samples=2, betas=[0.1, 1.0])
    >>> [point.beta for point in curve], curve[0.1].rate > curve[1.0].rate
    ([0.1, 1.0], True)
    """
    points = []
    runs = [runs] if hasattr(runs, "model") or hasattr(runs, "posterior") else checks.listed("runs", runs)
    if betas is not None:
        many = [_model(run) for run in runs]
        if not all(hasattr(model, "at") for model in many):
            raise ValueError("betas are for a model with at(beta), as models.MultiBetaVAE; a run or view of one β has its own")
        if any(_built(model) != _built(many[0]) for model in many):
            raise ValueError("the models have different settings: one curve for each, please")
        _differ_in_seeds(runs, "")
        for beta in checks.listed("betas", betas):
            points.append(_mean(runs, [evaluate(model.at(beta), x, beta, n_samples, seed) for model in many]))
        return curves.RDCurve(points)
    for run in runs:
        if not isinstance(getattr(getattr(run, "objective", None), "beta", None), Real):
            what = getattr(run, "objective", type(run).__name__)
            hint = (
                "give betas=" if hasattr(_model(run), "at") else "give it an attribute beta; evaluate(model, x) gives a point"
            )
            raise ValueError(f"{what} has no β to order a curve by: {hint}")
    order = sorted(runs, key=lambda run: run.objective.beta)
    for beta, group in itertools.groupby(order, key=lambda run: run.objective.beta):
        same = list(group)
        if any(_built(run.model) != _built(same[0].model) for run in same):
            raise ValueError(f"the runs of β = {beta} have models of different settings: one curve for each, please")
        _differ_in_seeds(same, f" of β = {beta}")
        points.append(_mean(same, [evaluate(run.model, x, beta, n_samples, seed) for run in same]))
    return curves.RDCurve(points)


def _differ_in_seeds(runs: Sequence[Any], which: str) -> None:
    """`ValueError` where runs that are to be averaged are not trainings of one thing with different seeds."""
    known = [run for run in runs if hasattr(run, "objective") and hasattr(run, "config")]
    for run in known[1:]:
        for what in ("objective", "config"):
            if _settings(getattr(run, what)) != _settings(getattr(known[0], what)):
                raise ValueError(f"the runs{which} differ in their {what}: one curve for each, please")
    seeds = [run.config.seed for run in known]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"two runs{which} have the same seed, {max(seeds, key=seeds.count)}: no spread of training is in them")


def _built(model: Any) -> Any:
    """What two models that differ in their seeds alone have in common: settings, how they print, and shapes of weights."""
    if not isinstance(model, nn.Module):
        return type(model), getattr(model, "config", None)
    shapes = [(name, value.shape) for name, value in model.state_dict().items() if isinstance(value, Tensor)]
    return type(model), getattr(model, "config", None), repr(model), shapes


def _settings(thing: Any) -> Any:
    """What two objectives, or two configs but for seed and device, are compared by."""
    values = getattr(thing, "__dict__", None)
    if not values:
        return thing
    return type(thing), {name: value for name, value in values.items() if name not in ("seed", "device")}


def _mean(runs: Sequence[Any], points: Sequence[curves.RDPoint]) -> curves.RDPoint:
    """The point of one run, or the mean of several, which keeps theirs, each with the seed that its run was trained with."""
    seeds = [getattr(getattr(run, "config", None), "seed", None) for run in runs]
    points = [replace(point, seed=seed) for point, seed in zip(points, seeds, strict=True)]
    return points[0] if len(points) == 1 else curves.RDPoint.mean_of(points)


def _model(run: Any) -> Any:
    """A run's model. A view of one β, or of grey levels, has a `model` too, whose curve is another one: it is itself."""
    return run.model if hasattr(run, "objective") and hasattr(run, "model") else run


def empirical_entropy(x: Float[Tensor, "..."]) -> float:
    """The entropy, in nats, of the distribution that puts weight 1/N on each of the N examples of x (N, *shape).

    It is log N if they are distinct. The bound D + R >= H needs it, for a decoder that is a probability mass on discrete data
    (Alemi et al. 2018). Raises `ValueError` for no examples.

    >>> import torch
    >>> from nbvae import estimators
    >>> round(estimators.empirical_entropy(torch.tensor([[0, 1], [0, 1], [1, 1], [0, 0]])), 4)  # ½ log 2 + ½ log 4
    1.0397
    """
    check_examples(x)
    counts = torch.unique(x.reshape(len(x), -1), dim=0, return_counts=True)[1].double()
    return -(counts / len(x) * (counts / len(x)).log()).sum().item()
