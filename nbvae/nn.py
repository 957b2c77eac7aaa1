"""Networks: tensor to tensor, no probability. Also the stacking of K equal networks into one that runs them all at once.

Every network acts on the last dimension and leaves the leading ones alone, so `(batch, d)` and `(models, batch, d)` both work.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbvae import checks

NETWORKS = ("linear", "mlp")


class LinearEncoder(nn.Module):
    """Mean linear in x, log-variance a free constant per latent: the encoder N(Vx + a, diag v) of the linear VAE.

    Lucas et al. (2019), eq. 6: the optimal posterior variance of a linear-Gaussian VAE does not depend on x.
    """

    def __init__(self, n_in: int, latent_dim: int):
        super().__init__()
        self.mean = nn.Linear(n_in, latent_dim)
        self.log_variance = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, x: Float[Tensor, "*batch n"]) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        mean = self.mean(x)
        return mean, self.log_variance.expand_as(mean)


class MLPEncoder(nn.Module):
    """Fully connected network with one output head for the mean and one for the log-variance, neither clamped."""

    def __init__(self, n_in: int, latent_dim: int, hidden: Sequence[int]):
        super().__init__()
        self.body = mlp(n_in, 2 * latent_dim, hidden)

    def forward(self, x: Float[Tensor, "*batch n"]) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        mean, log_variance = self.body(x).chunk(2, dim=-1)
        return mean, log_variance


def mlp(n_in: int, n_out: int, hidden: Sequence[int]) -> nn.Sequential:
    """Linear layers of the widths `hidden` with ReLU between them, no activation at the end."""
    layers: list[nn.Module] = []
    widths = [n_in, *hidden, n_out]
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def encoder(network: str, n_in: int, latent_dim: int, hidden: Sequence[int]) -> nn.Module:
    """Network (*batch, n_in) -> mean and log-variance, each (*batch, latent_dim). `network` is one of `NETWORKS`."""
    checks.choice("network", network, NETWORKS)
    return LinearEncoder(n_in, latent_dim) if network == "linear" else MLPEncoder(n_in, latent_dim, hidden)


def decoder(network: str, latent_dim: int, n_out: int, hidden: Sequence[int]) -> nn.Module:
    """Network (*batch, latent_dim) -> (*batch, n_out). `network` is one of `NETWORKS`."""
    checks.choice("network", network, NETWORKS)
    return mlp(latent_dim, n_out, () if network == "linear" else hidden)


class StackedLinear(nn.Module):
    """K linear layers as one batched matrix product: (batch, n) or (K, batch, n) -> (K, batch, m).

    The weight is stored (K, n, m), transposed against `torch.nn.Linear`: the gradient then arrives in the layout of the
    parameter, and Adam has nothing to copy.
    """

    def __init__(self, layers: Sequence[nn.Linear]):
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().mT for layer in layers]).contiguous())
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]).unsqueeze(1))

    def forward(self, x: Float[Tensor, "*models batch n"]) -> Float[Tensor, "models batch m"]:
        if x.dim() == 2:  # all models see the same batch
            x = x.expand(len(self.weight), *x.shape)
        return torch.baddbmm(self.bias, x, self.weight)

    def write(self, index: int, layer: nn.Linear) -> None:
        """Copy the weights of model `index` into `layer`."""
        layer.weight.copy_(self.weight[index].mT)
        layer.bias.copy_(self.bias[index, 0])


def stack(modules: Sequence[nn.Module]) -> nn.Module:
    """Stack K modules of one architecture into one that computes all K, with outputs (K, batch, ...).

    Linear layers become `StackedLinear`. Every other parameter or buffer must broadcast against (batch, *event); it becomes
    (K, 1, *event). `unstack` writes the values back.

    Raises `ValueError` if the modules differ in architecture or hold a layer that cannot be stacked.
    """
    first = modules[0]
    if any(_architecture(module) != _architecture(first) for module in modules[1:]):
        raise ValueError("only models of one architecture can be trained together; make() returned different ones")
    return _stack(modules)


def _stack(modules: Sequence[nn.Module]) -> nn.Module:
    first = modules[0]
    if isinstance(first, nn.Linear):
        if first.bias is None:
            raise ValueError("cannot train models with linear layers without a bias together: call fit for each of them")
        return StackedLinear(modules)  # type: ignore[arg-type]
    own = dict(_own_tensors(first))
    # Layers of torch other than Linear know nothing of a leading model dimension: refuse rather than compute nonsense.
    if own and type(first).__module__.startswith("torch."):
        raise ValueError(f"cannot train models with a {type(first).__name__} layer together: call fit for each of them")
    stacked = copy.copy(first)
    stacked._parameters, stacked._buffers, stacked._modules = {}, {}, {}
    stacked._non_persistent_buffers_set = set(first._non_persistent_buffers_set)
    for name, tensor in own.items():
        value = (
            torch.stack(
                [module.get_parameter(name) if name in module._parameters else module.get_buffer(name) for module in modules]
            )
            .detach()
            .unsqueeze(1)
        )
        if name in first._parameters:
            stacked.register_parameter(name, nn.Parameter(value, requires_grad=tensor.requires_grad))
        else:
            stacked._buffers[name] = value
    for name, _ in first.named_children():
        stacked._modules[name] = _stack([module.get_submodule(name) for module in modules])
    return stacked


@torch.no_grad()
def unstack(stacked: nn.Module, modules: Sequence[nn.Module]) -> None:
    """Copy the values of a module made by `stack` back into the K `modules` it was made of."""
    for index, module in enumerate(modules):
        _write(stacked, index, module)


def _write(stacked: nn.Module, index: int, module: nn.Module) -> None:
    if isinstance(stacked, StackedLinear) and isinstance(module, nn.Linear):
        stacked.write(index, module)
        return
    values = dict(_own_tensors(stacked))
    for name, tensor in _own_tensors(module):
        tensor.copy_(values[name][index, 0])
    for name, child in module.named_children():
        _write(stacked.get_submodule(name), index, child)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _architecture(module: nn.Module) -> list[tuple[str, str, list[tuple[str, torch.Size]]]]:
    return [
        (name, type(part).__name__, [(key, tensor.shape) for key, tensor in _own_tensors(part)])
        for name, part in module.named_modules()
    ]
