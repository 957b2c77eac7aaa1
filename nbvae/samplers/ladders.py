"""Draws that go down a ladder of β, from coarse to fine."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributions

from nbvae import checks, posterior
from nbvae._measuring import check_model, rate_of
from nbvae._randomness import seeded
from nbvae._tensors import double, parts
from nbvae.models.vae import normal
from nbvae.samplers._base import Sampler, codes_of, decode, repeated
from nbvae.samplers._mixtures import Conditional, mixture


class Recursive(Sampler):
    """z ~ p(z) at the largest β, then decode and encode at each smaller β, `rounds` times; decoded at the smallest.

    - `model`: one model of many β, with `at(beta)`; or a list of models from coarse to fine.
    - `betas`: the ladder of the one model, in any order; None for a list.
    - `rounds`: how often each step encodes, >= 1.
    - `draw_x`: whether a draw from p(x|z) is encoded in place of the decoder's mean.

    The talk's heuristic: at the largest β the prior is close to the aggregate, and a coarse image should be a good start for a
    finer one. But decoder means are not data: each encoding sees an image smoother than any it was trained on. With `draw_x` it
    sees an image whose noise is not the data's either. Raises `ValueError` for fewer than two models.

    >>> from nbvae import models, samplers
    >>> many = models.MultiBetaVAE((1, 8, 8), 2, hidden=(8,))
    >>> samplers.Recursive(many, betas=[0.1, 1.0, 10.0]).sample(5).shape
    torch.Size([5, 1, 8, 8])
    """

    def __init__(self, model: Any, betas: Sequence[float] | None = None, rounds: int = 1, draw_x: bool = False):
        self.views = _ladder(model, betas)
        super().__init__(self.views[-1])
        self.rounds, self.draw_x = checks.whole("rounds", rounds), draw_x

    def _draw(self, n: int) -> Tensor:
        z = self.views[0].prior().sample((n,))
        for coarse, fine in zip(self.views, self.views[1:], strict=False):
            for view in (coarse, *[fine] * (self.rounds - 1)):
                x = decode(view, z, self.draw_x)
                z = torch.cat([fine.posterior(part).sample() for part in parts(x)])
        return z


class Chain(Sampler):
    """z ~ p(z) at the largest β, then z' ~ p(z'|z) from each β to the next smaller: densities that are learned from data.

    - `model`, `betas`: the ladder, as for `Recursive`.
    - `x`: the data (N, *shape) that the densities are learned from.
    - `n_components`: the number of Gaussians in each mixture, >= 1.
    - `draws`: how many pairs are drawn for each example, >= 1.
    - `seed`: the seed of the pairs and of the fits, < 2³².
    - `coupling`: how the codes of one example are drawn: "independent", or each coarse code as a noisy copy of the finer one,
      by "channel" (latent i of latent i) or by "matrix" (of all latents); see `posterior.Coupling`.

    p(z'|z) is the conditional of a Gaussian mixture fitted to pairs of codes of one x, with `n_components` full covariances:
    with one component linear and Gaussian, which is exact for linear models of Gaussian data. Each code alone has the law
    q(z|x) under every coupling. So if each conditional is exact, so is the marginal of each step, whatever the order of the
    chain: KL(q(z') ‖ chain) is at most KL(q(z) ‖ p(z)) at the largest β plus the mean KL of each conditional (chain rule).

    `views` are the models from coarse to fine, `couplings` those of neighbours. Raises `ValueError` for fewer pairs than the
    mixture needs, and for a coupling by channel of codes with different numbers of latents.

    >>> from nbvae import data, models, samplers
    >>> digits = data.load("digits")
    >>> many = models.MultiBetaVAE(digits.shape, 2, hidden=(8,))
    >>> chain = samplers.Chain(many, digits.train, betas=[1.0, 10.0], n_components=1, coupling="channel")
    >>> chain.sample(5).shape, chain.rates(digits.test).shape
    (torch.Size([5, 1, 8, 8]), torch.Size([2]))
    """

    def __init__(
        self,
        model: Any,
        x: Float[Tensor, "batch *shape"],
        betas: Sequence[float] | None = None,
        n_components: int = 10,
        draws: int = 5,
        seed: int = 0,
        coupling: posterior.Kind = "independent",
    ):
        self.views = _ladder(model, betas)
        super().__init__(self.views[-1])
        draws, seed = checks.whole("draws", draws), checks.seed("seed", seed, bits=32)
        codes = [codes_of(view, x, least=2) for view in self.views]
        self.coupling = coupling
        self.couplings = [posterior.Coupling.fit(*pair, coupling) for pair in itertools.pairwise(codes)]
        pairs = itertools.pairwise(each.flatten(0, 1) for each in self._together(codes, draws, seed))
        self.steps = [Conditional(mixture(torch.cat(pair, 1), n_components, seed), pair[0].shape[1]) for pair in pairs]

    def _draw(self, n: int) -> Tensor:
        z = self.views[0].prior().sample((n,))
        for step in self.steps:
            z = step.sample(z)
        return z

    def encode(self, x: Float[Tensor, "batch *shape"], seed: int = 0) -> list[Float[Tensor, "batch k"]]:
        """A code of each x at each β, from coarse to fine, drawn together as the chain's coupling has it.

        - `x`: the examples (batch, *shape).
        - `seed`: the seed of the draws, < 2³².
        """
        seed = checks.seed("seed", seed, bits=32)
        return [each[0] for each in self._together([codes_of(view, x) for view in self.views], 1, seed)]

    def given(self, step: int, z: Float[Tensor, "batch k"]) -> distributions.MixtureSameFamily:
        """p(z'|z) of one step, event shape (k',), in float64 on the CPU.

        - `step`: 0 for the step from the coarsest β to the next, and so on.
        - `z`: codes (batch, k) at the coarser β.

        Raises `ValueError` for a step that the ladder has not.
        """
        if checks.whole("step", step, minimum=0) >= len(self.steps):
            raise ValueError(f"the ladder has {len(self.steps)} steps, from 0; got {step}")
        return self.steps[step].law(z)

    def rates(self, x: Float[Tensor, "batch *shape"], draws: int = 5, seed: int = 0) -> Float[Tensor, " steps"]:
        """Nats that each stage of coding x in steps takes, from coarse to fine.

        - `x`: the examples (batch, *shape) that the rates are means over.
        - `draws`: the number of draws for each, >= 1.
        - `seed`: the seed of the draws, < 2³².

        First KL(q(z|x) ‖ p(z)) at the largest β, then E log q(z'|z, x) − log p(z'|z) for each step. The sum is what x costs if
        each code is sent given the one before. It is KL(q ‖ p) of all codes together, so it exceeds what the last code costs
        alone, under the chain's own density of it, by E KL(q ‖ p) of the others given the last (chain rule).
        """
        draws, seed = checks.whole("draws", draws), checks.seed("seed", seed, bits=32)
        codes = [codes_of(view, x) for view in self.views]
        stages = [rate_of(normal(*codes[0]), self.views[0].prior(), len(x)).cpu().double().mean()]
        codes = [(double(mean), double(std)) for mean, std in codes]
        every = self._together(codes, draws, seed)
        neighbours = zip(itertools.pairwise(codes), itertools.pairwise(every), strict=True)
        for step, coupling, ((coarse, fine), (z, new)) in zip(self.steps, self.couplings, neighbours, strict=True):
            log_q = coupling.log_prob(coarse, fine, z, new).cpu()
            stages.append((log_q - step.log_prob(new.flatten(0, 1), z.flatten(0, 1)).reshape(log_q.shape)).mean())
        return torch.stack(stages)

    def _together(self, codes: Sequence[Any], draws: int, seed: int) -> list[Float[Tensor, "draws batch k"]]:
        """Draws of the codes of each example at every β, from coarse to fine: the finest first, then what is a copy of it."""
        with seeded(seed, self.model.prior().mean.device):
            if self.coupling == "independent":
                return [repeated(code, draws) for code in codes]
            every = [repeated(codes[-1], draws)]
            for coupling, (coarse, fine) in zip(self.couplings[::-1], [*itertools.pairwise(codes)][::-1], strict=True):
                every.append(coupling.sample(coarse, fine, every[-1]))
        return every[::-1]


def _ladder(model: Any, betas: Sequence[float] | None) -> list[Any]:
    """Models from coarse to fine."""
    if betas is None:
        views = list(model) if isinstance(model, Sequence) else [model]
    elif not hasattr(model, "at"):
        check_model(model)  # a run, say
        raise ValueError(
            "betas are for a model with at(beta), as models.MultiBetaVAE; else give a list of models, coarse to fine"
        )
    else:
        betas = sorted((checks.positive("betas", beta) for beta in checks.listed("betas", betas)), reverse=True)
        if len(set(betas)) < len(betas):
            raise ValueError(f"betas must differ, got {', '.join(f'{beta:g}' for beta in betas)}")
        views = [model.at(beta) for beta in betas]
    for view in views:
        if not hasattr(view, "at"):
            check_model(view)
    if len(views) < 2 or any(hasattr(view, "at") for view in views):
        raise ValueError(
            "a ladder needs at least two βs of one model of many β, or a list of at least two models, coarse to fine"
        )
    return views
