"""Stacks of any modules and objectives: what is written for one model, mapped over the stacked weights by `torch.func`."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from nbvae._randomness import Streams, seeded
from nbvae._sameness import copied, same, sandbox, settings
from nbvae.training.stacking import STATE, Streamed, copy_into, numbers, tensors_of, with_numbers

DRAWS = "a model or an objective draws random numbers of its own"


class Mapped:
    """A stack of any models of one architecture, by `torch.func`."""

    def __init__(self, members: Sequence[nn.Module], each: Sequence[Any], companions: Sequence[nn.Module], streams: Streams):
        beside = companions or [None] * len(members)
        self.held = [_Held(member, companion) for member, companion in zip(members, beside, strict=True)]
        self.each, self.objective, self.streams, self.modules = each, each[0], streams, [self.held[0]]
        self.used = copied(each[0])  # what it keeps while it is called does not reach the objectives
        self.places = _places(self.held[0])
        tensors = [tensors_of(held) for held in self.held]
        weights = dict(self.held[0].named_parameters())
        # Matrices are stored transposed: see `StackedLinear`.
        self.turned = {name for name, value in weights.items() if value.dim() == 2}
        self.values: dict[str, Tensor] = {}
        for name, value in tensors[0].items():
            rows = [one[name].mT if name in self.turned else one[name] for one in tensors]
            stacked = torch.stack([row.detach() for row in rows]).contiguous()
            self.values[name] = stacked.requires_grad_(value.requires_grad)
        trained = {name: value for name, value in self.values.items() if value.requires_grad}
        self.parameters = [value for name, value in trained.items() if name.startswith("model.")]
        self.companion_parameters = [value for name, value in trained.items() if name.startswith("companion.")]
        self.state = [value for name, value in self.values.items() if name.startswith("model.")]
        doubled = any(value.dtype is torch.float64 for value in self.parameters)
        self.dtype = torch.float64 if doubled else torch.float32
        self.numbers = numbers(each, torch.empty((), dtype=self.dtype, device=streams.place))
        self.index = torch.arange(len(members), device=streams.place)

    def call(self, function: Callable[..., Any], x: Tensor, streams: Streams | None = None) -> Any:
        """`function(model, objective, x, companion)` for all models at once; what it returns gets a model dimension."""
        values = {name: value.mT if name in self.turned else value for name, value in self.values.items()}
        return self._map(function, values, self.numbers, x, streams or self.streams, self.used)

    def _map(self, function: Callable[..., Any], values: Any, numbers: Any, x: Tensor, streams: Streams, objective: Any) -> Any:
        def one(values: dict[str, Tensor], numbers: dict[str, Tensor], index: Tensor, x: Tensor) -> Any:
            own = with_numbers(objective, numbers)
            before = dict(getattr(own, "__dict__", {}))
            found = self._called(self.held[0], values, (function, _OwnStream(streams, index), own, x))
            if any(before.get(name, before) is not value for name, value in getattr(own, "__dict__", {}).items()):
                raise RuntimeError(STATE)
            return found

        place = None if streams.of_model is None else 0
        return vmap(one, in_dims=(0, 0, 0, place), randomness="same")(values, numbers, self.index, x)

    def _called(self, held: "_Held", values: Mapping[str, Tensor], arguments: tuple[Any, ...]) -> Any:
        # torch's own way with tied weights gives a part that stands under two names a tensor of the map back.
        everywhere = {place: values[name] for place, name in self.places.items()}
        return functional_call(held, everywhere, arguments, tie_weights=False)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that a step may change, but for those of the optimisers."""
        return self.values

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Let them have these values, of `tensors()` at another time."""
        copy_into(self.values, tensors)

    @contextlib.contextmanager
    def sandbox(self) -> Iterator[Callable[[], bool]]:
        """Nothing but weights and buffers of the members is changed inside; what is yielded says whether it would be."""
        with sandbox(self.held) as changed:
            yield lambda: changed() or not same(settings(self.used), settings(self.each[0]))

    @torch.no_grad()
    def write(self) -> None:
        """Give each model its weights."""
        for index, held in enumerate(self.held):
            for name, tensor in tensors_of(held).items():
                if tensor.requires_grad or not isinstance(tensor, nn.Parameter):  # a frozen weight may be shared
                    tensor.copy_(self.values[name][index].mT if name in self.turned else self.values[name][index])

    def disagreement(self, function: Callable[..., Any], x: Tensor, seeds: Sequence[int]) -> str | None:
        """Why this stack would not train as its members do, found by two steps on x both ways; None if it would.

        `function(model, objective, x, companion, step)` gives the losses whose sum is to be minimised. Compared are they, their
        gradients and the buffers; in float64, where the members compute in it. Neither they nor torch's stream are changed.
        """
        alone, dtype, kept = self._alone(function, x, seeds)
        if kept:
            return STATE
        before = random_states(x.device)
        with self.sandbox():
            try:
                together = self._together(function, x, seeds, dtype)
            except Exception as error:
                return in_one_line(error)
        if random_states(x.device) != before:
            return DRAWS
        tolerance = 1e-8 if dtype is torch.float64 else 1e-3
        for index, one in enumerate(alone):
            # Of a gradient that is zero but for rounding, the rounding of the largest is what counts.
            least = 1e-3 * max(
                (value.abs().max().item() for (kind, _), value in one.items() if kind == "gradient"), default=0.0
            )
            for (kind, name), value in one.items():
                size = max(value.abs().max().item() if value.numel() else 0.0, least if kind == "gradient" else 1e-30)
                other = together.get((kind, name))
                near = tolerance * size if math.isfinite(size) else 0.0
                if other is None or not torch.allclose(other[index], value, rtol=0, atol=near, equal_nan=True):
                    return f"a model has another {kind} in a stack than alone ({name})"
        return None

    def _alone(self, function: Any, x: Tensor, seeds: Sequence[int]) -> tuple[list[dict[Any, Tensor]], torch.dtype, bool]:
        """Two steps of copies of each member and objective with torch's stream, as `fit` makes them; and if they keep state.

        They are made in float64, or in their own precision where they have tensors of that type in their code.
        """
        for dtype in (torch.float64, self.dtype):
            each = [copied(objective) for objective in self.each]
            try:
                with self.sandbox() as changed:
                    results = [self._one_alone(function, x, i, seed, each[i], dtype) for i, seed in enumerate(seeds)]
                    kept = changed() or any(not same(settings(a), settings(b)) for a, b in zip(each, self.each, strict=True))
                return results, dtype, kept
            except Exception:
                if dtype is self.dtype:
                    raise
        raise AssertionError("unreachable")

    def _one_alone(self, function: Any, x: Tensor, i: int, seed: int, objective: Any, dtype: torch.dtype) -> dict[Any, Tensor]:
        held, own = self.held[i], (x if self.streams.of_model is None else x[i]).to(dtype)
        values = {name: _in_dtype(value, dtype) for name, value in tensors_of(held).items()}

        def call(step: int) -> Any:
            return self._called(held, values, (functools.partial(function, step=step), None, objective, own))

        with seeded(seed, x.device):
            return _two_steps(call, values, values, 0)

    def _together(self, function: Any, x: Tensor, seeds: Sequence[int], dtype: torch.dtype) -> dict[Any, Tensor]:
        """Two steps of the stack with the members' streams."""
        values = {name: _in_dtype(value, dtype) for name, value in self.values.items()}
        as_used = {name: value.mT if name in self.turned else value for name, value in values.items()}
        in_dtype = numbers(self.each, torch.empty((), dtype=dtype, device=self.streams.place))
        streams, objective = Streams(seeds, self.streams.place), copied(self.each[0])

        def call(step: int) -> Any:
            return self._map(functools.partial(function, step=step), as_used, in_dtype, x.to(dtype), streams, objective)

        return _two_steps(call, values, as_used, 1)


