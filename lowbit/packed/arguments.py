"""Arguments of public functions, checked where they come in: what was got, what is allowed, and which two look swapped.

Without these a wrong argument answers from deep inside JAX, or not at all: ``integer="yes"`` is true.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.core.paths import flatten
from lowbit.core.qtensor import QTensor
from lowbit.plan.rows import Plan

from .trees import QParams


def check(**given: Any) -> None:
    """Raises where an argument, by its name, is not what that name means everywhere in lowbit.

    ``fn``: a function; ``plan``: of `lowbit.bind`; ``params``: float parameters; ``qparams``: packed ones; ``qstate``: the
    state of quantizers; ``key``: a typed
    key or None; ``kwargs``: a mapping or None; ``progress``: a function or None; ``choose``: a function of a row; any other name: True or False.

    Raises:
        TypeError: naming the argument.
    """
    for name, value in given.items():
        _CHECKS.get(name, _flag)(name, value)


def _said(value: Any) -> str:
    """What was got, and where it belongs if it is ours."""
    if isinstance(value, Plan):
        return "got a Plan: it goes to plan="
    if isinstance(value, QParams):
        return "got packed parameters: they go to qparams="
    if isinstance(value, Mapping) and {"learn", "fixed"} == set(value):
        return "got a state of quantizers: it goes to qstate="
    return f"got {value!r:.40} ({type(value).__name__})" if value is not None else "got None"


def _fn(name: str, value: Any) -> None:
    if not callable(value) or isinstance(value, Plan | QParams):
        raise TypeError(f"{name} must be a function of (params, *args), {_said(value)}")


def _plan(name: str, value: Any) -> None:
    if not isinstance(value, Plan):
        raise TypeError(f"{name} must be a Plan from lowbit.bind, {_said(value)}")


def _qparams(name: str, value: Any) -> None:
    if not isinstance(value, QParams):
        raise TypeError(f"{name} must be packed parameters from lowbit.pack or lowbit.load, {_said(value)}")


def _params(name: str, value: Any) -> None:
    is_state = isinstance(value, Mapping) and {"learn", "fixed"} == set(value)
    if value is None or isinstance(value, Plan | QParams) or is_state:
        raise TypeError(f"{name} must be a tree of float parameters, {_said(value)}")
    paths, leaves, _ = flatten(value)
    for path, leaf in zip(paths, leaves, strict=True):
        if isinstance(leaf, QTensor):
            raise TypeError(f"{name} are packed already: {path!r} is a QTensor; pass the float parameters")
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(f"{name} must be a tree of arrays, parameter {path!r} must be an array, {_said(leaf)}")


def _qstate(name: str, value: Any) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(value.get(part), Mapping) for part in ("learn", "fixed")):
        raise TypeError(f'{name} must be {{"learn": ..., "fixed": ...}} as lowbit.init returns it, {_said(value)}')


def _key(name: str, value: Any) -> None:
    if value is not None and not (hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"{name} must be a typed key such as jax.random.key(0), {_said(value)}")


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, {_said(value)}")


def _kwargs(name: str, value: Any) -> None:
    if value is not None and not (isinstance(value, Mapping) and all(isinstance(word, str) for word in value)):
        raise TypeError(f"{name} must be a mapping of keyword arguments, {_said(value)}")


def _choose(name: str, value: Any) -> None:
    if not callable(value) or isinstance(value, Plan | QParams):
        raise TypeError(f"{name} must be a function of a row of the plan, {_said(value)}")


def _progress(name: str, value: Any) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be a function or None, {_said(value)}")


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "fn": _fn,
    "plan": _plan,
    "params": _params,
    "qparams": _qparams,
    "qstate": _qstate,
    "key": _key,
    "kwargs": _kwargs,
    "progress": _progress,
    "choose": _choose,
}


def check_leaves(plan: Plan, params: Any) -> None:
    """Raises where a tree lacks a parameter that the plan quantizes, or has it in another shape.

    Raises:
        ValueError: naming the parameter, what the plan says and what there is.
    """
    paths, leaves, _ = flatten(params)
    shapes = {path: tuple(leaf.shape) for path, leaf in zip(paths, leaves, strict=True) if hasattr(leaf, "shape")}
    for path, site in plan.leaf_sites().items():
        if path not in shapes:
            raise ValueError(
                f"params have no {path!r}, which the plan quantizes; they have {', '.join(list(shapes)[:8]) or 'nothing'}"
            )
        if shapes[path] != tuple(site.operand.shape):
            raise ValueError(
                f"params hold {path!r} of shape {shapes[path]}, the plan was bound for {tuple(site.operand.shape)}"
            )


def check_call(
    fn: Callable[..., Any], params: Any, args: Iterable[Any], kwargs: Mapping[str, Any], name: str = "args"
) -> None:
    """Raises where a function cannot be called like this: too few or too many arguments, or another keyword.

    Raises:
        TypeError: with its signature.
    """
    try:
        signature = inspect.signature(fn, follow_wrapped=False)  # a wrapper may take more: a folded model's ``frozen``
    except (TypeError, ValueError):  # it does not say
        return
    try:
        signature.bind(params, *args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name} do not fit fn{signature}: {error}, after the parameters") from None


def check_runs(fn: Callable[..., Any], params: Any, args: tuple[Any, ...]) -> None:
    """Raises where a function cannot look up in parameters what it looks up: there is no plan yet that says what it reads.

    Raises:
        ValueError: for a key, index or attribute that is not there.
        TypeError: for another error of type; both name the parameters that there are and show the function's own error.
    """
    try:
        jax.eval_shape(fn, params, *args)
    except jax.errors.JAXTypeError:  # it says itself what it is: a value that is asked for under a trace
        raise
    except (LookupError, AttributeError, TypeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        paths = flatten(params)[0]
        raise kind(
            f"fn(params, *batches[0]) fails with {type(error).__name__}: {error}; params hold "
            f"{', '.join(paths[:8]) or 'nothing'}"
        ) from error


def callable_batches(batches: Any) -> Callable[[], Iterable[Any]]:
    """Returns a function that iterates over batches from the first one, of such a function or of an iterable.

    Raises:
        TypeError: for what is neither.
    """
    if not callable(batches):
        held = list(iterated(batches))
        return lambda: held
    try:
        inspect.signature(batches).bind()
    except ValueError:  # it does not say what it takes
        return lambda: iterated(batches())
    except TypeError as error:
        raise TypeError(f"batches must be a list, or a function of no arguments: {error}") from None
    return lambda: iterated(batches())


def batch_of(value: Any, index: int) -> tuple[Any, ...]:
    """Returns a batch of calibration data as the arguments that it is.

    Raises:
        TypeError: if it is no tuple.
    """
    if not isinstance(value, tuple | list):
        raise TypeError(
            f"batches must give tuples of arguments: a batch must be a tuple of arguments (x,) or (state, x), batch {index}: "
            f"{_said(value)}"
        )
    return tuple(value)


def iterated(batches: Any) -> Iterable[Any]:
    """Returns batches as what can be iterated.

    Raises:
        TypeError: for a mapping, an array, or what gives nothing.
    """
    is_tree = isinstance(batches, Mapping | str | Plan) or hasattr(batches, "shape")
    if is_tree or not isinstance(batches, Iterable):
        raise TypeError(f"batches must be a list, or another iterable, of tuples of arguments, {_said(batches)}")
    return batches
