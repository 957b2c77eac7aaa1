"""Where random numbers come from: torch's global stream, seeded and put back, or one stream for each model of a sweep."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nbvae import data


@contextmanager
def seeded(seed: int, place: torch.device | str = "cpu") -> Iterator[None]:
    """Torch's global stream seeded with `seed` inside, and as it was afterwards; of `place`, a device, its own stream too.

    >>> with seeded(0):
    ...     first = torch.randn(3)
    >>> with seeded(0):
    ...     bool((torch.randn(3) == first).all())
    True
    """
    place = torch.device(place)
    devices = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # torch.manual_seed notes a call for each absent accelerator too, with a stack trace: a millisecond each time.
        (torch.default_generator.manual_seed if place.type == "cpu" else torch.manual_seed)(seed)
        yield


class Streams:
    """The random streams of the models that are trained together, one for each distinct seed.

    Each stream yields what torch's global stream yields to a separate `fit` with that seed, in the same order. The seed None
    stands for the global stream itself.
    """

    def __init__(self, seeds: Sequence[int | None], place: torch.device):
        self.seeds, self.place = list(seeds), place
        distinct = list(dict.fromkeys(seeds))
        self.generators = [None if seed is None else torch.Generator(place).manual_seed(seed) for seed in distinct]
        # A single stream is made anew at every step of some objectives, and needs no index of models.
        self.of_model = torch.tensor([distinct.index(seed) for seed in seeds], device=place) if len(distinct) > 1 else None

    @property
    def is_global(self) -> bool:
        """Whether numbers come from torch's global stream."""
        return self.seeds == [None]

    def anew(self) -> "Streams":
        """The same streams from their start."""
        return Streams(self.seeds, self.place)

    def states(self) -> list[Tensor]:
        """Where each stream is, as bytes on the CPU; torch's own has one there, and one on another device."""
        if not self.is_global:
            return [generator.get_state() for generator in self.generators if generator is not None]
        elsewhere = [] if self.place.type == "cpu" else [torch.get_device_module(self.place).get_rng_state(self.place)]
        return [torch.get_rng_state(), *elsewhere]

    def go_on(self, states: Sequence[Tensor]) -> None:
        """Put each stream where it was when `states` told of it."""
        if not self.is_global:
            for generator, state in zip(self.generators, states, strict=True):
                if generator is not None:
                    generator.set_state(state)
            return
        torch.set_rng_state(states[0])
        for state in states[1:]:
            torch.get_device_module(self.place).set_rng_state(state, self.place)

    def spread(self, x: Tensor) -> Tensor:
        """x for all models: as it is where they share a seed, else (models, *x.shape)."""
        return x if self.of_model is None else x.expand(len(self.of_model), *x.shape)

    def permutations(self, n: int) -> list[Tensor]:
        return [torch.randperm(n, generator=generator, device=self.place) for generator in self.generators]

    def batch(self, dataset: data.Dataset, x: Tensor, orders: list[Tensor]) -> Tensor:
        """The examples of one step: (batch, *shape) where all models share a seed, else (models, batch, *shape)."""
        return self._spread(
            [dataset.draw(x[order], generator) for order, generator in zip(orders, self.generators, strict=True)]
        )

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Standard normal noise: `shape` where all models share a seed, else (models, *shape)."""
        return self._spread(
            [
                torch.empty(shape, dtype=like.dtype, device=like.device).normal_(generator=generator)
                for generator in self.generators
            ]
        )

    def uniform(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Uniform noise on [0, 1): `shape` where all models share a seed, else (models, *shape)."""
        return self._spread(
            [torch.rand(shape, dtype=like.dtype, device=like.device, generator=generator) for generator in self.generators]
        )

    def _spread(self, draws: list[Tensor]) -> Tensor:
        return draws[0] if len(draws) == 1 else torch.stack(draws)[self.of_model]


def streams(model: Any, place: torch.device | None = None) -> Streams:
    """Where a model's random numbers come from: each of a stack its own stream, any other torch's global one.

    `place` saves asking the model for its device.
    """
    return getattr(model, "streams", None) or Streams([None], place or model.prior().mean.device)
