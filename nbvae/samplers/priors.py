"""Priors that are learned by gradients on codes of data, as densities of z: pseudo-inputs, a flow, a diffusion."""

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributions, nn

from nbvae import checks
from nbvae._measuring import modules
from nbvae._randomness import seeded
from nbvae.posterior import mean_and_std
from nbvae.samplers._base import codes_of
from nbvae.samplers.densities import Density

_HELD, _LOOKS = 10, 40  # one example in so many is held out, and looked at so often
_BATCH = 256


class VampPrior(Density):
    """z ~ q(z|u) of a pseudo-input u, one of many that are learned: the VampPrior (Tomczak & Welling 2018), fitted afterwards.

    - `model`: the model that decodes, with a diagonal Gaussian posterior. It is not trained.
    - `x`: the data (N, *shape) whose aggregated posterior is learned, at least 20 examples.
    - `n_components`: the number of pseudo-inputs, at most N. They begin as examples.
    - `steps`, `lr`: of training, by Adam under a one-cycle schedule.
    - `seed`: the seed of choice, draws and order, < 2³².

    r(z) = Σ_j w_j q(z|u_j), with learned weights. What was best on a tenth of the examples, held out, is kept.

    >>> from nbvae import data, models, samplers
    >>> digits = data.load("digits")
    >>> vamp = samplers.VampPrior(models.VAE(digits.shape, 2, hidden=(8,)), digits.train, n_components=20, steps=10)
    >>> vamp.sample(5).shape
    torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        model: Any,
        x: Float[Tensor, "batch *shape"],
        n_components: int = 500,
        steps: int = 1000,
        lr: float = 3e-3,
        seed: int = 0,
    ):
        super().__init__(model)
        code = codes_of(model, x, least=2 * _HELD)
        if checks.whole("n_components", n_components) > len(x):
            raise ValueError(f"n_components must be at most the number of examples, {len(x)}; got {n_components}")
        inputs = nn.Module()

        def begin() -> nn.Module:
            chosen = torch.randperm(len(x))[:n_components]
            inputs.u = nn.Parameter(x[chosen.to(x.device)].to(code[0]).clone())
            inputs.log_weight = nn.Parameter(torch.zeros(n_components).to(code[0]))
            return inputs

        self.inputs: Any = inputs
        _learn(self, begin, lambda z: -self._log_prob(z), code, steps, lr, seed)

    def _components(self) -> tuple[Tensor, Tensor, Tensor]:
        mean, std = mean_and_std(self.model.posterior(self.inputs.u))
        return self.inputs.log_weight.log_softmax(0), mean, std

    def _log_prob(self, z: Tensor) -> Tensor:
        log_weight, mean, std = (each.to(z) for each in self._components())
        precise = std.square().reciprocal()
        square = z.square() @ precise.T - 2 * z @ (mean * precise).T + (mean.square() * precise).sum(1)
        constant = std.log().sum(1) + 0.5 * z.shape[1] * math.log(2 * math.pi)
        return (log_weight - constant - 0.5 * square).logsumexp(1)

    def _draw(self, n: int) -> Tensor:
        log_weight, mean, std = self._components()
        row = distributions.Categorical(logits=log_weight).sample((n,))
        return torch.normal(mean[row], std[row])


class Flow(Density):
    """z from a normalising flow: neural splines, autoregressive (Durkan et al. 2019), by the package zuko.

    - `model`: the model that decodes, with a diagonal Gaussian posterior. It is not trained.
    - `x`: the data (N, *shape) whose aggregated posterior is learned, at least 20 examples.
    - `transforms`: the number of maps one after another; `hidden`: the widths of the network in each.
    - `steps`, `lr`: of training, by Adam under a one-cycle schedule, with fresh draws of z in each step.
    - `seed`: the seed of weights, draws and order, < 2³².

    It is trained on codes with mean zero and variance one. What was best on a tenth of the examples, held out, is kept.

    >>> from nbvae import data, models, samplers
    >>> digits = data.load("digits")
    >>> flow = samplers.Flow(models.VAE(digits.shape, 2, hidden=(8,)), digits.train, hidden=(8,), steps=5)
    >>> flow.sample(5).shape
    torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        model: Any,
        x: Float[Tensor, "batch *shape"],
        transforms: int = 3,
        hidden: Sequence[int] = (64, 64),
        steps: int = 2000,
        lr: float = 2e-3,
        seed: int = 0,
    ):
        super().__init__(model)
        code = codes_of(model, x, least=2 * _HELD)
        transforms, k = checks.whole("transforms", transforms), code[0].shape[1]
        self.scaled = _Scaled(code)

        self.flow: Any = None

        def begin() -> nn.Module:
            self.flow = _flows().NSF(k, transforms=transforms, hidden_features=tuple(hidden)).to(code[0])
            return self.flow

        _learn(self, begin, lambda z: -self.flow().log_prob(self.scaled(z)), code, steps, lr, seed)

    def _log_prob(self, z: Tensor) -> Tensor:
        return self.flow().log_prob(self.scaled(z).to(self.scaled.centre)) - self.scaled.log_volume

    def _draw(self, n: int) -> Tensor:
        return self.scaled.back(self.flow().sample((n,)))


