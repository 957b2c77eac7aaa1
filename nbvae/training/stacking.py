"""K models trained as one: weights stacked, and for each the random stream that it would have alone.

There are two ways to run a stack, and both give what each model alone gives:

- `mapping.Mapped` takes any module and any objective. What is written for one model is mapped over the stacked weights by
  `torch.func`, so that a model never sees another one, whatever its code does.
- `Broadcast` takes the library's own networks and objectives, which leave leading dimensions alone, (models, batch, ...), and
  is faster: a linear layer becomes one batched matrix product.

`broadcasts` tells which models can take the second. The first is not trusted blindly: `Mapped.disagreement` makes two steps
both ways and compares.
"""

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributions, nn

from nbvae import models, objectives
from nbvae._randomness import Streams
from nbvae._sameness import OF_EVERY_MODULE, is_altered, is_made_of_settings, same, settings
from nbvae._tensors import is_dense
from nbvae.models import likelihoods, networks

STATE = "a model or an objective keeps state beside its weights and buffers"

# Layers that act on the last dimension, or on each number, and leave leading dimensions alone.
_PLAIN = {
    *(models.VAE, models.MultiBetaVAE, *likelihoods.LIKELIHOODS.values()),
    *(networks.LinearEncoder, networks.TwoHeads, networks.ConditionedMLP),
    *(networks.WaterLevel, networks.BetaFeatures, networks.Conditioning),
    *(nn.Linear, nn.Sequential, nn.ModuleList, nn.Identity),
    *(nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus),
}
_OWN_OBJECTIVES = set(objectives.NAMED.values())
# Attributes of a module that are settings: two models that differ in one are no copies of each other.
_SETTINGS = (bool, int, float, str, tuple, type(None))


class StackedLinear(nn.Module):
    """K linear layers as one batched matrix product: (batch, n) or (K, batch, n) -> (K, batch, m).

    The weight is stored (K, n, m), transposed against `torch.nn.Linear`: the gradient then arrives in the layout of the
    parameter, and Adam has nothing to copy.
    """

    def __init__(self, layers: Sequence[nn.Linear]):
        super().__init__()
        weight, bias = layers[0].weight, layers[0].bias
        self.weight = _parameter([layer.weight.mT for layer in layers], weight.requires_grad)
        self.bias = _parameter([layer.bias.unsqueeze(0) for layer in layers], bias.requires_grad)

    def forward(self, x: Float[Tensor, "*models batch n"]) -> Float[Tensor, "models batch m"]:
        if x.dim() == 2:  # all models see the same batch
            x = x.expand(len(self.weight), *x.shape)
        return torch.baddbmm(self.bias, x, self.weight)

    def write(self, index: int, layer: nn.Linear) -> None:
        """Copy the weights of model `index` into `layer`."""
        layer.weight.copy_(self.weight[index].mT)
        layer.bias.copy_(self.bias[index, 0])


def _parameter(each: Sequence[Tensor], requires_grad: bool) -> nn.Parameter:
    return nn.Parameter(torch.stack([one.detach() for one in each]).contiguous(), requires_grad=requires_grad)


def broadcasts(module: nn.Module) -> bool:
    """Whether a model is made of parts that leave leading dimensions alone, and of nothing else: no hook, no weight twice."""
    for part in module.modules():
        if type(part) not in _PLAIN or is_altered(part) or (isinstance(part, nn.Linear) and part.bias is None):
            return False
    return len(list(module.named_parameters())) == len(list(module.named_parameters(remove_duplicate=False)))


def stack_modules(modules: Sequence[nn.Module]) -> nn.Module:
    """K modules of one architecture, made of parts that broadcast, as one that computes all K with outputs (K, batch, ...).

    Linear layers become `StackedLinear`. Every other parameter or buffer broadcasts against (batch, *event); it becomes
    (K, 1, *event). `unstack_modules` writes the values back.
    """
    first = modules[0]
    if isinstance(first, nn.Linear):
        return StackedLinear(modules)  # type: ignore[arg-type]
    stacked = copy.copy(first)
    stacked._parameters, stacked._buffers, stacked._modules = {}, {}, {}
    for name, tensor in _own_tensors(first):
        each = [dict(_own_tensors(module))[name].unsqueeze(0) for module in modules]
        if name in first._parameters:
            stacked.register_parameter(name, _parameter(each, tensor.requires_grad))
        else:
            stacked._buffers[name] = torch.stack(each)
    for name, child in first._modules.items():  # also one that stands there twice
        stacked._modules[name] = child and stack_modules([module.get_submodule(name) for module in modules])
    return stacked


