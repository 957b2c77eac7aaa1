"""Six ways to draw images from a trained model: they differ in where z comes from, and share the decoder.

`sampler.sample(n, generator)` -> n decoder means (n, *shape), as `likelihood(z).mean`; `sampler.codes(n)` -> the z behind them.
A sampler whose q(z) is nearer to the aggregated posterior gives images nearer to those that the model reconstructs: decoded,
two distributions of z are at most as far apart as they were (data processing).

Models are anything with `posterior(x)`, `likelihood(z)` and `prior()`. Draws take from `generator`, or from torch's global
stream.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from sklearn.mixture import GaussianMixture
from torch import Tensor

from nbvae import checks, data, models, objectives, posterior, training
from nbvae._measuring import check_model, measuring, rate_of
from nbvae._randomness import seeded
from nbvae._tensors import double, parts
from nbvae.models.vae import normal
from nbvae.objectives import check_data
from nbvae.posterior import encode
from nbvae.training import calibration

__all__ = ["Aggregate", "Chain", "Mixture", "Prior", "Recursive", "Sampler", "SecondStage"]


class Sampler:
    """Draws of z, decoded by one model: subclasses say where z comes from, `_draw(n)` -> (n, k) on the model's device.

    The models of a sampler are in evaluation mode while they are fitted to, drawn from and decoded, and left as they were.
    """

    def __init__(self, model: Any):
        check_model(model)
        self.model = model

    def codes(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n k"]:
        """n draws of z, (n, k), from `generator`, or from torch's global stream without one."""
        n = checks.whole("n", n)
        if not isinstance(generator, torch.Generator | None):
            raise ValueError(
                f"generator must be a torch.Generator, or None for the global stream, got {checks.short(generator)}"
            )
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device if generator else None))
        with measuring(self), seeded(seed, self.model.prior().mean.device):
            return self._draw(n)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n *shape"]:
        """n decoder means, (n, *shape), from `generator`, or from torch's global stream without one."""
        z = self.codes(n, generator)
        with measuring(self):
            return _decode(self.model, z)

    def _draw(self, n: int) -> Tensor:
        raise NotImplementedError


class Prior(Sampler):
    """z ~ p(z): what the model was trained for, and as good as q(z) is near to p(z).

    `model` is any with `posterior(x)`, `likelihood(z)` and `prior()`; `ValueError` for one of many β.

    >>> from nbvae import models, samplers
    >>> samplers.Prior(models.VAE((1, 8, 8), 2, hidden=(8,))).sample(5).shape
    torch.Size([5, 1, 8, 8])
    """

    def _draw(self, n: int) -> Tensor:
        return self.model.prior().sample((n,))


class Aggregate(Sampler):
    """z ~ q(z|x) of a random row of x: the aggregated posterior itself. It is no generative model, as it needs the data.

    `model` has a diagonal Gaussian posterior, and `x` (N, *shape) at least two rows. What a perfect model of q(z) could reach,
    and the reference for the others.

    >>> from nbvae import data, models, samplers
    >>> digits = data.load("digits")
    >>> samplers.Aggregate(models.VAE(digits.shape, 2, hidden=(8,)), digits.train).sample(5).shape
    torch.Size([5, 1, 8, 8])
    """

    def __init__(self, model: Any, x: Float[Tensor, "batch *shape"]):
        super().__init__(model)
        self.mean, self.std = _codes(model, x, least=2)

    def _draw(self, n: int) -> Tensor:
        row = torch.randint(len(self.mean), (n,), device=self.mean.device)
        return torch.normal(self.mean[row], self.std[row])


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
                x = _decode(view, z, self.draw_x)
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
        codes = [_codes(view, x, least=2) for view in self.views]
        self.coupling = coupling
        self.couplings = [posterior.Coupling.fit(*pair, coupling) for pair in itertools.pairwise(codes)]
        pairs = itertools.pairwise(each.flatten(0, 1) for each in self._together(codes, draws, seed))
        self.steps = [_Conditional(_mixture(torch.cat(pair, 1), n_components, seed), pair[0].shape[1]) for pair in pairs]

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
        return [each[0] for each in self._together([_codes(view, x) for view in self.views], 1, seed)]

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
        codes = [_codes(view, x) for view in self.views]
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
                return [_repeated(code, draws) for code in codes]
            every = [_repeated(codes[-1], draws)]
            for coupling, (coarse, fine) in zip(self.couplings[::-1], [*itertools.pairwise(codes)][::-1], strict=True):
                every.append(coupling.sample(coarse, fine, every[-1]))
        return every[::-1]