class Diffusion(Density):
    """z from a small diffusion model of the codes: noise is taken away in steps (Ho et al. 2020; Kingma et al. 2021).

    - `model`: the model that decodes, with a diagonal Gaussian posterior. It is not trained.
    - `x`: the data (N, *shape) whose aggregated posterior is learned, at least 20 examples.
    - `levels`: the number of steps in which z is drawn, from a log-signal-to-noise ratio of −6 to one of 10, evenly.
    - `hidden`: the widths of the network, which is told level and z and says what noise z holds.
    - `steps`, `lr`: of training, by Adam under a one-cycle schedule, with fresh draws of z in each step.
    - `seed`: the seed of weights, draws and order, < 2³².

    Codes have mean zero and variance one for it; before training it is the exact denoiser of a standard normal. Its `rate` is
    an upper bound: log r(z) is the ELBO of infinitely many steps, as of a hierarchical VAE, with a few levels drawn for each z.
    What was best on a tenth of the examples, held out, is kept.

    >>> from nbvae import data, models, samplers
    >>> digits = data.load("digits")
    >>> diffusion = samplers.Diffusion(models.VAE(digits.shape, 2, hidden=(8,)), digits.train, hidden=(8,), steps=5)
    >>> diffusion.sample(5).shape
    torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        model: Any,
        x: Float[Tensor, "batch *shape"],
        levels: int = 200,
        hidden: Sequence[int] = (128, 128),
        steps: int = 4000,
        lr: float = 2e-3,
        seed: int = 0,
    ):
        super().__init__(model)
        code = codes_of(model, x, least=2 * _HELD)
        self.scaled, k = _Scaled(code), code[0].shape[1]
        # log noise-to-signal at each level, from the cleanest; the noise is σ² = sigmoid of it.
        self.gamma = torch.linspace(-10.0, 6.0, checks.whole("levels", levels, minimum=2) + 1).to(code[0])

        self.network: Any = None

        def begin() -> nn.Module:
            widths = [k + len(_FREQUENCIES) * 2, *hidden, k]
            layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.SiLU())]
            self.network = nn.Sequential(*layers[:-1]).to(code[0])
            nn.init.zeros_(self.network[-1].weight)
            nn.init.zeros_(self.network[-1].bias)
            return self.network

        _learn(self, begin, lambda z: -self._bound(self.scaled(z), 1), code, steps, lr, seed)

    def _noise(self, noisy: Float[Tensor, "n k"], gamma: Float[Tensor, " n"]) -> Float[Tensor, "n k"]:
        """What noise is expected in codes of these levels."""
        angle = gamma.unsqueeze(1) * torch.tensor(_FREQUENCIES).to(gamma)
        told = torch.cat([noisy, angle.sin(), angle.cos()], 1)
        return gamma.sigmoid().sqrt().unsqueeze(1) * noisy + self.network(told)

    def _bound(self, u: Float[Tensor, "n k"], draws: int) -> Float[Tensor, " n"]:
        """The ELBO of scaled codes: `draws` levels for each z stand for all of them (Kingma et al. 2021).

        The levels of all z together are spread evenly. And the exact denoiser of a standard normal, whose error is known in the
        mean, is measured with the same noise: what the network does otherwise has less of it.
        """
        (first, last), k = self.gamma[[0, -1]], u.shape[1]
        # The last level against N(0, I), and the clean code given the first.
        signal, noise = (-last).sigmoid(), last.sigmoid()
        prior = 0.5 * (signal * u.square() + noise - 1 - noise.log()).sum(1)
        clean = 0.5 * k * (math.log(2 * math.pi) + 1 + first)
        between = torch.zeros_like(prior)
        for _ in range(draws):
            spread = (torch.rand(()) + torch.randperm(len(u)) / len(u)) % 1
            gamma = first + (last - first) * spread.to(u)
            epsilon, signal, noise = torch.randn_like(u), (-gamma).sigmoid(), gamma.sigmoid()
            noisy = signal.sqrt().unsqueeze(1) * u + noise.sqrt().unsqueeze(1) * epsilon
            missed = (epsilon - self._noise(noisy, gamma)).square().sum(1)
            plain = (epsilon - noise.sqrt().unsqueeze(1) * noisy).square().sum(1)
            known = signal.square() * k + noise * signal * u.square().sum(1)
            between = between + 0.5 * (last - first) * (missed - plain + known) / draws
        return -(prior + clean + between)

    def _log_prob(self, z: Tensor) -> Tensor:
        return self._bound(self.scaled(z).to(self.scaled.centre), 40) - self.scaled.log_volume

    def _draw(self, n: int) -> Tensor:
        u = torch.randn(n, self.scaled.centre.shape[0]).to(self.gamma)
        for t in range(len(self.gamma) - 1, 0, -1):
            gamma, cleaner = self.gamma[t], self.gamma[t - 1]
            share = -torch.expm1(cleaner - gamma)
            expected = u - gamma.sigmoid().sqrt() * share * self._noise(u, gamma.expand(n))
            scale = ((-cleaner).sigmoid() / (-gamma).sigmoid()).sqrt()
            u = scale * expected + (cleaner.sigmoid() * share).sqrt() * torch.randn_like(u)
        u = u / (-self.gamma[0]).sigmoid().sqrt()
        return self.scaled.back(u + (0.5 * self.gamma[0]).exp() * torch.randn_like(u))


def _flows() -> Any:
    """The flows of zuko, whose import turns off the checks of all of torch's distributions: they are put back."""
    checked = distributions.Distribution._validate_args
    try:
        import zuko
    finally:
        distributions.Distribution._validate_args = checked
    return zuko.flows