@torch.no_grad()
def unstack_modules(stacked: nn.Module, modules: Sequence[nn.Module]) -> None:
    """Copy the values of a module made by `stack_modules` back into the K `modules` that it was made of."""
    for index, module in enumerate(modules):
        _write(stacked, index, module)


def _write(stacked: nn.Module, index: int, module: nn.Module) -> None:
    if isinstance(stacked, StackedLinear) and isinstance(module, nn.Linear):
        stacked.write(index, module)
        return
    values = dict(_own_tensors(stacked))
    for name, tensor in _own_tensors(module):
        tensor.copy_(values[name][index, 0])
    for name, child in module._modules.items():
        if child is not None:
            _write(stacked.get_submodule(name), index, child)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def architecture(module: nn.Module) -> list[Any]:
    """What two models must share to be trained as one: their parts, the shapes of their tensors, their settings."""
    return [
        (
            name,
            f"{type(part).__module__}.{type(part).__qualname__}",
            [(key, tensor.shape, tensor.dtype, tensor.requires_grad) for key, tensor in _own_tensors(part)],
            {key: value for key, value in vars(part).items() if _is_setting(part, key, value)},
        )
        for name, part in module.named_modules()
    ]


def _is_setting(part: nn.Module, name: str, value: Any) -> bool:
    """Whether an attribute decides what a part computes: not a submodule, and not a tensor that a pass has computed."""
    if type(part).__module__.startswith("nbvae."):
        return name[0] != "_" and isinstance(value, _SETTINGS)
    if name in OF_EVERY_MODULE or (name[0] == "_" and type(part).__module__.startswith("torch.")):
        return False
    return not isinstance(value, nn.Module) and not (isinstance(value, Tensor) and value.grad_fn is not None)


def differ_in_numbers(one: Any, other: Any) -> bool:
    """Whether two objectives are of one kind, and equal but for numbers: those become tensors in a stack."""
    first, second = settings(one), settings(other)
    alike = type(one) is type(other) and is_made_of_settings(one) and first.keys() == second.keys()
    if not alike or inspect.isroutine(one) or isinstance(one, nn.Module):
        return same(one, other)
    # Counts of our own objectives decide what is computed; a companion's `lr` is its optimiser's.
    kinds = float if is_own(one) else int | float
    return all(
        same(value, second[name]) or (name != "lr" and _number(value, kinds) and _number(second[name], kinds))
        for name, value in first.items()
    )


def _number(value: Any, kinds: Any) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def numbers(each: Sequence[Any], like: Tensor) -> dict[str, Float[Tensor, " models"]]:
    """The settings in which the objectives of a stack differ, each as a tensor (models,) in the precision of `like`."""
    first = settings(each[0])
    differing = [name for name, value in first.items() if any(not same(value, settings(one)[name]) for one in each[1:])]
    return {
        name: torch.tensor([float(settings(one)[name]) for one in each], dtype=like.dtype, device=like.device)
        for name in differing
    }


def with_numbers(objective: Any, values: Mapping[str, Tensor]) -> Any:
    """A copy of an objective that has these tensors in the place of its numbers."""
    if not values:
        return objective
    made = copy.copy(objective)
    for name, value in values.items():
        object.__setattr__(made, name, value)  # past a frozen dataclass and its checks, which each objective has passed alone
    return made


class Streamed:
    """A model whose posteriors draw their noise from `streams`; all else is the model's own.

    `leading` is the number of dimensions of a posterior that count models: 1 for a `Broadcast` stack, 0 for one model.
    """

    def __init__(self, model: Any, streams: Any, leading: int = 0):
        self.model, self.streams, self.leading = model, streams, leading

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def posterior(self, *arguments: Any, **options: Any) -> distributions.Distribution:
        return self._streamed(self.model.posterior(*arguments, **options))

    def encode(self, *arguments: Any, **options: Any) -> Any:
        return self._streamed(self.model.encode(*arguments, **options))

    def _streamed(self, posterior: Any) -> Any:
        base = getattr(posterior, "base_dist", None)
        if type(posterior) is not distributions.Independent or type(base) is not distributions.Normal:
            return posterior
        normal = StreamedNormal(base.loc, base.scale, self.streams, self.leading)
        return distributions.Independent(normal, posterior.reinterpreted_batch_ndims, validate_args=False)


