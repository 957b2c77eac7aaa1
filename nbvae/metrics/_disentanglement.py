"""Whether each latent of a code stands for one known factor: the mutual information gap, and importances in prediction.

Both are of codes drawn from the posteriors. Of posterior means, a latent whose noise hides what its mean says would count as if
it said it.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata
from sklearn.ensemble import RandomForestClassifier

from nbvae import checks, results

_IN_A_BIN = 5  # examples, at least


class InformationGap(NamedTuple):
    """The mutual information gap: 1 where each factor is in one latent alone, 0 where no latent knows more than another.

    - `value`: the mean over the factors of `gaps` (m,);
    - `information`: of latent i and factor j, nats (k, m).
    """

    value: float
    gaps: Float[np.ndarray, " m"]
    information: Float[np.ndarray, "k m"]

    estimates, estimate, to_frame = results.Quantities.estimates, results.Quantities.estimate, results.Quantities.to_frame


class Importances(NamedTuple):
    """What predicts the factors from a code, 0 to 1.

    - `disentanglement`: 1 where each latent that is of use predicts one factor alone, 0 where each is of the same use for all;
    - `informativeness`: the mean over the factors of `saved` (m,), the share of errors that is saved on new examples, against
      saying the most frequent value;
    - `importance`: of latent i for factor j (k, m), 1 in sum over the latents.
    """

    disentanglement: float
    informativeness: float
    saved: Float[np.ndarray, " m"]
    importance: Float[np.ndarray, "k m"]

    estimates, estimate, to_frame = results.Quantities.estimates, results.Quantities.estimate, results.Quantities.to_frame


def information_gap(codes: Any, factors: Any, bins: int = 20) -> InformationGap:
    """The mutual information gap of Chen et al. (2018): (I₁ − I₂)/H of a factor, for the two latents that know it best.

    - `codes`: (N, k), at least two latents; best drawn from the posteriors.
    - `factors`: (N, m), whole numbers from 0; each column has at least two values. Of factors that depend on each other no code
      has a gap of 1: a latent that is one of them knows something of the other.
    - `bins`: into how many parts with as many examples each latent is cut.

    Cutting can only lower the information. Counting raises it, where there is none by (bins − 1)(values − 1)/2N on average:
    this is taken off, by the correction of Miller and Madow on all entropies, so that the estimate is right where latent and
    factor are independent, and equal to H where a bin tells the factor. What is negative then counts as 0 in a gap. It is the
    same for any increasing or decreasing map of a latent.

    Raises `ValueError` for fewer than five examples in a bin.

    >>> import torch
    >>> from nbvae import metrics
    >>> factors = torch.cartesian_prod(torch.arange(2), torch.arange(3)).repeat(100, 1)
    >>> turn = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    >>> [round(metrics.information_gap(codes, factors).value, 2) for codes in (factors, factors.float() @ turn)]
    [1.0, 0.0]
    """
    codes, factors = _checked(codes, factors)
    if codes.shape[1] < 2:
        raise ValueError("a gap is between two latents, and the codes have one")
    n, bins = len(codes), checks.whole("bins", bins, minimum=2)
    if n < _IN_A_BIN * bins:
        raise ValueError(f"{n} examples in {bins} bins: at least {_IN_A_BIN * bins} are needed")
    cells = np.minimum((rankdata(codes, axis=0) - 0.5) / n * bins, bins - 1).astype(int)  # equal values in one bin
    of_factors = np.array([_entropy(each) for each in factors.T])
    shared = np.array([[_entropy(i) - _entropy(i * (j.max() + 1) + j) for j in factors.T] for i in cells.T])
    information = shared + of_factors
    second, first = np.sort(information.clip(min=0), axis=0)[-2:]
    gaps = (first - second) / of_factors
    return InformationGap(float(gaps.mean()), gaps, information)


def importances(codes: Any, factors: Any, trees: int = 30, seed: int = 0) -> Importances:
    """Which latents predict which factor (Eastwood & Williams 2018), by random forests on one half, tried on the other.

    - `codes`: (N, k), best drawn from the posteriors.
    - `factors`: (N, m), at least two columns of whole numbers from 0, each with at least two values in the first half.
    - `trees`: of each forest; `seed`: of all of them.

    Importance is what splits at a latent gain, so that latents of noise are as important as each other. Of each latent the
    entropy of its row over the factors is taken, in units of log m; `disentanglement` is 1 less their mean, weighted by the
    rows' sums.

    >>> import torch
    >>> from nbvae import metrics
    >>> factors = torch.cartesian_prod(torch.arange(2), torch.arange(2)).repeat(100, 1)
    >>> found = metrics.importances(factors + 0.1 * torch.rand(400, 2), factors)
    >>> round(found.disentanglement, 6), found.informativeness
    (1.0, 1.0)
    """
    codes, factors = _checked(codes, factors)
    if factors.shape[1] < 2:
        raise ValueError("whether a latent is for one factor alone takes two factors, and there is one")
    trees, seed, half = checks.whole("trees", trees), checks.seed("seed", seed, 32), len(codes) // 2
    columns, saved = [], []
    for number, factor in enumerate(factors.T):
        if len(np.unique(factor[:half])) < 2:
            raise ValueError(f"factor {number} has one value in the first half of the examples: at least two are needed")
        every: Any = 1.0  # latent is looked at in each split
        forest = RandomForestClassifier(trees, max_features=every, min_samples_leaf=10, random_state=seed)
        forest.fit(codes[:half], factor[:half])
        columns.append(forest.feature_importances_)
        wrong, before = (np.mean(factor[half:] != said) for said in (forest.predict(codes[half:]), _mode(factor[:half])))
        saved.append(1 - wrong / before if before else float(not wrong))
    importance = np.stack(columns, axis=1)
    return Importances(_one_factor_each(importance), float(np.mean(saved)), np.array(saved), importance)


def _one_factor_each(importance: np.ndarray) -> float:
    """1 less the mean entropy of the rows, in units of log m, weighted by their sums; 0 where nothing is of importance."""
    sums = importance.sum(1, keepdims=True)
    shares = np.divide(importance, sums, out=np.zeros_like(importance), where=sums > 0)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    one_each = 1 + (shares * logs).sum(1) / np.log(importance.shape[1])
    return float(one_each @ sums[:, 0] / sums.sum()) if sums.any() else 0.0


def _entropy(values: np.ndarray) -> float:
    """The entropy of whole numbers, nats, with Miller and Madow's correction (values that there are − 1)/2N."""
    counts = np.bincount(values)
    shares = counts[counts > 0] / len(values)
    return float(-(shares * np.log(shares)).sum() + (len(shares) - 1) / (2 * len(values)))


def _mode(values: np.ndarray) -> int:
    return int(np.bincount(values).argmax())


def _checked(codes: Any, factors: Any) -> tuple[np.ndarray, np.ndarray]:
    """Codes (N, k) and factors (N, m) as arrays, of floats and of whole numbers."""
    codes = checks.array("codes", codes, (None, None))
    given = checks.array("factors", factors, (len(codes), None))
    whole = given.astype(np.int64)
    if (whole != given).any() or whole.min() < 0:
        raise ValueError("factors must be whole numbers from 0, the number of the value of each")
    for number, factor in enumerate(whole.T):
        if factor.max() == factor.min():
            raise ValueError(f"factor {number} has the value {factor[0]} in all examples: at least two are needed")
    return codes, np.stack([np.unique(factor, return_inverse=True)[1] for factor in whole.T], axis=1)
