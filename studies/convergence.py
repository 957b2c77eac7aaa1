"""Whether trainings have converged as far as what is claimed of them needs: checks that cost little.

1. *Cross table*: every model measured under every other model's objective. Each must be the best, within error, under its own.
2. *Twice the passes*: training for twice as long moves nothing that is claimed by more than its error. A plan may report
   the longer of the two trainings or the shorter.
3. *Second moments*: where encoder heads and the decoder's first layer are linear, E z² = 1 in each latent at any optimum.

An error so large that nothing could be seen beside it is no agreement: each check bounds the errors too. Where two numbers
must agree, chance may do two standard errors, however few the seeds: a wider interval would let more pass. Where one must
differ from zero, its 95 % interval is that of Student's t, which knows how few they are.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import pandas as pd
from scipy import stats

from nbvae import checks
from nbvae.results import Estimate


@dataclass(frozen=True)
class Check:
    """One test of convergence: its name, whether it passed, and what was found, in words."""

    name: str
    passed: bool
    found: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"passed": bool(self.passed)}  # numpy's is none of JSON's


_PLAIN = {
    r"the least excess is of (.+?) under (.+?): ": r"the nearest rival is \1 under \2: ",
    r"the largest error that is more than a quarter of its difference is of ": "the least certain difference is that of ",
    r"the largest error beside its difference of ": "the least certain difference is that of ",
    r"no error is more than a quarter of its difference": "all differences are at least four of their errors",
    r"is the same, less that from the most images ": "is test less training, from fewer less from all images: ",
    r"\bprobabilities\b": "black and white pixels",
    r"\bdensities\b": "grey pixels",
    r"\bmutual_information\b": "I(x; z),",
    r"\bmarginal_kl\b": "KL(q(z) ‖ p(z)),",
    r"\btotal_correlation\b": "TC,",
    r"\bdimension_kl\b": "DW,",
    r"(\d\S*) on information": r"weight \1 on I",
    r"(\d\S*) on correlation": r"weight \1 on TC",
}


def plain(text: str) -> str:
    """A check's name or what it found, as a page says it: without the names that frames have.

    >>> plain("the least excess is of VAE under 2 on information: -0.03 ± 0.01")
    'the nearest rival is VAE under weight 2 on I: -0.03 ± 0.01'
    """
    for known, said in _PLAIN.items():
        text = re.sub(known, said, text)
    return text


def cross_table(losses: pd.DataFrame, largest_error: float = 0.1, margin: float = 0.0) -> tuple[pd.DataFrame, Check]:
    """Compare models trained on several objectives under each of them.

    - `losses`: a row for each `objective` that a model was trained on, `under` that its loss was measured by, `seed`, and
      `value`, the mean loss in nats on the training images, measured with the same draws for all models.
    - `largest_error`: the most that the standard error of a difference may be, in nats, unless it is at most a quarter of the
      difference.
    - `margin`: by how much more than its errors a model may be behind another under its own objective, in nats. Pairs share
      their weights to begin with, their batches and their draws, so that an error can be far smaller than anything claimed.

    Returns a frame with a row for each pair, whose `value` is by how much that model is worse than the own one under the
    objective, as a mean over seeds with the standard error of the differences, in pairs; and the check, which passes if no
    model is better than the own one by more than two standard errors, and no error is larger than it may be.

    >>> rows = [("a", "a", 0, 1.0), ("b", "a", 0, 2.0), ("a", "b", 0, 3.0), ("b", "b", 0, 2.0)]
    >>> rows += [(model, under, 1, value + 0.5) for model, under, _, value in rows]
    >>> table, check = cross_table(pd.DataFrame(rows, columns=["objective", "under", "seed", "value"]))
    >>> check.passed, table["value"].tolist()
    (True, [1.0, 1.0])
    """
    wide: Any = losses.pivot_table(index=["under", "seed"], columns="objective", values="value", sort=False)
    if wide.isna().any(axis=None):
        raise ValueError("every model must be measured under every objective, with each seed")
    rows, worst, widest = [], (math.inf, ""), (0.0, "")
    for under in wide.columns:
        own = wide.loc[under]
        for other in wide.columns:
            if other == under:
                continue
            gap = Estimate.over_runs((own[other] - own[under]).to_numpy())
            rows.append({"objective": other, "under": under, "value": gap.value, "stderr": gap.stderr, "n": gap.n})
            text = f"{other} under {under}: {gap:+}"
            worst = min(worst, (gap.value + 2 * gap.stderr, text))
            if gap.stderr > abs(gap.value) / 4:
                widest = max(widest, (gap.stderr, text))
    passed = worst[0] >= -margin and widest[0] <= largest_error
    wide_ones = f"the largest error that is more than a quarter of its difference is of {widest[1]}"
    found = (
        f"the least excess is of {worst[1]}; {wide_ones if widest[1] else 'no error is more than a quarter of its difference'}"
    )
    name = "every model is the best under its own objective"
    if margin:
        behind = sum(row["value"] + 2 * row["stderr"] < 0 for row in rows)
        name += f", or behind by no more than its errors and {margin:g} nats"
        found = f"{behind} of {len(rows)} are behind by more than their errors; {found}"
    return pd.DataFrame(rows), Check(name, bool(passed), found)


def under_others(frame: pd.DataFrame, betas: Sequence[float]) -> pd.DataFrame:
    """D + βR of models of several β, each under every β of `betas`: what `cross_table` takes.

    - `frame`: a row for each `beta`, `seed` and `quantity`, "rate" and "distortion" among them, with its `value`.

    >>> rows = [(0.1, 0, "rate", 9.0), (0.1, 0, "distortion", 1.0), (2.0, 0, "rate", 2.0), (2.0, 0, "distortion", 5.0)]
    >>> frame = pd.DataFrame(rows, columns=["beta", "seed", "quantity", "value"])
    >>> under_others(frame, [0.1, 2.0])["value"].round(1).tolist()
    [1.9, 19.0, 5.2, 9.0]
    """
    wide: Any = frame.pivot_table(index=["beta", "seed"], columns="quantity", values="value")
    return pd.DataFrame(
        [
            {"objective": f"β = {beta:g}", "under": f"β = {under:g}", "seed": seed}
            | {"value": row["distortion"] + under * row["rate"]}
            for (beta, seed), row in wide.iterrows()
            for under in betas
        ]
    )


def twice(frame: pd.DataFrame, by: list[str]) -> Check:
    """Compare what is claimed after the plan's passes and after twice as many.

    - `frame`: a row for each `quantity`, `seed`, number of `passes` (two of them) and value of the columns in `by`; in
      `allowed` the change that would not matter to what is claimed, in the unit of the quantity: .1 nats, or a quarter of the
      effect.
    - `by`: the columns that tell the claims apart.

    The check passes if every change, a mean over seeds in pairs, is smaller than that or within two of its standard errors,
    and these errors are no larger than that either: what could not be seen is not taken for agreement.

    >>> rows = [(4, 0, 1.0), (4, 1, 1.2), (8, 0, 1.01), (8, 1, 1.22)]
    >>> frame = pd.DataFrame(rows, columns=["passes", "seed", "value"]).assign(quantity="rate", beta=1.0)
    >>> [twice(frame.assign(allowed=allowed), ["beta"]).passed for allowed in (0.1, 0.001)]
    [True, False]
    """
    if frame.empty:
        return Check("twice the passes move nothing that is claimed", False, "nothing is large enough to be claimed")
    few, many = sorted(frame["passes"].unique())
    wide: Any = frame.pivot_table(index=["quantity", *by, "allowed", "seed"], columns="passes", values="value", sort=False)
    if wide.isna().any(axis=None):
        raise ValueError("everything must be measured after both numbers of passes, with each seed")
    worst = (False, -math.inf, "nothing")
    for (*key, allowed), each in wide.groupby(level=["quantity", *by, "allowed"], sort=False):
        change = Estimate.over_runs((each[many] - each[few]).to_numpy())
        far = not (abs(change.value) <= max(allowed, 2 * change.stderr) and change.stderr <= allowed)
        worst = max(worst, (far, abs(change.value) / allowed, f"{' '.join(map(str, key))}: {change:+}, {allowed:.2g} allowed"))
    found = f"of {frame.groupby(['quantity', *by]).ngroups} claims the largest change is of {worst[2]}"
    return Check(f"{many} passes move nothing that is claimed after {few}", not worst[0], found)


def accept_against(passes: int, against: float) -> None:
    """Refuse numbers of passes that cannot be compared: a plan's, and `against` times as many."""
    if against not in (0.5, 2.0) or (against == 0.5 and passes % 2):
        raise ValueError(f"against must be 2 or, for an even number of passes, 0.5; got {against:g} for {passes} passes")