class StreamedNormal(distributions.Normal):
    """A normal distribution that draws its noise from `streams`, for each model from its own."""

    def __init__(self, loc: Tensor, scale: Tensor, streams: Any, leading: int):
        super().__init__(loc, scale, validate_args=False)
        self.streams, self.leading = streams, leading

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        if len(sample_shape) and self.leading:
            raise ValueError("models trained together draw one z per example")
        noise = self.streams.normal((*sample_shape, *self.loc.shape[self.leading :]), self.loc)
        return self.loc + noise * self.scale

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.rsample(sample_shape)


class Alone:
    """One model, with torch's global stream."""

    def __init__(self, model: nn.Module, objective: Any, companion: nn.Module | None):
        self.model, self.objective, self.companion = model, objective, companion
        self.parameters = [value for value in model.parameters() if value.requires_grad]
        self.companion_parameters = list(companion.parameters()) if companion else []
        self.modules = [model] if companion is None else [model, companion]

    @property
    def state(self) -> list[Tensor]:
        """Weights and buffers, as they are now: a forward pass may put another tensor in a buffer's place."""
        return list(tensors_of(self.model).values())

    def call(self, function: Callable[..., Any], x: Tensor, streams: Streams | None = None) -> Any:
        """`function(model, objective, x, companion)`."""
        return function(self.model, self.objective, x, self.companion)

    @property
    def stateful(self) -> list[nn.Module]:
        """The modules whose tensors a step may change: an objective may be one, with statistics in its buffers."""
        return [*self.modules, *([self.objective] if isinstance(self.objective, nn.Module) else [])]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that a step may change, but for those of the optimisers."""
        return {f"{i}.{name}": value for i, part in enumerate(self.stateful) for name, value in held(part).items()}

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Let them have these values, of `tensors()` at another time."""
        for i, part in enumerate(self.stateful):
            fill(part, {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{i}.")})


class Broadcast:
    """A stack of the library's own models and objectives."""

    def __init__(self, members: Sequence[nn.Module], each: Sequence[Any], companions: Sequence[nn.Module], streams: Streams):
        self.members, self.companions, self.streams = members, companions, streams
        self.stacked = stack_modules(members)
        self.companion = stack_modules(companions) if companions else None
        self.modules = [self.stacked, *([self.companion] if self.companion else [])]
        values = list(self.stacked.parameters())
        self.objective = with_numbers(each[0], numbers(each, values[0]))
        self.parameters = [value for value in values if value.requires_grad]
        self.state = [*values, *self.stacked.buffers()]
        self.companion_parameters = list(self.companion.parameters()) if self.companion else []

    def call(self, function: Callable[..., Any], x: Tensor, streams: Streams | None = None) -> Any:
        """`function(model, objective, x, companion)` for all models at once."""
        return function(Streamed(self.stacked, streams or self.streams, 1), self.objective, x, self.companion)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that a step may change, but for those of the optimisers."""
        beside = [*self.companion.parameters(), *self.companion.buffers()] if self.companion else []
        return {str(i): value for i, value in enumerate([*self.state, *beside])}

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Let them have these values, of `tensors()` at another time."""
        copy_into(self.tensors(), tensors)

    def sandbox(self) -> contextlib.AbstractContextManager[Callable[[], bool]]:
        """Nothing is kept in attributes by the library's own models."""
        return contextlib.nullcontext(lambda: False)

    def write(self) -> None:
        """Give each model its weights."""
        unstack_modules(self.stacked, self.members)


def is_own(objective: Any) -> bool:
    """Whether an objective is one of the library's, which leave leading dimensions alone."""
    return type(objective) in _OWN_OBJECTIVES


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return dict([*module.named_parameters(), *module.named_buffers()])


def held(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers, and the tensors that parts of a module have as plain attributes."""
    return tensors_of(module) | attributes_of(module)


def attributes_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that parts of a module have as plain attributes."""
    return {
        f"{name}.{key}".lstrip("."): value
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if is_dense(value)
    }


@torch.no_grad()
def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a module the tensors that were `held` by it, or by one like it: these and no others."""
    now = held(module)
    place = next(module.parameters(), torch.empty(0)).device
    for name in now.keys() | tensors.keys():
        parent, _, last = name.rpartition(".")
        part, value = module.get_submodule(parent), tensors.get(name)
        where = part._buffers if last in part._buffers else vars(part)
        if value is None:  # what a pass has put there
            where.update({last: None}) if where is part._buffers else where.pop(last)
        elif name in now and (now[name].shape, now[name].dtype) == (value.shape, value.dtype):
            now[name].copy_(value)  # in place: others may see the same memory
        else:
            where[last] = value.to(place)


@torch.no_grad()
def copy_into(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy the values of each name."""
    for name, value in own.items():
        value.copy_(tensors[name])
