"""What measuring asks of a model and of data, and evaluation mode while it lasts, whatever kind of object the model is."""

import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, distributions, nn
from torch.distributions import constraints

from nbvae import checks
from nbvae._sameness import sandbox

_Function = TypeVar("_Function", bound=Callable[..., Any])
_CLOSED = (Tensor, ModuleType, type)  # what they hold is not looked at
_CURE = "make the dimensions of {} its event with torch.distributions.Independent"


@contextmanager
def measuring(model: object) -> Iterator[None]:
    """Evaluation mode and no gradients inside; afterwards, also after an error, every submodule has its own mode again.

    `model` is anything that computes with `nn.Module`s: one itself, a view of one, or an object with some in its attributes,
    lists, dicts or closures. Nothing is touched where all are in evaluation mode already.
    """
    training = [module for module in modules(model) if module.training]
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def measured(function: _Function) -> _Function:
    """`function(model, ...)` run in `measuring(model)`."""

    @functools.wraps(function)
    def run(model: Any, *args: Any, **kwargs: Any) -> Any:
        with measuring(model):
            return function(model, *args, **kwargs)

    return run  # type: ignore[return-value]


def modules(model: object) -> list[nn.Module]:
    """The `nn.Module`s that an object can compute with: in what it holds, however deep, and in what its functions name."""
    # What an object holds is what the garbage collector would visit: no kind of container or view has to be known here.
    found: list[nn.Module] = []
    seen: dict[int, Any] = {}  # the objects too: an id is an object's own only while it lives
    left: list[Any] = [model, *(vars(kind) for kind in type(model).__mro__ if not issubclass(nn.Module, kind))]
    while left:
        thing = left.pop()
        if (
            not gc.is_tracked(thing)
            or id(thing) in seen
            or isinstance(thing, _CLOSED)
            or (isinstance(thing, dict) and not thing)
        ):
            continue
        seen[id(thing)] = thing
        if isinstance(thing, nn.Module):
            found.append(thing)
        if isinstance(thing, FunctionType):  # of the globals only those that it names
            names = thing.__globals__
            left += [names[name] for name in _named(thing.__code__) if name in names]
            left += [thing.__closure__, thing.__dict__]
        else:
            left += gc.get_referents(thing)
    return found


def _named(code: CodeType) -> set[str]:
    """The names that a function's code mentions, in the functions that are written inside it too."""
    inner = [_named(each) for each in code.co_consts if isinstance(each, CodeType)]
    return {*code.co_names}.union(*inner)


def check_model(model: Any, *methods: str) -> None:
    """Raise `ValueError` where `model` is none, or one of many β: it is measured at one.

    `methods` are those that are needed, by default all three.
    """
    lacks = not all(callable(getattr(model, name, None)) for name in methods or ("posterior", "likelihood", "prior"))
    if isinstance(model, type) or lacks:
        kind = model.__name__ if isinstance(model, type) else type(model).__name__
        hint = ": pass its .model" if hasattr(model, "model") else ""
        hint = ": make one of the class" if isinstance(model, type) else hint
        hint = ": the model comes first, then the data" if isinstance(model, Tensor) or hasattr(model, "train_labels") else hint
        raise ValueError(f"a model must have posterior(x), likelihood(z) and prior(); {kind} has not{hint}")
    if callable(getattr(model, "at", None)):
        raise ValueError("a model of many β is measured, and sampled from, at one β: give model.at(beta)")


def check_input(model: Any, x: Any, name: str = "x", least: int = 1) -> None:
    """Raise `ValueError` where `model` is none (a `Run`, say, in place of its `.model`), or x no tensor of finite examples.

    - `model`: what is to be measured, with `posterior(x)` and `prior()`.
    - `x`: the examples (N, *shape).
    - `name`: what the error calls x.
    - `least`: the number of examples that are needed.

    >>> import torch
    >>> from nbvae import models, objectives
    >>> objectives.check_input(models.VAE((4,), 2), torch.rand(10, 4).numpy())
    Traceback (most recent call last):
    ValueError: x must be a torch tensor of examples, got ndarray: torch.as_tensor makes one of an array
    """
    check_model(model, "posterior", "prior")
    check_examples(x, name, least)


