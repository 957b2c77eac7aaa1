"""What `help()` says: every public name has a docstring, and every public function and class an example that the tests run."""

import importlib
import inspect
import typing

import pytest

import nbvae

# Records that functions return: their own docstrings list the fields, the functions' examples make them.
RECORDS = typing.NamedTuple


def public(room):
    module = importlib.import_module(f"nbvae.{room}")
    names = getattr(module, "__all__", None)
    if names is None:
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        names = [name for name in own if not name.startswith("_")]
    return [(f"{room}.{name}", getattr(module, name)) for name in names]


NAMES = [each for room in nbvae.__all__ for each in public(room)]
CALLED = [(name, value) for name, value in NAMES if inspect.isfunction(value) or inspect.isclass(value)]


@pytest.mark.parametrize(("name", "value"), CALLED, ids=[name for name, _ in CALLED])
def test_every_public_function_and_class_says_what_it_is_and_shows_it(name, value):
    text = inspect.getdoc(value) or ""
    assert text, f"{name} has no docstring"
    assert text.split("\n\n")[0].strip()[-1:] in ".:`)", f"the first sentence of {name} does not end"
    made_by_others = inspect.isclass(value) and not inspect.isabstract(value) and name in MADE_BY_FUNCTIONS
    assert ">>> " in text or made_by_others, f"{name} has no example"


# Records that are only ever returned; the examples of the functions that return them show them.
MADE_BY_FUNCTIONS = {
    "analytic.DiscreteRD",
    "analytic.GaussianTerms",
    "analytic.SampledRD",
    "analytic.Solution",
    "curves.Envelope",
    "curves.Regret",
    "estimators.ActiveUnits",
    "estimators.CrossTerms",
    "estimators.Decomposition",
    "estimators.MinibatchTerms",
    "estimators.Moments",
    "limits.DiscreteLimit",
    "limits.LowerBound",
    "limits.UpperBound",
    "metrics.Alignment",
    "metrics.Classifier",
    "metrics.Coverage",
    "metrics.Importances",
    "metrics.InformationGap",
    "metrics.Measured",
    "notebook.Live",
    "notebook.Table",
    "posterior.LogDensities",
    "samplers.Sampler",
}


def test_the_exceptions_are_public_names():
    assert {name for name, _ in NAMES} >= MADE_BY_FUNCTIONS


def test_the_front_page_of_help_lists_every_public_name():
    front = inspect.getdoc(nbvae) or ""
    for room in nbvae.__all__:
        line = front.split(f"- `{room}`:")[1].split("\n- `")[0].replace(",", " ").split()
        assert {name.split(".")[1] for name, _ in public(room)} - {"check_data", "check_input"} <= set(line), room