_FREQUENCIES = (0.1, 0.2, 0.4, 0.8)


class _Scaled:
    """Codes with mean zero and variance one in each latent, and back."""

    def __init__(self, code: tuple[Tensor, Tensor]):
        mean, std = code
        self.centre = mean.mean(0)
        self.scale = (mean.var(0, correction=0) + std.square().mean(0)).sqrt()
        self.log_volume = self.scale.log().sum().item()

    def __call__(self, z: Tensor) -> Tensor:
        return (z - self.centre.to(z)) / self.scale.to(z)

    def back(self, u: Tensor) -> Tensor:
        return u * self.scale.to(u) + self.centre.to(u)


def _learn(
    density: Any,
    begin: Callable[[], nn.Module],
    loss: Callable[[Tensor], Tensor],
    code: tuple[Tensor, Tensor],
    steps: int,
    lr: float,
    seed: int,
) -> None:
    """Minimise a loss of codes over what `begin` makes, and keep what is best on a tenth of the examples."""
    steps, lr, seed = checks.whole("steps", steps), checks.positive("lr", lr), checks.seed("seed", seed, bits=32)
    mean, std = code
    place = mean.device
    frozen = [(module, module.training) for module in modules(density.model)]
    # Training takes gradients, also where the caller has switched them off.
    with seeded(seed, place), torch.inference_mode(False), torch.enable_grad():
        module = begin()
        mean, std = mean.clone(), std.clone()
        order = torch.randperm(len(mean), device=place)
        held, kept = order[: len(mean) // _HELD], order[len(mean) // _HELD :]
        test = torch.normal(mean[held].repeat(_HELD, 1), std[held].repeat(_HELD, 1))
        parameters = list(module.parameters())
        adam = torch.optim.Adam(parameters, lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, lr, total_steps=steps + 1)
        best, state = math.inf, copy.deepcopy(module.state_dict())
        try:
            for each, _ in frozen:
                each.training = False
            for step in range(steps + 1):
                if step % max(1, steps // _LOOKS) == 0 or step == steps:
                    found = _held_out(loss, test, seed, place)
                    if found < best:
                        best, state = found, copy.deepcopy(module.state_dict())
                rows = kept[torch.randint(len(kept), (_BATCH,), device=place)]
                value = loss(torch.normal(mean[rows], std[rows])).mean()
                # Of these parameters alone: the model's own keep whatever gradient they have.
                for parameter, grad in zip(parameters, torch.autograd.grad(value, parameters), strict=True):
                    parameter.grad = grad
                nn.utils.clip_grad_norm_(parameters, 10.0)
                adam.step()
                schedule.step()
        finally:
            for each, was in frozen:
                each.training = was
        module.load_state_dict(state)
        module.eval().requires_grad_(False)


def _held_out(loss: Callable[[Tensor], Tensor], z: Tensor, seed: int, place: torch.device) -> float:
    """The mean loss, with the same draws each time; infinite where training has gone astray."""
    with torch.no_grad(), seeded(seed, place):
        value = loss(z).mean().item()
    return value if math.isfinite(value) else math.inf