def check_examples(x: Any, name: str = "x", least: int = 1) -> None:
    """Raise `ValueError` unless x is a tensor of at least `least` examples (N, *shape), finite real numbers."""
    if not isinstance(x, Tensor) or x.dim() == 0:
        hint = "torch.as_tensor makes one of an array"
        hint = "pass its .train or .test" if hasattr(x, "train") and not isinstance(x, nn.Module) else hint
        hint = "stack its examples with torch.stack, or its batches with torch.cat" if hasattr(x, "dataset") else hint
        raise ValueError(f"{name} must be a torch tensor of examples, got {type(x).__name__}: {hint}")
    if len(x) < least or not x.numel():
        found = len(x) if len(x) < least else f"the shape {tuple(x.shape)}"
        raise ValueError(f"{name} must have at least {least} example{'s' * (least > 1)}, got {found}")
    if x.is_complex() or not x.isfinite().all():
        raise ValueError(f"{name} must hold finite real numbers, it holds {'complex ones' if x.is_complex() else 'nan or inf'}")


def check_data(model: Any, x: Any, least: int = 1) -> None:
    """`check_input`, and `ValueError` where x is no data for the model's likelihood: grey pixels under a Bernoulli, say.

    `model`, x (batch, *shape) and `least`, the fewest examples that will do, are those of `check_input`. The model's `check(x)`
    is asked, if it has one; else the shape of the likelihood's event and its support, where all its parameters have the same.

    >>> import torch
    >>> from nbvae import models, objectives
    >>> objectives.check_data(models.VAE((4,), 2), torch.zeros(10, 5))
    Traceback (most recent call last):
    ValueError: the model is for examples of shape (4,), the data have (5,)
    """
    check_model(model)
    check_input(model, x, least=least)
    check = getattr(model, "check", None)
    if callable(check):
        check(x)
        return
    z = model.prior().mean[None]
    with measuring(model), sandbox(modules(model)):
        likelihood = _distribution(f"likelihood(z) of z {tuple(z.shape)}", lambda: model.likelihood(z))
    check_event(likelihood, x.shape[1:])
    _check_support(likelihood, x)


def check_event(likelihood: distributions.Distribution, shape: Sequence[int]) -> None:
    """Raise `ValueError` unless the likelihood's event is one example, of this shape: another may broadcast into nonsense."""
    if likelihood.event_shape != shape:
        raise ValueError(
            f"likelihood(z) must have the event {tuple(shape)}, got {tuple(likelihood.event_shape)}: "
            f"give x in the shape of its event, or {_CURE.format('an example')}"
        )


def _check_support(likelihood: distributions.Distribution, x: Tensor) -> None:
    """Raise `ValueError` for x outside the support of a likelihood, where torch knows it and it is that of all parameters."""
    base = likelihood
    while isinstance(base, distributions.Independent):
        base = base.base_dist
    support: Any = getattr(type(base), "support", None)
    known = isinstance(support, constraints.Constraint) and not constraints.is_dependent(support)
    if known and not support.check(x).all():
        kind = type(base).__name__
        cure = "binarize='threshold', 'static' or 'dynamic' makes pixels of 0 and 1" if kind == "Bernoulli" else "use another"
        raise ValueError(f"x has values outside the support of likelihood(z), a {kind}, which is {support}: {cure}")