def trained(plan: Any) -> dict[int, tuple[int, ...]]:
    """The seeds that are trained for each number of passes, the longest first: a plan's, and `against` times as many."""
    other = round(plan.against * plan.passes)
    every = {plan.passes: plan.seeds, other: plan.seeds[: plan.again]}
    return dict(sorted(every.items(), reverse=True))


def claimed(effects: Any, passes: int, seeds: Sequence[int], least: float) -> Any:
    """The rows of effects that are large enough to be claimed, with the size of each claim in a column `claim`.

    - `effects`: a row for each `objective`, `quantity`, `seed` and number of `passes`, the plan's and twice or half as many.
    - `passes`: the plan's.
    - `seeds`: those that were trained for both; only their rows are kept.
    - `least`: what an effect must be, as a mean over seeds after the plan's passes, to be claimed.
    """
    mean = effects[effects["passes"] == passes].groupby(["objective", "quantity"])["value"].mean().abs()
    claims = mean[mean >= least].rename("claim").reset_index()
    return effects[effects["seed"].isin(seeds)].merge(claims, on=["objective", "quantity"])


def twice_as_long(effects: Any, passes: int, seeds: Sequence[int], least: float) -> Check:
    """`twice` for effects that are `claimed`; a quarter of each would not matter."""
    claims = claimed(effects, passes, seeds, least)
    return twice(claims.assign(allowed=claims["claim"] / 4), ["objective"])