class Mixture(Sampler):
    """z from a mixture of Gaussians with full covariances that is fitted to draws of q(z).

    - `model`: the model that decodes, with a diagonal Gaussian posterior.
    - `x`: the data (N, *shape) whose aggregated posterior is fitted.
    - `n_components`: the number of Gaussians, >= 1.
    - `draws`: how many z are drawn for each example, >= 1.
    - `seed`: the seed of the draws and of the fit, < 2³².

    Raises `ValueError` for fewer draws than the mixture needs.

    >>> from nbvae import data, models, samplers
    >>> digits = data.load("digits")
    >>> mixture = samplers.Mixture(models.VAE(digits.shape, 2, hidden=(8,)), digits.train, n_components=2, draws=1)
    >>> mixture.sample(5).shape
    torch.Size([5, 1, 8, 8])
    """

    def __init__(self, model: Any, x: Float[Tensor, "batch *shape"], n_components: int = 10, draws: int = 5, seed: int = 0):
        super().__init__(model)
        draws, seed = checks.whole("draws", draws), checks.seed("seed", seed, bits=32)
        with seeded(seed, model.prior().mean.device):
            z = _draws(model, x, draws)
        self.fitted = _Conditional(_mixture(z, n_components, seed), 0)

    def rate(self, x: Float[Tensor, "batch *shape"], draws: int = 5, seed: int = 0) -> float:
        """E log q(z|x) − log mixture(z), nats: what an example costs if the mixture takes the prior's place.

        - `x`: the examples (batch, *shape) that the rate is a mean over.
        - `draws`: the number of draws for each, >= 1.
        - `seed`: the seed of the draws, < 2³².
        """
        posterior = normal(*map(double, _codes(self.model, x)))
        with seeded(checks.seed("seed", seed, bits=32), self.model.prior().mean.device):
            z = posterior.sample((checks.whole("draws", draws),))
        flat = z.flatten(0, 1)
        return (posterior.log_prob(z).cpu().flatten() - self.fitted.log_prob(flat, flat[:, :0])).mean().item()

    def _draw(self, n: int) -> Tensor:
        return self.fitted.sample(self.model.prior().sample((n,))[:, :0])


