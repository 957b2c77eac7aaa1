"""Bits on a stack: symbols under probabilities that are whole numbers of 2⁻²⁴, by constriction's ANS coder.

Every symbol is coded as the binary digits of its number, the highest first, each under its probability given those before. So
a mass is asked for at few points of its distribution function, and all that the coder is told is one logit for each digit. The
logits are rounded to multiples of `STEP`: two computations of the same logit agree unless their tiny difference straddles a
rounding edge.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from constriction import stream  # pyright: ignore[reportMissingModuleSource, reportAttributeAccessIssue]
from jaxtyping import Float, Int
from scipy import special

STEP = 1 / 256
_LARGEST = 17 * 256  # steps: beyond it a probability is that of the last bit, 2⁻²⁴, or its complement
_ONE = 1 << 24
_TABLE = np.clip(np.rint(special.expit(np.arange(-_LARGEST, _LARGEST + 1) * STEP) * _ONE), 1, _ONE - 1) / _ONE
_BIT = stream.model.Bernoulli(perfect=False)

Logits = Float[np.ndarray, " n"]


class Tree(Protocol):
    """A mass on 0, …, 2^depth − 1 for each of n symbols."""

    depth: int

    def logits(self, level: int, node: Int[np.ndarray, " n"]) -> Logits:
        """log odds of the digit after the first `level`, which are the number `node`, of each symbol."""
        ...


class Stack:
    """A stack of bits: what is pushed last is popped first.

    `words`: what is on it, 32 bits each, the top last and not zero; nothing by default.
    """

    def __init__(self, words: np.ndarray | None = None):
        self._coder = stream.stack.AnsCoder() if words is None else stream.stack.AnsCoder(words.astype(np.uint32))

    def __len__(self) -> int:
        """The number of words."""
        return self._coder.num_words()

    @property
    def words(self) -> np.ndarray:
        return self._coder.get_compressed()

    def push_bits(self, bits: Int[np.ndarray, " n"], logits: Logits) -> None:
        self._coder.encode_reverse(bits.astype(np.int32), _BIT, probabilities(logits))

    def pop_bits(self, logits: Logits) -> Int[np.ndarray, " n"]:
        return self._coder.decode(_BIT, probabilities(logits)).astype(np.int64)

    def push(self, symbols: Int[np.ndarray, " n"], tree: Tree) -> None:
        for level in range(tree.depth - 1, -1, -1):
            left = tree.depth - level
            self.push_bits((symbols >> (left - 1)) & 1, tree.logits(level, symbols >> left))

    def pop(self, n: int, tree: Tree) -> Int[np.ndarray, " n"]:
        node = np.zeros(n, np.int64)
        for level in range(tree.depth):
            node = 2 * node + self.pop_bits(tree.logits(level, node))
        return node


def probabilities(logits: Logits) -> Float[np.ndarray, " n"]:
    """P(1) for each logit, rounded to multiples of 2⁻²⁴ that are neither 0 nor 1.

    >>> probabilities(np.array([0.0, 1000.0, 0.001])) * 2**24 - 2**23
    array([      0., 8388607.,       0.])
    """
    steps = np.rint(np.clip(logits, -_LARGEST * STEP, _LARGEST * STEP) / STEP)
    return _TABLE[steps.astype(np.int64) + _LARGEST]


class Odds:
    """A mass on 0 and 1 for each of n symbols, of these log odds."""

    depth = 1

    def __init__(self, log_odds: Logits):
        self.log_odds = log_odds

    def logits(self, level: int, node: Int[np.ndarray, " n"]) -> Logits:
        return self.log_odds


class Intervals:
    """The mass of a density in intervals: symbol j is between edges j and j + 1, the outer ones are infinite.

    - `location`, `scale`: of each symbol's density, (n,).
    - `origin`, `step`: edge j is origin + j·step, for 0 < j < `count`; symbols from `count` on have no mass.
    - `log_cdf`: of the standard density, which is symmetric.
    """

    def __init__(
        self,
        location: Float[np.ndarray, " n"],
        scale: Float[np.ndarray, " n"],
        origin: float,
        step: float,
        count: int,
        log_cdf: Callable[[np.ndarray], np.ndarray] = special.log_ndtr,
    ):
        self.location, self.scale, self.origin, self.step, self.count = location, scale, origin, step, count
        self.log_cdf, self.depth = log_cdf, (count - 1).bit_length()

    def logits(self, level: int, node: Int[np.ndarray, " n"]) -> Logits:
        left = self.depth - level
        low, middle, high = (self._edge((node << left) + add) for add in (0, 1 << (left - 1), 1 << left))
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(self._log_mass(middle, high) - self._log_mass(low, middle), nan=0.0)

    def _edge(self, index: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        inside = (self.origin + self.step * index - self.location) / self.scale
        return np.where(index <= 0, -np.inf, np.where(index >= self.count, np.inf, inside))

    def _log_mass(self, low: Float[np.ndarray, " n"], high: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """log(F(high) − F(low)), in the left half, where neither is near one."""
        with np.errstate(invalid="ignore", divide="ignore"):
            right = low + high > 0
            low, high = np.where(right, -high, low), np.where(right, -low, high)
            large, small = self.log_cdf(high), self.log_cdf(low)
            inside = large + np.log(-np.expm1(np.minimum(small - large, -1e-15)))
        return np.where(low < high, inside, -np.inf)