def clear(frame: Any, by: list[str], least: float = 2.0) -> Any:
    """The rows of claims whose means over seeds are clear of 0, and so may bear to be moved by longer training.

    - `frame`: a row for each `seed` and value of the columns in `by`, which tell the claims apart.
    - `least`: how many halves of its 95 % interval, by Student's t, a mean must be from 0.
    """

    def is_clear(values: Any) -> bool:
        return abs(_in_halves(Estimate.over_runs(values.to_numpy()))) > least

    return frame.groupby(by, sort=False).filter(lambda each: is_clear(each["value"]))


def accept_unclaimed(unclaimed: Sequence[str], beginnings: Sequence[str]) -> None:
    """Refuse what begins as no claim does: it would be left out of nothing."""
    for name in unclaimed:
        if not name.startswith(tuple(beginnings)):
            raise ValueError(f"what is unclaimed must begin with one of {', '.join(beginnings)}; got {checks.short(name)}")


def without(rows: Any, by: Sequence[str], unclaimed: tuple[str, ...]) -> Any:
    """The rows but those of what is not claimed: the columns in `by`, joined by spaces, begin with one of `unclaimed`.

    >>> frame = pd.DataFrame({"quantity": ["regret", "regret"], "beta": ["0.1", "mean"]})
    >>> without(frame, ["quantity", "beta"], ("regret mean",))["beta"].tolist()
    ['0.1']
    """
    if not unclaimed or rows.empty:
        return rows
    return rows[~rows[list(by)].agg(" ".join, axis=1).str.startswith(unclaimed)]


def not_claimed(check: Check, unclaimed: Sequence[str]) -> Check:
    """The check, which says what is not claimed as well."""
    return replace(check, found=f"{check.found}; not claimed are {', '.join(unclaimed)}") if unclaimed else check