def _places(module: nn.Module) -> dict[str, str]:
    """Every place of a module's parts where a tensor stands, each part once, and the tensor's name in `tensors_of`."""
    names = {id(tensor): name for name, tensor in tensors_of(module).items()}
    return {
        f"{prefix}.{key}": names[id(tensor)]
        for prefix, part in module.named_modules()
        for key, tensor in [*part._parameters.items(), *part._buffers.items()]
        if tensor is not None
    }


class _Held(nn.Module):
    """A model and its companion as one module, whose forward pass is whatever function it is given."""

    def __init__(self, model: nn.Module, companion: nn.Module | None):
        super().__init__()
        self.model, self.companion = model, companion

    def forward(self, function: Callable[..., Any], streams: Any, objective: Any, x: Tensor) -> Any:
        return function(self.model if streams is None else Streamed(self.model, streams), objective, x, self.companion)


class _OwnStream:
    """Inside a map over models: the stream of the one model that is being mapped, number `index`."""

    def __init__(self, streams: Streams, index: Tensor):
        self.streams, self.index = streams, index

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return self._own(self.streams.normal(shape, like))

    def uniform(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return self._own(self.streams.uniform(shape, like))

    def _own(self, drawn: Tensor) -> Tensor:
        return drawn if self.streams.of_model is None else drawn[self.index]


def _two_steps(
    call: Callable[[int], Any], values: dict[str, Tensor], as_used: dict[str, Tensor], leading: int
) -> dict[Any, Tensor]:
    """What two steps of length 10⁻³ along each gradient's direction yield: losses, gradients and buffers, by kind and name.

    `as_used` holds views of `values`; `leading` dimensions count models.
    """
    found: dict[Any, Tensor] = {}
    trained = [name for name, value in values.items() if value.requires_grad]
    for step in range(2):
        losses = call(step)
        found |= {("loss", f"number {i}, step {step}"): loss.detach() for i, loss in enumerate(losses)}
        total = torch.stack([loss.sum() for loss in losses]).sum()
        gradients = torch.autograd.grad(total, [values[name] for name in trained], allow_unused=True)
        with torch.no_grad():
            for name, gradient in zip(trained, gradients, strict=True):
                if gradient is not None:
                    turned = values[name].shape != as_used[name].shape or values[name].stride() != as_used[name].stride()
                    found["gradient", f"{name}, step {step}"] = gradient.mT.clone() if turned else gradient
                    length = gradient.reshape(*gradient.shape[:leading], -1).norm(dim=-1) + 1e-30
                    values[name].sub_(1e-3 * gradient / length.view((*length.shape, *[1] * (gradient.dim() - leading))))
        found |= {("buffer", f"{name}, step {step}"): as_used[name].detach().double() for name in values if name not in trained}
    return found


def in_one_line(error: Exception) -> str:
    """Why `torch.func` cannot map a model or an objective."""
    said = str(error).strip().partition("\n")[0].partition(". ")[0]
    return said if said in (STATE, DRAWS) else f"torch.func cannot map a model or an objective ({type(error).__name__}: {said})"


def _in_dtype(value: Tensor, dtype: torch.dtype) -> Tensor:
    copied = value.detach().clone()
    return (copied.to(dtype) if value.is_floating_point() else copied).requires_grad_(value.requires_grad)


def random_states(place: torch.device) -> list[bytes]:
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(place)] if place.type == "cuda" else [])
    return [state.numpy().tobytes() for state in states]
