"""The search of learning rates and numbers of passes: what is tried next, and what of all is chosen.

A search begins with a few learning rates and numbers of passes, on some of the seeds, and goes on while the best is the largest
or the smallest of those tried.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

CHOSEN_BY = {"train": "train loss", "test": "validation loss"}  # by split: what tells which training is the better one


class Entrant(NamedTuple):
    """What is compared: the best training of each member, a β of the β-VAEs or one model's power, of at most so many passes."""

    name: str
    conditioning: str
    members: tuple[float, ...]
    passes: int


class Choice(NamedTuple):
    """A training, but for its seed."""

    conditioning: str
    member: float
    passes: int
    lr: float


def further(every: Any, most: Mapping[tuple[str, float], int], gain: float, by: str) -> list[Choice]:
    """Trainings to add because the best learning rate, or else the best number of passes, is an edge of those tried.

    The next is as far beyond the edge as its neighbour is before it, and of passes no more than may be.

    - `every`: rows with a conditioning, member, passes, lr, seed, beta and losses.
    - `most`: the most passes of each conditioning and member.
    - `gain`: by how much an edge must be better than the others, in nats.
    - `by`: the loss that tells which is better, a column.
    """
    found = []
    for (conditioning, member), group in every.groupby(["conditioning", "member"], sort=False):
        means = means_of(group, by)
        rates = {int(passes): means[passes] for passes in means.index.unique("passes")}
        beyond = {passes: lr for passes, losses in rates.items() if (lr := beyond_edge(losses, gain))}
        found += [Choice(conditioning, member, passes, rounded(lr)) for passes, lr in beyond.items()]
        passes = min(int(beyond_edge(means.groupby("passes").min(), gain) or 0), most[conditioning, member])
        if beyond or passes < 1 or passes in rates:
            continue
        # Longer trainings have smaller rates: begin with the best one of the neighbour, and the next in that direction.
        longer = passes > max(rates)
        losses = rates[max(rates) if longer else min(rates)]
        best, step = losses.idxmin(), losses.index[1] / losses.index[0] if len(losses) > 1 else 1.0
        next_one = rounded(best / step if longer else best * step)
        found += [Choice(conditioning, member, passes, lr) for lr in sorted({float(best), next_one})]
    return found


def beyond_edge(losses: Any, gain: float) -> float | None:
    """What to try next where the smallest of losses (with what they are losses of as their index) is the first or the last.

    None where it is neither, or is not better than all others by `gain`.
    """
    places, best = losses.index, int(losses.argmin())
    if len(losses) < 2 or best not in (0, len(losses) - 1) or not losses.iloc[best] < losses.drop(places[best]).min() - gain:
        return None
    return places[best] ** 2 / places[1 if best == 0 else -2]


def rounded(lr: float) -> float:
    return float(f"{lr:.2g}")


def choose(plan: Any, every: Any, entrant: Entrant, times: float, by: str) -> list[Choice]:
    """The best trainings of an entrant by a loss, of at most so many times its passes, one for each member."""
    found = []
    for member in entrant.members:
        mine = (every["conditioning"] == entrant.conditioning) & (every["member"] == member)
        known = every["seed"].isin(plan.seeds[: plan.search]) & (every["passes"] <= times * entrant.passes)
        means = means_of(every[mine & known], by)
        passes, lr = means.idxmin()
        if not math.isfinite(means.min()):
            raise RuntimeError(f"every training of {entrant.name} diverged")
        found.append(Choice(entrant.conditioning, member, int(passes), float(lr)))
    return found


def means_of(rows: Any, by: str) -> Any:
    """The mean of a loss for each number of passes and learning rate; infinite where one diverged."""
    each = rows.groupby(["passes", "lr"])[by]
    means = each.agg(lambda values: values.mean(skipna=False)).fillna(math.inf)
    return means.where(each.size() == each.size().max(), math.inf)
