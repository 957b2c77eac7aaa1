"""Codes of one image at two β that are drawn together, and decoders that are asked to agree on them: see `studies.coupled`."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributions

from nbvae import objectives, posterior
from nbvae._randomness import streams

INDEPENDENT, COPY, SAME = DRAWS = ("independent", "copy", "same noise")


@dataclass(frozen=True)
class Pairs(objectives.Objective):
    """½ E [β^(−p) (D + βR + wC) + β′^(−p) (D′ + β′R′)], log β uniform over the model's range and β′ = β/r.

    Each batch has one β in each of as many parts of the range as it has examples, as in `objectives.MultiBeta`. Where β/r is
    below the range, β′ is as far below its upper end. So log β′ is uniform, too, and with w = 0 this is `MultiBeta(p)`, in the
    mean. Such β are no neighbours: their codes are independent, and without C.

    - `power`: p.
    - `ratio`: r.
    - `draws`: how z is drawn beside z′, one of `DRAWS`; `correlation` has what that means.
    - `weight`: w.
    """

    power: float
    ratio: float
    draws: str
    weight: float = 0.0

    def __call__(self, model: Any, x: Tensor, step: int = 0, reference: Tensor | None = None) -> objectives.Loss:
        prior, n = model.prior(), len(x)
        x = x.to(prior.mean)
        low, high = (math.log(beta) for beta in model.beta_range)
        uniform = streams(model, x.device).uniform((n + 1,), x)
        part = (torch.arange(n, dtype=x.dtype, device=x.device) + (uniform[:1] * n).floor()) % n
        coarse = low + (part + uniform[1:]) * ((high - low) / n)
        fine = coarse - math.log(self.ratio)
        near = (fine >= low).to(x)
        log_beta = torch.cat([coarse, fine + (1 - near) * (high - low)])
        condition = model.condition(log_beta.unsqueeze(-1))
        x = torch.cat([x, x])
        q = model.encode(x, condition)
        mean, std = posterior.mean_and_std(q)
        own, other = ((q.rsample() - mean) / std).detach().split(n)
        tied = near.unsqueeze(-1) * correlation(self.draws, *std.detach().split(n))
        z = mean + std * torch.cat([tied * other + (1 - tied.square()).sqrt() * own, other])
        outputs = model.outputs(z, condition)
        distortion = -model.observation(outputs).log_prob(x)
        rate = distributions.kl_divergence(q, prior)
        loss = (-self.power * log_beta).exp() * (distortion + log_beta.exp() * rate)
        total = 0.5 * (loss[:n] + loss[n:])
        if self.draws != INDEPENDENT:
            said, target = (model.observation(each) for each in (outputs[:n], outputs[n:].detach()))
            total = total + 0.5 * self.weight * near * (-self.power * coarse).exp() * disagreement(target, said)
        return objectives.Loss(total, objectives.Terms(distortion[:n], rate[:n]))


def correlation(draws: str, coarse: Tensor, fine: Tensor) -> Tensor:
    """The correlation ρ, for each latent, of the noise (z − m)/s of the coarse code with that of the fine one.

    - `draws`: "independent", 0; "same noise", 1; "copy": what `posterior.Coupling` has by channel, with the gain that two β of
      the linear VAE have. There the means are m = a m′ with a² = (1 − s²)/(1 − s′²), and z is a copy of z′ where ρ = a s′/s. So
      ρ² is the ratio of 1/s² − 1, which is signal over noise, of the two codes. No gain has to be searched for at each step.
    - `coarse`, `fine`: s and s′, the standard deviations (n, k) of the two posteriors.
    """
    if draws == INDEPENDENT:
        return torch.zeros_like(coarse)
    if draws == SAME:
        return torch.ones_like(coarse)
    told, fine_told = (((1 - std.square()).clamp(min=1e-6)) / std.square() for std in (coarse, fine))
    return (told / fine_told).clamp(max=1).sqrt()


def disagreement(target: Any, said: Any) -> Tensor:
    """log p(x′|z′) − log p(x′|z) at the mean x′ of the target p(x|z′), nats: their KL divergence, for the two families here."""
    return target.log_prob(target.mean) - said.log_prob(target.mean)
