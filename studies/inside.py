"""A VAE looked into: the gap between log p(x) and its ELBO with its two parts, and the noise of its gradient from one draw."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nbvae import data, estimators, objectives, posterior, training
from nbvae.models.vae import normal
from nbvae.objectives.protocol import measuring
from nbvae.results import Estimate

STICKING = "sticking the landing"
STRAIGHT = "reparametrised"
GRADIENTS = ("score function", "score function, baseline", STRAIGHT, STICKING)


@dataclass(frozen=True)
class StickingTheLanding(objectives.Objective):
    """−ELBO from one draw, log q(z|x)/p(x, z), without the gradient through the parameters of log q (Roeder et al. 2017).

    What is left out is zero on average. Where q(z|x) is the true posterior the rest is zero at every draw.
    """

    def __call__(self, model: Any, x: Tensor, step: int = 0, reference: Tensor | None = None) -> objectives.Loss:
        x = x.to(model.prior().mean)
        q = model.posterior(x)
        z = q.rsample()
        mean, std = (part.detach() for part in posterior.mean_and_std(q))
        log_q = torch.distributions.Normal(mean, std, validate_args=False).log_prob(z).sum(-1)
        distortion = -model.likelihood(z).log_prob(x)
        rate = log_q - model.prior().log_prob(z)
        return objectives.Loss((distortion + rate).mean(-1), objectives.Terms(distortion, rate))


def gap_parts(model: Any, x: Tensor, samples: int, steps: int, seed: int) -> dict[str, Estimate]:
    """The gap log p(x) − ELBO of some images in nats, by importance sampling and by annealing, and its two parts.

    The approximation gap is what the best Gaussian with independent latents leaves of the larger of the two estimates, the
    amortisation gap what the encoder's own is worse than that one.
    """
    weighted = estimators.iwae(model, x, samples, seed=seed)
    annealed = estimators.ais(model, x, 4, steps, 2, seed=seed)
    own = estimators.gap(model, x, weighted, 500, seed=seed)
    best = best_gaussians(model, x, steps, seed)
    elbo = weighted.minus(own, paired=True)
    higher = weighted if weighted.value >= annealed.value else annealed
    return {
        "ELBO": elbo,
        "IWAE": weighted,
        "AIS": annealed,
        "AIS less IWAE": annealed.minus(weighted, paired=True),
        "gap": higher.minus(elbo, paired=True),
        "amortisation": best.minus(elbo, paired=True),
        "approximation": higher.minus(best, paired=True),
    }


def best_gaussians(model: Any, x: Tensor, steps: int, seed: int) -> Estimate:
    """The ELBO of each image under the best Gaussian for it, found by gradient steps from the encoder's; nats.

    The search ends at a local optimum, and the ELBO of each image is the higher one of that and the encoder's own.
    """
    prior = model.prior()
    x = x.to(prior.mean)
    with measuring(model), training.seeded(seed, prior.mean.device), torch.enable_grad():
        with torch.no_grad():
            first = posterior.mean_and_std(model.posterior(x))
        mean, log_std = first[0].clone().requires_grad_(), first[1].log().requires_grad_()
        optimiser = torch.optim.Adam([mean, log_std], lr=0.03)
        slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(steps):
            loss = -_elbo(model, x, normal(mean, log_std.exp()), 8).sum()
            optimiser.zero_grad()
            loss.backward(inputs=[mean, log_std])
            optimiser.step()
            slower.step()
        with torch.no_grad():
            found = []
            for q in (normal(mean, log_std.exp()), normal(*first)):
                with training.seeded(seed + 1, prior.mean.device):  # the same noise for both
                    found.append(torch.stack([_elbo(model, x, q, 25) for _ in range(20)]).mean(0))
    return Estimate.of(torch.maximum(*found))


def _elbo(model: Any, x: Tensor, q: Any, draws: int) -> Tensor:
    """The ELBO (batch,) of images under posteriors of their own, from some draws."""
    z = q.rsample((draws,))
    likely = model.likelihood(z.flatten(0, 1)).log_prob(x.repeat(draws, *[1] * (x.dim() - 1)))
    return likely.reshape(draws, -1).mean(0) - torch.distributions.kl_divergence(q, model.prior())


def bracket(model: Any, n_images: int, samples: int, steps: int, seed: int) -> tuple[Estimate, Estimate]:
    """log p(x) of images that the model drew, from below, and how far the estimate from above is over it; nats.

    Such an image comes with an exact draw from its posterior, from which annealing can run backwards (Grosse et al. 2015).
    """
    with torch.no_grad(), training.seeded(seed, model.prior().mean.device), measuring(model):
        codes = model.prior().sample((1, n_images))
        images = model.likelihood(codes[0]).sample()
    below = estimators.iwae(model, images, samples, seed=seed)
    above = estimators.ais(model, images, n_steps=steps, n_leapfrog=2, posterior_samples=codes, seed=seed)
    return below, above.minus(below, paired=True)


def gradient_noise(model: Any, ds: data.Dataset, batch: int, n_batches: int, n_draws: int, seed: int) -> dict[Any, float]:
    """The variance over draws of four estimates of the gradient of a batch's D + R, in the encoder's weights.

    Each is given as a ratio: "to the gradient", the squared norm of the gradient of the batch without that noise; "to batches",
    the variance of this gradient over batches. All variances are summed over weights, and what a finite number of draws adds to
    the two denominators is taken off. "agreement" is the squared distance of the mean of an estimate from the reparametrised
    one's, over what the noise of both allows: 1 on average for estimates of one gradient.
    """
    size = max(2, min(batch, len(ds.train) // n_batches))
    place = model.prior().mean.device
    with training.seeded(seed, place), measuring(model), torch.enable_grad():
        order = torch.randperm(len(ds.train))[: size * n_batches]
        batches = [ds.draw(part).to(model.prior().mean) for part in ds.train[order].split(size)]
        each = [_summary(gradients(model, x, n_draws)) for x in batches]
    means = {kind: torch.stack([one[kind]["mean"] for one in each]) for kind in GRADIENTS}
    variance = {kind: torch.stack([one[kind]["variance"] for one in each]).mean() for kind in GRADIENTS}
    left = variance[STRAIGHT] / n_draws
    signal = means[STRAIGHT].square().sum(1).mean() - left
    between = means[STRAIGHT].var(0).sum() - left
    found = {}
    for kind in GRADIENTS:
        found[kind, "to the gradient"] = (variance[kind] / signal).item()
        found[kind, "to batches"] = (variance[kind] / between).item()
        if kind != STRAIGHT:
            allowed = torch.stack([one[kind]["apart"] for one in each]) / n_draws
            found[kind, "agreement"] = ((means[kind] - means[STRAIGHT]).square().sum(1) / allowed).mean().item()
    return found


def _summary(each: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Of each estimate (draws, weights): its mean, its variance, and that of its difference from the reparametrised one."""
    return {
        kind: {
            "mean": value.mean(0, dtype=torch.float64),
            "variance": value.var(0).sum(dtype=torch.float64),
            "apart": (value - each[STRAIGHT]).var(0).sum(dtype=torch.float64),
        }
        for kind, value in each.items()
    }


