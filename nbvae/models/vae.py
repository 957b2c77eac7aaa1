"""Variational autoencoders as three distributions: `posterior(x)`, `likelihood(z)`, `prior()`. No losses here."""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import ArrayLike
from torch import Tensor, distributions, nn

from nbvae import checks
from nbvae.models import likelihoods, networks


class VAE(nn.Module):
    """Encoder q(z|x) = N(μ(x), diag σ²(x)), decoder p(x|z) and prior p(z) = N(0, I) (Kingma & Welling 2013).

    Parameters are drawn from torch's global stream: call `torch.manual_seed` first.

    - `shape`: shape of one example, `ds.shape`.
    - `latent_dim`: the number k of latents, at least 1.
    - `network`: "linear" (mean and decoder linear, posterior variance constant), "mlp" (the default), or for images "conv" and
      "residual".
    - `likelihood`: "bernoulli" (0/1 data), "gaussian", "continuous_bernoulli" (values in [0, 1]), "discretized_gaussian" or
      "discretized_logistic" (`levels` grey values).
    - `sigma`, of the Gaussian and the discretised ones: a fixed standard deviation > 0 (default 1), or how it is learned:
      "global", "optimal" (Gaussian only), "z" or "z_diag". `nbvae.models.likelihoods` describes them.
    - `levels`, of the discretised ones: the data have the values j/(levels − 1), 256 by default and at least 2.
    - `hidden`: widths of the hidden layers from the data inwards, the decoder's reversed; by default (128,) for up to 256
      inputs and (400, 400) above. Of "conv" and "residual" the channels after each halving of the image, by default (32, 64)
      and (64, 128, 256); with 32 latents on 28 × 28 these have 1.8 million weights.
    - `encoder`: a network of one's own, a torch module that takes x (batch, *shape) and returns mean and log-variance, each
      (batch, k), or both in one tensor (batch, 2k), the mean in front.
    - `decoder`: a network of one's own, a torch module that takes z (batch, k) and returns what the likelihood takes: logits
      or locations (batch, *shape) or flat (batch, n), and for a σ of z what is in `likelihoods`' table, flat or one behind the
      other along the first dimension of `shape`.

    Where one of the two is given, `network` and `hidden` describe the other. A network is called with rows only: further
    leading dimensions of x or z are counted as one. What it returns is checked at each call, and not before: a trial run would
    move the statistics of a batch norm. Attributes: `encoder`, `decoder`, and `observation`, the module of
    `nbvae.models.likelihoods` that makes a distribution of the decoder's output; `config`, the arguments that build such a
    model again, or None where networks were given.

    Raises `ValueError` with what is allowed for any other argument, for networks in `network` or `hidden` where both are
    given, and at a call for a network that returns another shape.

    >>> model = VAE((1, 8, 8), latent_dim=2, likelihood="gaussian", sigma=0.3)
    >>> x = torch.rand(5, 1, 8, 8)
    >>> z = model.posterior(x).rsample()
    >>> tuple(z.shape), tuple(model.likelihood(z).log_prob(x).shape)
    ((5, 2), (5,))
    >>> own = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten(), nn.Linear(3, 4))
    >>> tuple(VAE((1, 8, 8), latent_dim=2, encoder=own).posterior(x).mean.shape)
    (5, 2)
    """

    prior_mean: Tensor
    prior_std: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        latent_dim: int = 8,
        network: str | None = None,
        likelihood: str = "bernoulli",
        *,
        sigma: float | str | None = None,
        levels: int | None = None,
        hidden: Sequence[int] | None = None,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ):
        super().__init__()
        self.shape = checks.wholes("shape", shape)
        if not self.shape:
            raise ValueError(f"shape must be the shape of one example, such as (1, 8, 8); got {checks.short(shape)}")
        self.latent_dim = checks.whole("latent_dim", latent_dim)
        own = {"encoder": encoder, "decoder": decoder}
        own = {name: networks.given(name, module) for name, module in own.items() if module is not None}
        if len(own) == 2 and (network is not None or hidden is not None):
            raise ValueError("network and hidden describe networks of the library: leave them out, or encoder or decoder")
        network = "mlp" if network is None else network
        checks.choice("network", network, networks.NETWORKS)
        n = math.prod(self.shape)
        hidden = networks.default_hidden(network, n) if hidden is None else checks.wholes("hidden", hidden)
        self.observation = likelihoods.make(likelihood, self.shape, sigma, levels)
        self.network = None if own else network
        self.config: dict[str, Any] | None = None
        if not own:
            self.config = {
                "shape": self.shape,
                "latent_dim": self.latent_dim,
                "network": network,
                "likelihood": likelihood,
                "sigma": sigma if sigma is None or isinstance(sigma, str) else checks.positive("sigma", sigma),
                "levels": None if levels is None else int(levels),
                "hidden": hidden,
            }
        # Modules, so that whoever asks of what parts a model is made finds that some are called with rows only.
        self.encode_rows = networks.EncodeRows(len(self.shape), self.latent_dim) if "encoder" in own else None
        self.decode_rows = networks.DecodeRows(self.shape, self.observation.n_outputs) if "decoder" in own else None
        self._build(network, hidden, **own)
        self.register_buffer("prior_mean", torch.zeros(self.latent_dim), persistent=False)
        self.register_buffer("prior_std", torch.ones(self.latent_dim), persistent=False)
        _follow(self, list(own.values()))

    def posterior(self, x: Shaped[Tensor, "*batch"]) -> distributions.Independent:
        """q(z|x) for x (*batch, *shape): event shape (latent_dim,).

        x is converted to the model's precision, whole numbers and booleans too. Raises `ValueError` for anything but a tensor
        of real numbers in that shape, with at least one example, on the model's device.
        """
        encode = self.encode_rows
        mean, log_variance = self.encoder(self._flat(x)) if encode is None else encode(self.encoder, self._data(x))
        return normal(mean, (0.5 * log_variance).exp())

    def likelihood(self, z: Shaped[Tensor, "*batch k"]) -> distributions.Independent:
        """p(x|z) for z (*batch, latent_dim): event shape `shape`; its `.mean` is the reconstruction.

        z is converted, and refused, as x is by `posterior`.
        """
        z, decode = self._code(z), self.decode_rows
        return self.observation(self.decoder(z) if decode is None else decode(self.decoder, z))

    def prior(self) -> distributions.Independent:
        """p(z) = N(0, I), event shape (latent_dim,)."""
        return normal(self.prior_mean, self.prior_std)

    def check(self, x: Shaped[Tensor, "*batch"]) -> None:
        """Raise `ValueError` unless x (batch, *shape) is data that this model's likelihood is a likelihood for.

        x may be on any device, and of any type of real numbers.

        >>> VAE((4,), likelihood="bernoulli").check(torch.tensor([[0, 1, 1, 0]]))
        """
        _real("x", x)
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"the model is for examples of shape {self.shape}, the data have {tuple(x.shape[1:])}")
        self.observation.check(x)

    def linear_maps(self) -> dict[str, Float[np.ndarray, "..."]]:
        """The weights of a "linear" network under the names of `analytic.linear_elbo_terms`, which gives its exact R and MSE.

        encoder (k, n), encoder_bias (k,), variance (k,), decoder (n, k), decoder_bias (n,), in float64, x flattened to n
        dimensions. `from_linear` makes a model of them again. Raises `ValueError` for any other network.

        >>> maps = VAE((6,), latent_dim=2, network="linear").linear_maps()
        >>> {name: value.shape for name, value in maps.items()}
        {'encoder': (2, 6), 'encoder_bias': (2,), 'variance': (2,), 'decoder': (6, 2), 'decoder_bias': (6,)}
        """
        if self.network != "linear":
            raise ValueError(f"only network='linear' has linear maps, this model's is {self.network or 'one of its own'!r}")
        n = math.prod(self.shape)  # behind it σ(z) may follow
        state = {name: value.double().cpu().numpy() for name, value in self.state_dict().items()}
        return {
            "encoder": state["encoder.mean.weight"],
            "encoder_bias": state["encoder.mean.bias"],
            "variance": state["encoder.unit_variance"] * np.exp(state["encoder.log_variance"]),
            "decoder": state["decoder.0.weight"][:n],
            "decoder_bias": state["decoder.0.bias"][:n],
        }

    @classmethod
    def from_linear(
        cls,
        *,
        encoder: ArrayLike,
        variance: ArrayLike,
        decoder: ArrayLike,
        encoder_bias: ArrayLike | None = None,
        decoder_bias: ArrayLike | None = None,
        shape: Sequence[int] | None = None,
        likelihood: str = "gaussian",
        sigma: float | str | None = None,
        levels: int | None = None,
    ) -> Self:
        """A model with network "linear" and these weights: q(z|x) = N(Vx + a, diag v), decoded Wz + b.

        The inverse of `linear_maps`, whose values it holds exactly: the model is in float64, and `.float()` rounds it. An
        optimum of `analytic.LinearGaussian` becomes a model in this way.

        - `encoder`: V (k, n), for x flattened to n dimensions; `encoder_bias`: a (k,), default 0.
        - `variance`: v (k,), above zero.
        - `decoder`: W (n, k); `decoder_bias`: b (n,), default 0.
        - `shape`: shape of one example, with the product n; (n,) by default.
        - `likelihood`, `sigma`, `levels`: as for any model; of a `sigma` that depends on z, log σ starts at 0.

        Raises `ValueError` where a shape does not fit, a value is not finite or a variance is not above zero.

        >>> from nbvae import analytic
        >>> best = analytic.LinearGaussian([3.0, 1.0], latent_dim=1).solve(beta=1.0, sigma2=0.5)
        >>> maps = {"encoder": best.encoder, "variance": best.posterior_variance, "decoder": best.decoder}
        >>> model = VAE.from_linear(**maps, sigma=0.5**0.5)
        >>> bool((model.linear_maps()["variance"] == best.posterior_variance).all())
        True
        """
        given = checks.array("encoder", encoder, (None, None))
        k, n = given.shape
        maps = {"encoder.mean.weight": given}
        for name, key, value, wanted in (
            ("encoder_bias", "encoder.mean.bias", encoder_bias, (k,)),
            ("variance", "encoder.unit_variance", variance, (k,)),
            ("decoder", "decoder.0.weight", decoder, (n, k)),
            ("decoder_bias", "decoder.0.bias", decoder_bias, (n,)),
        ):
            bias = name.endswith("bias")
            maps[key] = np.zeros(wanted) if bias and value is None else checks.array(name, value, wanted)
        if not (maps["encoder.unit_variance"] > 0).all():
            raise ValueError(f"variance must be > 0, got {maps['encoder.unit_variance'].min():g}")
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are thrown away
            model = cls((n,) if shape is None else shape, k, "linear", likelihood, sigma=sigma, levels=levels).double()
        if math.prod(model.shape) != n:
            raise ValueError(f"shape must have the product {n}, the dimensions that the maps are for; got {model.shape}")
        state = model.state_dict()  # its tensors are those of the model
        for key, value in maps.items():
            state[key].zero_()[: len(value)] = torch.from_numpy(value)  # σ(z) may follow
        if sigma is not None and "observation.sigma" in state:
            state["observation.sigma"].fill_(checks.positive("sigma", sigma))  # not rounded to float32
        return model

    def extra_repr(self) -> str:
        settings = self.config or {"shape": self.shape, "latent_dim": self.latent_dim}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items() if value is not None)

    def _build(self, network: str, hidden: tuple[int, ...], **own: nn.Module) -> None:
        """Make encoder and decoder, or take those of `own`."""
        n_out, k = self.observation.n_outputs, self.latent_dim
        self.encoder: nn.Module = own["encoder"] if "encoder" in own else networks.encoder(network, self.shape, k, hidden)
        self.decoder: nn.Module = (
            own["decoder"] if "decoder" in own else networks.decoder(network, k, self.shape, n_out, hidden)
        )

    def _data(self, x: Tensor) -> Tensor:
        _real("x", x)
        if x.shape[-len(self.shape) :] != self.shape or x.dim() == len(self.shape):
            raise ValueError(f"x must have the shape (batch, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        if not x.numel():
            raise ValueError(f"x must have at least one example, got the shape {tuple(x.shape)}")
        return self._converted("x", x)

    def _flat(self, x: Tensor) -> Tensor:
        return self._data(x).flatten(-len(self.shape))

    def _code(self, z: Tensor) -> Tensor:
        _real("z", z)
        if z.shape[-1:] != (self.latent_dim,):
            raise ValueError(f"z must have {self.latent_dim} latents in its last dimension, got {tuple(z.shape)}")
        return self._converted("z", z)

    def _converted(self, name: str, value: Tensor) -> Tensor:
        like = self.prior_mean
        if value.device != like.device:
            raise ValueError(f"{name} is on {value.device} and the model on {like.device}: move one of them, with .to(device)")
        return value if value.dtype == like.dtype else value.to(like.dtype)


class Discretized(nn.Module):
    """A view of a Gaussian model whose likelihood is the mass in the bins of x's `levels` values: D becomes a code length.

    Posterior and prior are the model's own. Densities of σ's modes can be compared as densities; masses on the same values, in
    bits for each dimension, D/(n log 2), also with a likelihood that was discrete from the start. The view holds the model
    itself: moving one moves the other.

    - `model`: a `VAE` with likelihood "gaussian", or a multi-β model's `at(beta)`.
    - `levels`: the number of grey values j/(levels − 1), at least 2.

    Raises `ValueError` for another model.

    >>> model = VAE((4,), latent_dim=2, likelihood="gaussian", sigma=0.3)
    >>> mass = Discretized(model, levels=2).likelihood(torch.zeros(1, 2))
    >>> words = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    >>> round(mass.log_prob(words).exp().sum().item(), 4)
    1.0
    """

    def __init__(self, model: Any, levels: int = 256):
        super().__init__()
        if type(getattr(model, "observation", None)) is not likelihoods.Gaussian:
            raise ValueError("only a model with a gaussian likelihood can be discretized")
        if hasattr(model, "at"):
            raise ValueError("a model of many β has a likelihood at one β only: Discretized(model.at(beta))")
        self.model, self.levels = model, checks.whole("levels", levels, minimum=2)
        self.shape, self.latent_dim = model.shape, model.latent_dim

    def posterior(self, x: Shaped[Tensor, "*batch"]) -> distributions.Independent:
        """The model's own q(z|x)."""
        return self.model.posterior(x)

    def likelihood(self, z: Shaped[Tensor, "*batch k"]) -> distributions.Independent:
        """The masses of p(x|z) in the bins around the levels, for z (*batch, latent_dim): event shape `shape`."""
        density = self.model.likelihood(z)
        masses = likelihoods.OnLevels(density.base_dist.loc, density.base_dist.scale, self.levels)
        return distributions.Independent(masses, len(density.event_shape), validate_args=False)

    def prior(self) -> distributions.Independent:
        """The model's own p(z)."""
        return self.model.prior()

    def check(self, x: Shaped[Tensor, "batch *shape"]) -> None:
        """Raise `ValueError` unless x is made of the levels."""
        self.model.check(x)
        likelihoods.check_levels(x, self.levels)

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


def normal(mean: Tensor, std: Tensor) -> distributions.Independent:
    """N(mean, diag std²) over the last dimension, for mean and standard deviation (*batch, k).

    >>> normal(torch.zeros(5, 2), torch.ones(5, 2)).event_shape
    torch.Size([2])
    """
    return distributions.Independent(distributions.Normal(mean, std, validate_args=False), 1, validate_args=False)


def _real(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a torch tensor, got {type(value).__name__}: torch.as_tensor makes one of an array")
    if value.is_complex():
        raise ValueError(f"{name} must hold real numbers, got {value.dtype}")


def _follow(model: nn.Module, own: Sequence[nn.Module]) -> None:
    """Move the rest of a model to where the networks that it was given are, and to their precision."""
    kinds = {(value.device, value.dtype) for module in own for value in module.parameters() if value.is_floating_point()}
    if len(kinds) > 1:
        found = " and ".join(sorted(f"{dtype} on {device}".removeprefix("torch.") for device, dtype in kinds))
        raise ValueError(f"encoder and decoder must have weights of one precision on one device, got {found}")
    for device, dtype in kinds:
        model.to(device, dtype)
