"""Stacks of any modules and objectives: what is written for one model, mapped over the stacked weights by `torch.func`."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from nbvae._measuring import attributes_kept
from nbvae._randomness import Streams, seeded
from nbvae.training.stacking import Streamed, numbers, tensors_of, with_numbers

# Rows that the comparison before training is made on.
ROWS = 16
DRAWS = "a model or an objective draws random numbers of its own"


class Mapped:
    """A stack of any models of one architecture, by `torch.func`."""

    def __init__(self, members: Sequence[nn.Module], each: Sequence[Any], companions: Sequence[nn.Module], streams: Streams):
        beside = companions or [None] * len(members)
        self.held = [_Held(member, companion) for member, companion in zip(members, beside, strict=True)]
        self.each, self.objective, self.streams, self.module = each, each[0], streams, self.held[0]
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
        self.numbers = numbers(each, next(iter(self.values.values())))
        self.index = torch.arange(len(members), device=streams.place)

    def call(self, function: Callable[..., Any], x: Tensor, streams: Streams | None = None) -> Any:
        """`function(model, objective, x, companion)` for all models at once; what it returns gets a model dimension."""
        values = {name: value.mT if name in self.turned else value for name, value in self.values.items()}
        return self._map(function, values, self.numbers, x, streams or self.streams)

    def _map(self, function: Callable[..., Any], values: Any, numbers: Any, x: Tensor, streams: Streams) -> Any:
        def one(values: dict[str, Tensor], numbers: dict[str, Tensor], index: Tensor, x: Tensor) -> Any:
            objective = with_numbers(self.each[0], numbers)
            return functional_call(self.held[0], values, (function, _OwnStream(streams, index), objective, x))

        place = None if streams.of_model is None else 0
        return vmap(one, in_dims=(0, 0, 0, place), randomness="same")(values, numbers, self.index, x)

    def untouched(self) -> contextlib.AbstractContextManager[None]:
        """Nothing but weights and buffers of the members is changed inside: not what a forward pass leaves in attributes."""
        return attributes_kept(self.held)

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
        with self.untouched():
            try:
                alone, dtype = self._alone(function, x, seeds, torch.float64), torch.float64
            except Exception:  # code with tensors of its own type
                alone, dtype = self._alone(function, x, seeds, x.dtype), x.dtype
            before = random_states(x.device)
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
                if other is None or not torch.allclose(other[index], value, rtol=0, atol=tolerance * size, equal_nan=True):
                    return f"a model has another {kind} in a stack than alone ({name})"
        return None

    def _alone(self, function: Any, x: Tensor, seeds: Sequence[int], dtype: torch.dtype) -> list[dict[Any, Tensor]]:
        """Two steps of each member with torch's stream, as `fit` makes them."""
        results = []
        for index, (held, objective, seed) in enumerate(zip(self.held, self.each, seeds, strict=True)):
            values = {name: _copied(value, dtype) for name, value in tensors_of(held).items()}
            own = (x if self.streams.of_model is None else x[index]).to(dtype)

            def call(step: int, held=held, values=values, objective=objective, own=own) -> Any:
                return functional_call(held, values, (functools.partial(function, step=step), None, objective, own))

            with seeded(seed, x.device):
                results.append(_two_steps(call, values, values, 0))
        return results

    def _together(self, function: Any, x: Tensor, seeds: Sequence[int], dtype: torch.dtype) -> dict[Any, Tensor]:
        """Two steps of the stack with the members' streams."""
        values = {name: _copied(value, dtype) for name, value in self.values.items()}
        as_used = {name: value.mT if name in self.turned else value for name, value in values.items()}
        in_dtype = numbers(self.each, torch.empty((), dtype=dtype, device=self.streams.place))
        streams = Streams(seeds, self.streams.place)

        def call(step: int) -> Any:
            return self._map(functools.partial(function, step=step), as_used, in_dtype, x.to(dtype), streams)

        return _two_steps(call, values, as_used, 1)


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
    said = str(error).strip().partition("\n")[0]
    return f"torch.func cannot map a model or an objective ({type(error).__name__}: {said[:150]})"


def _copied(value: Tensor, dtype: torch.dtype) -> Tensor:
    copied = value.detach().clone()
    return (copied.to(dtype) if value.is_floating_point() else copied).requires_grad_(value.requires_grad)


def random_states(place: torch.device) -> list[bytes]:
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(place)] if place.type == "cuda" else [])
    return [state.numpy().tobytes() for state in states]