def check_distributions(model: Any, data: Float[Tensor, "n *shape"]) -> None:
    """Raise `ValueError` where the three distributions of a model are not those of one z, and of one example, for each of x.

    They are looked at for the first two examples of the data, and a model's own `check` has been asked, if it has one.
    """
    prior = _distribution("prior()", model.prior)
    if prior.batch_shape or len(prior.event_shape) != 1:
        shapes = f"batch {tuple(prior.batch_shape)} and event {tuple(prior.event_shape)}"
        raise ValueError(f"prior() must be one distribution of z (k,), got {shapes}: {_CURE.format('z')}")
    x = data[:2].to(prior.mean)
    with measuring(model), sandbox(modules(model)):
        posterior = _distribution(f"posterior(x) of x {tuple(x.shape)}", lambda: model.posterior(x))
        z = posterior.sample()
        _per_example("posterior(x)", posterior.log_prob(z), len(x))
        likelihood = _distribution(f"likelihood(z) of z {tuple(z.shape)}", lambda: model.likelihood(z))
    check_event(likelihood, x.shape[1:])
    if not callable(getattr(model, "check", None)):
        _check_support(likelihood, data)
    _per_example("likelihood(z)", likelihood.log_prob(x), len(x))


def _distribution(what: str, make: Callable[[], Any]) -> distributions.Distribution:
    try:
        made = make()
    except (ValueError, RuntimeError) as error:  # torch's own lists the values that are wrong, on a hundred lines
        raise ValueError(f"{what} fails: {checks.line(error)}") from None
    if not isinstance(made, distributions.Distribution):
        raise ValueError(f"{what} must be a distribution of torch.distributions, got {checks.short(made)}")
    return made


def rate_of(posterior: distributions.Distribution, prior: distributions.Distribution, n: int) -> Float[Tensor, " n"]:
    """`closed_rate` of each of n examples x; `ValueError` where one is infinite."""
    rate = _per_example("posterior(x)", closed_rate(posterior, prior), n)
    return _known("posterior(x)", rate, ~rate.isfinite())


def closed_rate(posterior: distributions.Distribution, prior: distributions.Distribution) -> Tensor:
    """KL(q(z|x) ‖ p(z)) in closed form, nats; `ValueError` where torch has none."""
    try:
        return distributions.kl_divergence(posterior, prior)
    except NotImplementedError:
        names = " and ".join(type(each).__name__ for each in (posterior, prior))
        raise ValueError(f"the rate needs KL(q(z|x) ‖ p(z)) in closed form; torch.distributions has none for {names}") from None


def log_prob(likelihood: distributions.Distribution, x: Float[Tensor, "rows *shape"]) -> Float[Tensor, " rows"]:
    """log p(x|z) of each row, nats, summed over its dimensions.

    `ValueError` where the likelihood's event is not an example, and where a value is no number.
    """
    value = _per_example("likelihood(z)", likelihood.log_prob(x), len(x))
    return _known("likelihood(z)", value, value.isnan())


def log_likelihood(model: Any, z: Float[Tensor, "*draws batch k"], x: Float[Tensor, "batch *shape"]) -> Tensor:
    """log p(x|z) (*draws, batch) at several z for each x: the decoder sees them as rows (draws · batch, k)."""
    return log_prob(model.likelihood(z.flatten(0, -2)), repeated(x, z)).unflatten(0, z.shape[:-1])


def repeated(x: Float[Tensor, "batch *shape"], z: Float[Tensor, "*draws batch k"]) -> Float[Tensor, "rows *shape"]:
    """x once for each of the draws of z, as rows that match those of z."""
    draws = z.shape[:-2]
    return x.expand(*draws, *x.shape).flatten(0, len(draws))


def _per_example(what: str, value: Tensor, n: int) -> Tensor:
    if value.shape != (n,):
        raise ValueError(
            f"{what} must have one log-density for each row, the shape {(n,)}, got {tuple(value.shape)}: "
            "make the other dimensions its event with torch.distributions.Independent"
        )
    return value


def _known(what: str, value: Tensor, wrong: Tensor) -> Tensor:
    if wrong.any():
        raise ValueError(
            f"{what} gives no finite number for {int(wrong.sum())} of {len(value)} rows: either x is not on the scale of the "
            "training data, or the model has diverged"
        )
    return value
