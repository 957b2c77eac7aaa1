"""The book's experiments, each defined once: what it asks, its plan, how it is run, what was found.

    python -m studies                       # what there is, when it was recorded, what it cost
    python -m studies NAME --plan quick     # run one now
    python -m studies NAME --record         # run its full plan and write book/recorded/NAME.json

A chapter reads `studies.load("NAME", dataset=dataset, budget=budget)`. Each study is a module of this package, with

- `QUESTION`: what it asks, in one line; `CHAPTER`: the notebook that reads it;
- `DATASETS`: those that the book's record covers;
- `Plan`: its settings, a subclass of `studies.plan.Plan`; `plan(dataset, budget)`: those of a budget, "full", "quick" or
  "smoke";
- `run(plan, lab)`: trains, measures, and returns a `Record`.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from nbvae import checks, training
from studies.lab import Lab
from studies.plan import BUDGETS, Plan
from studies.record import Record, read

# The studies, each a module of this package.
NAMES = (
    *("failures", "objectives", "sampled", "weights", "curve", "decoders", "limits", "spectra", "sigma", "collapse"),
    *("multi_beta", "warm", "page_model", "samplers", "priors", "ladder", "coupled", "third_axis", "far", "disentanglement"),
    *("lossless", "hole", "arrives"),
)

KEPT = ".studies"  # the folder for what a reader runs, in the current one: the command's default too

__all__ = ["KEPT", "NAMES", "Lab", "Plan", "Record", "beside", "load", "study"]


def study(name: str) -> Any:
    """The module of a study by its `name`; `ValueError` for a name that is none.

    >>> study("objectives").CHAPTER
    '02_four_terms'
    """
    checks.choice("study", name, NAMES)
    return importlib.import_module(f"studies.{name}")


def load(
    name: str,
    dataset: str = "digits",
    budget: str = "recorded",
    lab: Lab | None = None,
    otherwise: Mapping[str, Any] | None = None,
    device: str = "auto",
    **settings: Any,
) -> Record:
    """What a study found: the book's record, or the same experiment run now.

    - `name`: one of `NAMES`. Write it out in a notebook: the builder finds the record by it.
    - `dataset`: a name that `data.load` knows, or the path of an .npz.
    - `budget`: "recorded" reads the record, and where there is none for this data set and these settings runs the quick plan
      now; "full", "quick" and "smoke" run that plan now.
    - `lab`: where it is run; by default in this process. What has finished is kept in the folder `.studies` of the current
      one, if it can be written, and is not computed again: a run that is stopped goes on there. A bar shows the progress where
      a person watches.
    - `otherwise`: fields of the plan to change where no record is read, as for data of a reader's own.
    - `device`: the device it is trained on where it is run now, without a `lab`.
    - `settings`: fields of the plan to change, such as `seeds=(0, 1)`; a record counts only if it was made with them.

    Raises `ValueError`, in one line, for an unknown study, budget, data set or setting.

    >>> found = load("objectives", budget="smoke")
    >>> found.live, found.plan["passes"], sorted(found.frame["objective"].unique())
    (True, 1, ['VAE', 'weight 6 on TC', 'β-VAE, β = 2'])
    """
    module = study(name)
    checks.choice("budget", budget, ("recorded", *BUDGETS))
    if budget == "recorded" and (found := _recorded(name, dataset, settings)):
        return found
    plan = module.plan(dataset, "quick" if budget == "recorded" else budget).changed(**{**(otherwise or {}), **settings})
    return module.run(plan, _here(device) if lab is None else lab)


def _here(device: str) -> Lab:
    """This process as a lab that keeps what it can."""
    training.device(device)
    try:
        return Lab(KEPT, device=device, watched=training.watched())
    except ValueError:  # nothing can be written here
        return Lab(device=device, watched=training.watched())


def beside(name: str, dataset: str) -> dict[str, Record]:
    """The book's records of the study `name` on other data sets than `dataset`, by their names, in the order of its `DATASETS`.

    >>> list(beside("spectra", "digits")), list(beside("spectra", "mine.npz"))
    (['mnist', 'glyphs', 'patches'], ['digits', 'mnist', 'glyphs', 'patches'])
    """
    found = {other: _recorded(name, other, {}) for other in study(name).DATASETS if other != dataset}
    return {other: each for other, each in found.items() if each is not None}


def _recorded(name: str, dataset: str, settings: dict[str, Any]) -> Record | None:
    """The book's record, if it is of the full plan as it is today, with these settings."""
    found = read(name, dataset)
    if found is None or study(name).plan(dataset, "full").changed(**settings).hash != found.hash:
        return None
    return found