class SecondStage(Sampler):
    """z from a second VAE that is trained on draws of q(z) (Dai & Wipf 2019).

    - `model`: the model that decodes, with a diagonal Gaussian posterior.
    - `x`: the data (N, *shape) whose aggregated posterior is learned.
    - `config`: how the second VAE is trained, a `training.TrainConfig`; by default for 30 epochs.
    - `hidden`: the widths of its hidden layers.
    - `draws`: how many z are drawn for each example, >= 1.
    - `seed`: the seed of draws, weights and training, < 2³². It takes the place of `config`'s.

    The second VAE has as many latents as z, so that it can learn any density of full dimension, and a learned σ.

    >>> from nbvae import data, models, samplers, training
    >>> digits = data.load("digits")
    >>> model, config = models.VAE(digits.shape, 2, hidden=(8,)), training.TrainConfig(epochs=1)
    >>> samplers.SecondStage(model, digits.train[:200], config, hidden=(8,), draws=1).sample(5).shape
    torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        model: Any,
        x: Float[Tensor, "batch *shape"],
        config: training.TrainConfig | None = None,
        hidden: Sequence[int] = (128, 128),
        draws: int = 5,
        seed: int = 0,
    ):
        super().__init__(model)
        if not isinstance(config, training.TrainConfig | None):
            raise ValueError(f"config must be a training.TrainConfig, or None for the default, got {checks.short(config)}")
        seed, place = checks.seed("seed", seed, bits=32), model.prior().mean.device
        config = config or training.TrainConfig(epochs=30, batch_size=256, lr=3e-3, schedule="one_cycle")
        # Training takes gradients, also where the caller has switched them off.
        with seeded(seed, place), torch.inference_mode(False), torch.enable_grad():
            z = _draws(model, x, checks.whole("draws", draws)).cpu().float()
            # Standardised, for the second model's first layer; undone in `_draw`.
            self.centre, self.scale = z.mean(0), z.std(0).clamp(min=1e-6)
            z = (z - self.centre) / self.scale
            codes = data.Dataset("codes", z, z, z)
            second = models.VAE(codes.shape, z.shape[1], likelihood="gaussian", sigma="global", hidden=hidden)
            # Where the aggregate is white, β = 1 is the collapse threshold of a learned σ, λ_1/mean λ: start well below it.
            calibration.observation_with_sigma(second).set_variance(torch.tensor(0.25))  # pyright: ignore[reportOptionalMemberAccess]
            training.fit(second, codes, objectives.VAE(), replace(config, seed=seed, device=place.type))
        self.second = second

    def _draw(self, n: int) -> Tensor:
        z = self.second.likelihood(self.second.prior().sample((n,))).sample()
        return z * self.scale.to(z) + self.centre.to(z)


class _Conditional:
    """Draws of the last latents given the first `given`, of a Gaussian mixture over both, in float64."""

    def __init__(self, mixture: GaussianMixture, given: int):
        weight, mean, cov = (
            torch.from_numpy(getattr(mixture, name)).double() for name in ("weights_", "means_", "covariances_")
        )
        self.log_weight, self.mean = weight.log(), mean
        self.given = given
        a, across, b = cov[:, :given, :given], cov[:, given:, :given], cov[:, given:, given:]
        self.root_a = torch.linalg.cholesky(a)
        self.gain = torch.cholesky_solve(across.mT, self.root_a).mT  # of z − its mean, (components, k', k)
        self.root = torch.linalg.cholesky(b - self.gain @ across.mT)

    def sample(self, z: Float[Tensor, "n given"]) -> Float[Tensor, "n k"]:
        log_weight, mean = self._given(z)
        chosen = torch.distributions.Categorical(logits=log_weight).sample()
        mean = mean[torch.arange(len(z)), chosen]
        noise = torch.randn(mean.shape, dtype=mean.dtype).unsqueeze(-1)
        return (mean + (self.root[chosen] @ noise).squeeze(-1)).to(z)

    def log_prob(self, new: Float[Tensor, "n k"], z: Float[Tensor, "n given"]) -> Float[Tensor, " n"]:
        log_weight, mean = self._given(z)
        apart = (new.double().cpu().unsqueeze(1) - mean).movedim(0, -1)
        log_density = _log_normal(apart, self.root).T - 0.5 * new.shape[1] * math.log(2 * math.pi)
        return (log_weight.log_softmax(1) + log_density).logsumexp(1)

    def _given(self, z: Tensor) -> tuple[Float[Tensor, "n components"], Float[Tensor, "n components k"]]:
        """Of each component, given z: the logarithm of its weight but for a constant, and the mean of the rest."""
        apart = z.double().cpu().unsqueeze(1) - self.mean[:, : self.given]  # (n, components, k)
        log_weight = self.log_weight + _log_normal(apart.movedim(0, -1), self.root_a).T
        return log_weight, self.mean[:, self.given :] + torch.einsum("cij,ncj->nci", self.gain, apart)


def _log_normal(apart: Float[Tensor, "components k n"], root: Float[Tensor, "components k k"]) -> Float[Tensor, "components n"]:
    """Log-densities at these differences from the means, without the factor (2π)^(−k/2)."""
    white = torch.linalg.solve_triangular(root, apart, upper=False)
    return -0.5 * white.square().sum(1) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)


def _mixture(z: Tensor, n_components: int, seed: int) -> GaussianMixture:
    n_components = checks.whole("n_components", n_components)
    if len(z) < n_components * (z.shape[1] + 1):
        raise ValueError(
            f"{n_components} components of {z.shape[1]} dimensions need at least {n_components * (z.shape[1] + 1)} draws, "
            f"got {len(z)}: give more examples or draws, or fewer components"
        )
    return GaussianMixture(n_components, random_state=seed).fit(z.double().cpu().numpy())


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


def _codes(model: Any, x: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    check_data(model, x, least)
    return encode(model, x)


def _repeated(code: tuple[Tensor, Tensor], draws: int) -> Float[Tensor, "draws n k"]:
    mean, std = (each.expand(draws, *each.shape) for each in code)
    return torch.normal(mean, std)


def _draws(model: Any, x: Tensor, draws: int) -> Float[Tensor, "n_draws k"]:
    """`draws` draws of q(z|x) for each x, example by example within each draw."""
    return _repeated(_codes(model, x, least=2), draws).flatten(0, 1)


def _decode(model: Any, z: Float[Tensor, "n k"], draw: bool = False) -> Float[Tensor, "n *shape"]:
    size = model.likelihood(z[:1]).mean.numel()
    likelihoods = map(model.likelihood, parts(z, size=size))
    return torch.cat([each.sample() if draw else each.mean for each in likelihoods])