def gradients(model: Any, x: Tensor, n_draws: int) -> dict[str, Tensor]:
    """Estimates (draws, weights) of the gradient of the mean D + R of x in the encoder's weights, by the names of them."""
    weights = list(model.encoder.parameters())
    with torch.no_grad():
        baseline = torch.stack([objectives.elbo_terms(model, x).distortion for _ in range(n_draws)]).mean(0)
    found: dict[str, list[Tensor]] = {kind: [] for kind in GRADIENTS}
    for _ in range(n_draws):
        q = model.posterior(x)
        z = q.rsample()
        distortion, rate = -model.likelihood(z).log_prob(x), torch.distributions.kl_divergence(q, model.prior())
        log_q, value = q.log_prob(z.detach()), distortion.detach()
        mean, std = (part.detach() for part in posterior.mean_and_std(q))
        stuck = normal(mean, std).log_prob(z) - model.prior().log_prob(z)
        losses = (value * log_q + rate, (value - baseline) * log_q + rate, distortion + rate, distortion + stuck)
        for kind, loss in zip(GRADIENTS, losses, strict=True):
            parts = torch.autograd.grad(loss.mean(), weights, retain_graph=True)
            found[kind].append(torch.cat([part.flatten() for part in parts]))
    return {kind: torch.stack(each) for kind, each in found.items()}
