"""Mixtures of Gaussians with full covariances, and their conditionals."""

import math
import os

import sklearn
import torch
from jaxtyping import Float
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture
from torch import Tensor, distributions

from nbvae import checks


class Conditional:
    """Draws of the last latents given the first `given`, of a Gaussian mixture over both, in float64."""

    def __init__(self, mixture: GaussianMixture, given: int):
        weight, mean, cov = (
            torch.as_tensor(getattr(mixture, name), device="cpu").double() for name in ("weights_", "means_", "covariances_")
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

    def law(self, z: Float[Tensor, "n given"]) -> distributions.MixtureSameFamily:
        """The law of the rest given z."""
        log_weight, mean = self._given(z)
        each = distributions.MultivariateNormal(mean, scale_tril=self.root.expand(len(z), -1, -1, -1), validate_args=False)
        kinds = distributions.Categorical(logits=log_weight, validate_args=False)
        return distributions.MixtureSameFamily(kinds, each, validate_args=False)

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


def mixture(z: Tensor, n_components: int, seed: int) -> GaussianMixture:
    n_components = checks.whole("n_components", n_components)
    if len(z) < n_components * (z.shape[1] + 1):
        raise ValueError(
            f"{n_components} components of {z.shape[1]} dimensions need at least {n_components * (z.shape[1] + 1)} draws, "
            f"got {len(z)}: give more examples or draws, or fewer components"
        )
    z = z.double()
    if z.is_cuda and os.environ.get("SCIPY_ARRAY_API") == "1":  # what scikit-learn asks for, set before SciPy is imported
        return fitted_where_it_is(z, n_components, seed)
    return GaussianMixture(n_components, random_state=seed).fit(z.cpu().numpy())


def fitted_where_it_is(z: Float[Tensor, "n k"], n_components: int, seed: int) -> GaussianMixture:
    """What scikit-learn fits to an array, fitted to a tensor on its own device.

    It begins there only from parameters that are given: those of the clusters that it would have begun with.
    """
    clustering = KMeans(n_components, n_init=1, random_state=seed)  # pyright: ignore[reportArgumentType]
    labels = torch.from_numpy(clustering.fit(z.cpu().numpy()).labels_).to(z.device)
    clusters = [z[labels == label] for label in range(n_components)]
    ridge = GaussianMixture().reg_covar * torch.eye(z.shape[1]).to(z)
    with sklearn.config_context(array_api_dispatch=True):
        return GaussianMixture(
            n_components,
            init_params="random_from_data",  # of those allowed here; not used
            weights_init=torch.tensor([len(each) / len(z) for each in clusters], dtype=z.dtype, device=z.device),
            means_init=torch.stack([each.mean(0) for each in clusters]),
            precisions_init=torch.linalg.inv(torch.stack([each.mT.cov(correction=0) + ridge for each in clusters])),
        ).fit(z)
