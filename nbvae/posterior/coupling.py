"""Draws of two posteriors of one x together: tied as closely as they can be, and each exactly what it was."""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, distributions

from nbvae import checks
from nbvae._tensors import double

# The name of a coupling, for annotations.
Kind = Literal["independent", "channel", "matrix"]
Code = tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]  # means and standard deviations
KINDS = get_args(Kind)  # the names of the couplings
_STEPS, _FINE = 200, 1e-9  # of the search for the gain, and the gradient that ends it
_LEAST, _EACH = 1000, 50  # it looks at so many examples, or at so many for each fine latent


class Coupling:
    """Coarse codes z ~ q(z|x) that are noisy copies of fine codes z' ~ q'(z'|x), both diagonal Gaussians.

    - `gain`: A, (k, k') for any two latents, or (k,) for each latent with the one of its own number. Zero couples nothing.

    With means m, m' and standard deviations s, s' of the two posteriors, u = (z' − m')/s' and ε ~ N(0, I),

        z = m + s (I + TTᵀ)^(−1/2) (T u + ε),    T = A diag(s'),

    so that z given x is N(m, diag s²) whatever A is. A(z' − m') + ε is what a channel makes of z' whose noise knows nothing of
    x; the rest gives it the right mean and variance. Where the means are linear in each other, m = a m' + c, and the variances
    are constant with s² > a²s'², this is z = a z' + c + noise for A = a/√(s² − a²s'²): a degraded copy, which tells nothing of
    x that z' does not tell. So it is for two β of the linear VAE, whose rates then add up without loss (Equitz & Cover 1991).

    >>> import torch
    >>> from nbvae import posterior
    >>> coarse, fine = (torch.zeros(1, 2), torch.ones(1, 2)), (torch.zeros(1, 2), torch.full((1, 2), 0.1))
    >>> z_fine = 0.1 * torch.randn(1000, 1, 2)
    >>> posterior.Coupling(torch.tensor([100.0, 0.0])).sample(coarse, fine, z_fine).shape
    torch.Size([1000, 1, 2])
    """

    def __init__(self, gain: Float[Tensor, "k *k2"]):
        if not isinstance(gain, Tensor) or gain.dim() not in (1, 2) or not gain.numel() or not gain.isfinite().all():
            raise ValueError(f"gain must be a tensor (k,) or (k, k') of finite numbers, got {checks.short(gain)}")
        self.gain = double(gain.detach())

    @classmethod
    def fit(cls, coarse: Code, fine: Code, kind: Kind = "channel") -> "Coupling":
        """The coupling under which it costs least to send z' after z, if p(z'|z) is linear and Gaussian.

        - `coarse`, `fine`: means and standard deviations (n, k) and (n, k') of the posteriors of the same examples.
        - `kind`: "channel" for the latents of one number, "matrix" for all pairs, "independent" for none.

        `cost` is minimised from the slope of the coarse means on the fine ones, on every few examples where there are more than
        1000 and more than 50 for each fine latent: what more would change is far less than a hundredth of a nat. Raises
        `ValueError` for codes that are not of the same examples, fewer than two, and for "channel" where k is not k'.
        """
        checks.choice("coupling", kind, KINDS)
        coarse, fine = _accept(coarse, fine, least=2)
        k, fine_k = coarse[0].shape[1], fine[0].shape[1]
        if kind == "independent":
            return cls(torch.zeros(k, fine_k))
        if kind == "channel" and k != fine_k:
            raise ValueError(f"a coupling by channel needs as many latents in both codes, got {k} and {fine_k}: use 'matrix'")
        apart, fine_apart = (mean - mean.mean(0) for mean, _ in (coarse, fine))
        # The slope on codes, not on means: a latent that tells nothing has means that hardly vary, and slopes on them are wild.
        between = apart.T @ fine_apart / len(apart)
        noise = fine[1].square().mean(0)
        spread = coarse[1].mean(0)
        if kind == "channel":
            start = between.diagonal() / (fine_apart.square().mean(0) + noise) / spread
        else:
            codes = fine_apart.T @ fine_apart / len(apart) + noise.diag()
            start = torch.linalg.solve(codes, between, left=False) / spread[:, None]
        with torch.inference_mode(False), torch.enable_grad():
            gain = start.clone(memory_format=torch.contiguous_format).requires_grad_()
            every = max(1, len(fine[0]) // max(_LEAST, _EACH * fine_k))
            some = [[part[::every].clone() for part in code] for code in (coarse, fine)]  # none made in inference mode
            search = torch.optim.LBFGS(
                [gain], max_iter=_STEPS, line_search_fn="strong_wolfe", tolerance_grad=_FINE, tolerance_change=1e-12
            )

            def closure() -> Tensor:
                search.zero_grad()
                value = _cost(gain, *some)  # pyright: ignore[reportArgumentType]
                value.backward()
                return value

            search.step(closure)  # pyright: ignore[reportArgumentType]
        tried = [cls(each) for each in (gain, start, torch.zeros_like(start)) if each.isfinite().all()]
        return min(tried, key=lambda each: each.cost(coarse, fine))

    def cost(self, coarse: Code, fine: Code) -> float:
        """E KL(q(z'|z, x) ‖ p(z'|z)), nats, under the best linear Gaussian p for these examples and this coupling.

        In closed form, over the examples and all draws: ½ log det Cov(z'|z) by linear regression, less the mean of
        ½ log det Cov(z'|z, x). `coarse`, `fine`: means and standard deviations (n, k) and (n, k'), as for `fit`.
        """
        with torch.no_grad():
            return _cost(self.gain, *_accept(coarse, fine, least=2)).item()

    def sample(self, coarse: Code, fine: Code, new: Float[Tensor, "*draws n k2"]) -> Float[Tensor, "*draws n k"]:
        """Draws of z given z' and x, from torch's global stream.

        - `coarse`, `fine`: means and standard deviations (n, k) and (n, k') of the posteriors of n examples.
        - `new`: z', (*draws, n, k').
        """
        (mean, std), (fine_mean, fine_std) = _accept(coarse, fine)
        through, root = _channel(self.gain, fine_std)
        u = (double(new) - fine_mean) / fine_std
        w = _times(root, _times(through, u) + torch.randn(*u.shape[:-1], mean.shape[1], dtype=u.dtype, device=u.device))
        return (mean + std * w).to(new)

    def log_prob(
        self, coarse: Code, fine: Code, z: Float[Tensor, "*draws n k"], new: Float[Tensor, "*draws n k2"]
    ) -> Float[Tensor, "*draws n"]:
        """log q(z'|z, x), nats, of the coupled law: a Gaussian whose precision is (I + TᵀT) in units of s'.

        - `coarse`, `fine`: means and standard deviations (n, k) and (n, k') of the posteriors of n examples.
        - `z`, `new`: the codes z (*draws, n, k) and z' (*draws, n, k').
        """
        (mean, std), (fine_mean, fine_std) = _accept(coarse, fine)
        through, root = _channel(self.gain, fine_std)
        w, u = (double(z) - mean) / std, (double(new) - fine_mean) / fine_std
        apart = u - _times((root @ through).mT, w)
        square = apart.square().sum(-1) + _times(through, apart).square().sum(-1)
        constant = u.shape[-1] * math.log(2 * math.pi)
        return 0.5 * (_log_det(through) - square - constant) - fine_std.log().sum(-1)

    def given(self, coarse: Code, fine: Code, z: Float[Tensor, "*draws n k"]) -> distributions.MultivariateNormal:
        """q(z'|z, x) of the coupled law, whose density `log_prob` has: event shape (k',), in float64.

        - `coarse`, `fine`: means and standard deviations (n, k) and (n, k') of the posteriors of n examples.
        - `z`: their coarse codes (*draws, n, k).
        """
        (mean, std), (fine_mean, fine_std) = _accept(coarse, fine)
        through, root = _channel(self.gain, fine_std)
        shift = _times((root @ through).mT, (double(z) - mean) / std)
        precision = torch.eye(through.shape[-1]).to(through) + through.mT @ through
        spread = fine_std.unsqueeze(-1) * torch.linalg.inv(precision) * fine_std.unsqueeze(-2)
        law = distributions.MultivariateNormal
        return law(fine_mean + fine_std * shift, scale_tril=torch.linalg.cholesky(spread), validate_args=False)


def _accept(coarse: Code, fine: Code, least: int = 1) -> tuple[Code, Code]:
    shapes = [tuple(each.shape) for each in (*coarse, *fine)]
    rows = {shape[0] for shape in shapes}
    if any(len(shape) != 2 for shape in shapes) or len(rows) > 1 or shapes[0] != shapes[1] or shapes[2] != shapes[3]:
        raise ValueError(f"codes must be means and standard deviations (n, k) of the same examples, got {shapes}")
    if rows.pop() < least:
        raise ValueError(f"a coupling needs at least {least} examples")
    return tuple(map(double, coarse)), tuple(map(double, fine))  # pyright: ignore[reportReturnType]


def _channel(gain: Tensor, fine_std: Float[Tensor, "n k2"]) -> tuple[Float[Tensor, "n k k2"], Float[Tensor, "n k k"]]:
    """T and (I + TTᵀ)^(−1/2) of each example."""
    gain = gain.to(fine_std)
    if gain.dim() == 1:
        scaled = gain * fine_std
        return torch.diag_embed(scaled), torch.diag_embed((1 + scaled.square()).rsqrt())
    through = gain * fine_std.unsqueeze(1)
    return through, _InverseRoot.apply(torch.eye(len(gain)).to(through) + through @ through.mT)  # pyright: ignore[reportReturnType]


def _log_det(through: Float[Tensor, "n k k2"]) -> Float[Tensor, " n"]:
    """log det (I + TTᵀ), which is that of I + TᵀT too."""
    return torch.linalg.slogdet(torch.eye(through.shape[1]).to(through) + through @ through.mT)[1]


def _times(matrix: Float[Tensor, "n j k"], vectors: Float[Tensor, "*draws n k"]) -> Float[Tensor, "*draws n j"]:
    return (matrix @ vectors.unsqueeze(-1)).squeeze(-1)


def _cost(gain: Tensor, coarse: Code, fine: Code) -> Tensor:
    (mean, std), (fine_mean, fine_std) = coarse, fine
    n = len(mean)
    through, root = _channel(gain, fine_std)
    apart, fine_apart = mean - mean.mean(0), fine_mean - fine_mean.mean(0)
    # Covariances over examples and draws: of each code, and between the two, fine by coarse.
    own = torch.diag(std.square().mean(0)) + apart.T @ apart / n
    fine_own = torch.diag(fine_std.square().mean(0)) + fine_apart.T @ fine_apart / n
    between = (fine_std.unsqueeze(2) * (root @ through).mT * std.unsqueeze(1)).mean(0) + fine_apart.T @ apart / n
    left = fine_own - between @ torch.linalg.solve(own, between.T)
    known = fine_std.log().sum(1) - 0.5 * _log_det(through)
    return 0.5 * torch.linalg.slogdet(left)[1] - known.mean()


class _InverseRoot(torch.autograd.Function):
    """S^(−1/2) of symmetric positive definite matrices, with a gradient that is finite where eigenvalues coincide."""

    @staticmethod
    def forward(ctx, matrices: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrices)
        ctx.save_for_backward(values, vectors)
        return (vectors * values.rsqrt().unsqueeze(-2)) @ vectors.mT

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, vectors = ctx.saved_tensors
        root = values.sqrt()
        # Divided differences of λ^(−1/2): (a^(−1/2) − b^(−1/2))/(a − b) = −1/(√a√b(√a + √b)).
        slopes = -1 / (root.unsqueeze(-1) * root.unsqueeze(-2) * (root.unsqueeze(-1) + root.unsqueeze(-2)))
        return vectors @ ((vectors.mT @ grad @ vectors) * slopes) @ vectors.mT
