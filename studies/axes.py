"""What the axes of a latent space are worth: posteriors that know none, and what independent latents lose on given axes.

To second order around the mean of a posterior with covariance S, D is a constant plus ½ tr(FS), with F the Fisher information
of p(x|z) in z. D + βR is then least at S⁻¹ = I + F/β. Of independent latents the best variances are 1/(1 + F_ii/β), and by
Hadamard's inequality they lose

    β/2 [Σ_i log(1 + F_ii/β) − log det(I + F/β)] ≥ 0,

nothing where F is diagonal. Turning the axes changes nothing else. A posterior of any covariance is turned along, and so is one
with a single variance for all latents.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, distributions, nn

from nbvae import models
from nbvae.models import networks


class OneVariance(nn.Module):
    """An encoder (batch, *shape) of means and one log-variance, the same for all latents of an example."""

    def __init__(self, shape: Sequence[int], latent_dim: int, hidden: Sequence[int]):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), networks.mlp(int(np.prod(shape)), latent_dim + 1, hidden))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        made = self.body(x)
        return made[..., :-1], made[..., -1:].expand_as(made[..., :-1])


class Correlated(distributions.MultivariateNormal):
    """A Gaussian whose rate under a prior of independent standard normals is written out: no system of equations is solved."""


@distributions.kl.register_kl(Correlated, distributions.Independent)
def _rate(q: Any, p: Any) -> Tensor:
    root, shape = q._unbroadcasted_scale_tril, q.event_shape
    if not isinstance(p.base_dist, distributions.Normal) or (p.mean != 0).any() or (p.variance != 1).any():
        raise NotImplementedError
    squares = root.square().sum((-2, -1)) + q.mean.square().sum(-1)
    return 0.5 * (squares - shape[0]) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)


class FullCovariance(models.VAE):
    """A VAE whose posteriors have any covariance, by its Cholesky factor; what is off its diagonal is small at first."""

    def __init__(self, shape: Sequence[int], latent_dim: int, hidden: Sequence[int], **likelihood: Any):
        self.sizes = (latent_dim, latent_dim, latent_dim * (latent_dim - 1) // 2)
        body = networks.mlp(int(np.prod(shape)), sum(self.sizes), hidden)
        super().__init__(shape, latent_dim, hidden=hidden, encoder=nn.Sequential(nn.Flatten(), body), **likelihood)
        with torch.no_grad():
            for weights in body[-1].parameters():
                weights[2 * latent_dim :] *= 0.1

    def posterior(self, x: Tensor) -> Any:
        mean, log_variance, below = self.encoder(x.to(self.prior_mean)).split(self.sizes, dim=-1)
        root = torch.diag_embed((0.5 * log_variance).exp())
        root[..., *torch.tril_indices(self.latent_dim, self.latent_dim, -1)] = below
        return Correlated(mean, scale_tril=root, validate_args=False)


def curvature(model: Any, z: Tensor) -> Tensor:
    """The Fisher information of p(x|z) in z, (n, k, k), in float64, of a likelihood with a mean and a variance for each pixel.

    For pixels of 0 and 1, and for Gaussians of fixed σ, it is Jᵀ diag(1/variance) J, with J the Jacobian of the means.
    """
    model, z = copy.deepcopy(model).cpu().double().eval(), z.cpu().double()

    def mean(one: Tensor) -> Tensor:
        return model.likelihood(one[None]).mean.flatten()

    with torch.no_grad():
        jacobian = torch.func.vmap(torch.func.jacfwd(mean))(z)
        variance = model.likelihood(z).variance.flatten(1).clamp(min=1e-12)  # a pixel that is sure tells nothing
    return jacobian.mT @ (jacobian / variance[..., None])


def cost_of_axes(information: Tensor, beta: float, axes: np.ndarray | None = None) -> float:
    """What independent latents lose against any covariance, in nats of D + βR, a mean over examples.

    - `information`: F of each, (n, k, k).
    - `beta`: β > 0.
    - `axes`: the columns of an orthogonal matrix (k, k); without it, the latents themselves.

    >>> turned = np.array([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5
    >>> information = torch.tensor([[[3.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    >>> cost_of_axes(information, 1.0), round(cost_of_axes(information, 1.0, turned), 4)  # log 2.5 − ½ log 4
    (0.0, 0.2231)
    """
    k = information.shape[-1]
    whole = torch.eye(k, dtype=information.dtype) + information / beta
    turn = torch.eye(k, dtype=information.dtype) if axes is None else torch.as_tensor(axes, dtype=information.dtype)
    own = (turn.T @ whole @ turn).diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return (0.5 * beta * (own - torch.logdet(whole))).mean().item()


def rotations(k: int, count: int, seed: int = 0) -> list[np.ndarray]:
    """Orthogonal matrices (k, k), drawn uniformly."""
    normal = np.random.default_rng(seed).standard_normal((count, k, k))
    pairs = [np.linalg.qr(each) for each in normal]
    return [q * np.sign(np.diag(r)) for q, r in pairs]


def labelled_axes(codes: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Orthogonal axes (k, k), the first of which tell the factors: their linear discriminants, made orthogonal together.

    - `codes`: (N, k); `factors`: (N, m), whole numbers. With fewer latents than factors the last factors have no axis.

    >>> factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 500)
    >>> codes = np.random.default_rng(0).standard_normal((2000, 3)) + 9 * factors @ np.array([[0, 0, 1], [0, 1, 0]])
    >>> np.abs(labelled_axes(codes, factors)[:, :2]).round(1).tolist()
    [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    """
    k = codes.shape[1]
    if k < 2:
        return np.eye(k)
    finds = [LinearDiscriminantAnalysis(n_components=1).fit(codes, factor).scalings_[:, :1] for factor in factors.T[:k]]
    directions = np.concatenate([each / np.linalg.norm(each) for each in finds], axis=1)
    left, _, right = np.linalg.svd(directions, full_matrices=True)
    m = directions.shape[1]
    return np.concatenate([left[:, :m] @ right, left[:, m:]], axis=1)  # the nearest orthonormal ones, and the rest
