"""K models of one architecture as one model: weights stacked, each with the random stream that it would have alone.

Tensors get a leading model dimension, (models, batch, ...). What is written for one model, and leaves leading dimensions
alone, then computes all of them in batched matrix products.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributions, nn

from nbvae._randomness import Streams


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


def _architecture(module: nn.Module) -> list[tuple[Any, ...]]:
    return [
        # A range of βs is no tensor, and the stack has the first member's.
        (name, type(part).__name__, getattr(part, "beta_range", None), [(key, t.shape) for key, t in _own_tensors(part)])
        for name, part in module.named_modules()
    ]


def stack_numbers(each: Sequence[Any], like: Tensor) -> Any:
    """One dataclass of numbers, an objective, for all models: a number that differs between them becomes a tensor (models,)."""
    first = each[0]
    if all(one == first for one in each):
        return first
    if not is_dataclass(first) or any(type(one) is not type(first) for one in each):
        raise ValueError("models can only be trained together on one kind of objective, a dataclass of numbers")
    stacked: Any = copy.copy(first)
    for field in fields(first):
        values = [getattr(one, field.name) for one in each]
        if any(value != values[0] for value in values):
            if not all(isinstance(value, float) for value in values) or field.name == "lr":
                raise ValueError(f"models trained together must have the same {field.name}, got {values[0]!r} and others")
            # Past the frozen dataclass and its checks, which each objective has passed on its own.
            object.__setattr__(stacked, field.name, torch.tensor(values, dtype=like.dtype, device=like.device))
    return stacked


class Together(nn.Module):
    """A stack of models whose posteriors draw their noise from each model's own stream."""

    def __init__(self, stacked: nn.Module, streams: Streams):
        super().__init__()
        self.stacked: Any = stacked
        self.streams = streams

    def posterior(self, x: Tensor) -> distributions.Independent:
        return self._streamed(self.stacked.posterior(x))

    def condition(self, log_beta: Tensor) -> Any:
        return self.stacked.condition(log_beta)

    def encode(self, x: Tensor, condition: Any) -> distributions.Independent:
        return self._streamed(self.stacked.encode(x, condition))

    def decode(self, z: Tensor, condition: Any) -> distributions.Distribution:
        return self.stacked.decode(z, condition)

    def _streamed(self, posterior: distributions.Independent) -> distributions.Independent:
        base = posterior.base_dist
        return distributions.Independent(StreamedNormal(base.loc, base.scale, self.streams), 1, validate_args=False)

    def likelihood(self, z: Tensor) -> distributions.Distribution:
        return self.stacked.likelihood(z)

    def prior(self) -> distributions.Distribution:
        return self.stacked.prior()


class StreamedNormal(distributions.Normal):
    """Normal with location (models, batch, k) and one noise stream per model."""

    def __init__(self, loc: Tensor, scale: Tensor, streams: Streams):
        super().__init__(loc, scale, validate_args=False)
        self.streams = streams

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        if len(sample_shape):
            raise ValueError("models trained together draw one z per example")
        return self.loc + self.streams.normal(self.loc.shape[1:], self.loc) * self.scale