def same_side(frame: pd.DataFrame, by: list[str]) -> Check:
    """Compare on which side of 0 claims are, after the plan's passes and after twice as many.

    For what goes on growing while training images are fitted ever better: that it is there can be claimed, its size cannot.

    - `frame`: a row for each `quantity`, `seed`, number of `passes` (two of them) and value of the columns in `by`.

    The check passes if the 95 % interval of each claim, a mean over seeds, is on one side of 0, the same after both.

    >>> rows = [(4, 0, 1.0), (4, 1, 1.2), (4, 2, 1.1), (8, 0, 3.0), (8, 1, 3.1), (8, 2, 2.9)]
    >>> frame = pd.DataFrame(rows, columns=["passes", "seed", "value"]).assign(quantity="gap", beta=1.0)
    >>> [same_side(each, ["beta"]).passed for each in (frame, frame.assign(value=frame["value"] - 2))]
    [True, False]
    """
    if frame.empty:
        return Check("twice the passes leave every claim on its side of zero", False, "nothing is large enough to be claimed")
    few, many = sorted(frame["passes"].unique())
    claims = {
        key: {passes: Estimate.over_runs(each.loc[each["passes"] == passes, "value"].to_numpy()) for passes in (few, many)}
        for key, each in frame.groupby(["quantity", *by], sort=False)
    }
    far = {  # in halves of the interval, on the side of the first
        key: min(math.copysign(1, each[few].value) * _in_halves(one) for one in each.values()) for key, each in claims.items()
    }
    key = min(far, key=lambda key: far[key])
    said = " ".join(map(str, cast(tuple, key)))
    found = f"of {len(claims)} claims the nearest to zero is {said}: {claims[key][few]:+}, then {claims[key][many]:+}"
    return Check(f"{many} passes leave every claim on its side of zero", min(far.values()) >= 1, found)


def _in_halves(each: Estimate) -> float:
    """How many halves of its 95 % interval a mean over seeds is from 0, with its sign; without any spread, infinitely many."""
    if not each.stderr:
        return math.copysign(math.inf, each.value) if each.value else 0.0
    return each.value / (each.stderr * float(stats.t.ppf(0.975, (each.n or 1) - 1)))


def allowed(claim: Estimate, largest_error: float) -> float:
    """The most that what is claimed may be off, and its error be: `largest_error` or, if that is more, a quarter of it."""
    return max(largest_error, abs(claim.value) / 4)


def errors(claims: Mapping[str, Estimate], largest_error: float) -> Check:
    """Whether the errors of what is claimed are small enough to see it.

    - `claims`: estimates over seeds, by name; none at all is no agreement.
    - `largest_error`: the most that a standard error may be, in the unit of the claims, unless it is at most a quarter of what
      is claimed.

    >>> claims = {"regret": Estimate(4.0, 0.9), "loss": Estimate(0.01, 0.05)}
    >>> [errors(claims, largest).passed for largest in (0.1, 0.01)]
    [True, False]
    """
    if not claims:
        return Check("the errors of what is claimed are small enough", False, "nothing is claimed")
    sizes = {name: claim.stderr / allowed(claim, largest_error) for name, claim in claims.items()}
    name = max(sizes, key=lambda name: (not sizes[name] <= 1, sizes[name]))  # an error that is not known is none too small
    limit = allowed(claims[name], largest_error)
    found = f"of {len(claims)} claims the largest error is of {name}: {claims[name]:+}, {limit:.2g} allowed"
    return Check("the errors of what is claimed are small enough", all(size <= 1 for size in sizes.values()), found)


def second_moments(values: dict[str, float], tolerance: float) -> Check:
    """Compare E z² of the aggregated posterior with 1.

    - `values`: the largest |E z² − 1| over latents, for each model by a name.
    - `tolerance`: the most that it may be.
    """
    name = max(values, key=lambda name: values[name])
    found = f"the largest |E z² − 1| of a latent is {values[name]:.3f} ({name}), {tolerance:g} allowed"
    return Check("the second moments of the latents are those of the prior", max(values.values()) <= tolerance, found)
