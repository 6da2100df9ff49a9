"""What the public functions ask of their arguments, first of all: a message names the argument, what was got and what is allowed.

Types, shapes and dtypes only: under a trace there are no values.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FLOATS = ("float32", "bfloat16", "float16")
CODES = ("int8", "uint8")


def array(what: str, x: Any, kinds: str = "", rank: int | None = None) -> Any:
    """Returns an array as it is, or one of numpy as one of JAX: of `kinds` "float", "integer", "code" or "float or code".

    Args:
        what: names the argument, as "pack_matrix: codes".
        x: of JAX or numpy, or what JAX takes for one. A list or a number is none: its dtype would be a guess.
        kinds: of the elements; "" takes all. Floats are those of 16 and 32 bits, codes int8 and uint8.
        rank: number of axes, or None for any.

    Raises:
        TypeError: no array, or other elements.
        ValueError: another rank.
    """
    if not isinstance(x, jax.Array | np.ndarray | np.generic) and not hasattr(x, "__jax_array__"):
        raise TypeError(f"{what} must be an array of jax or numpy, got {kind_of(x)}")
    if isinstance(x, np.ndarray | np.generic) and x.dtype.kind in "OSUVMm":
        raise TypeError(f"{what} must be an array of numbers, got {x.dtype}")
    x = jnp.asarray(x)
    if kinds == "integer":
        is_so = jnp.issubdtype(x.dtype, jnp.integer)
    else:
        allowed = (FLOATS if "float" in kinds else ()) + (CODES if "code" in kinds else ())
        is_so = not allowed or x.dtype.name in allowed
        kinds = ", ".join(allowed)
    if not is_so:
        raise TypeError(f"{what} must be {kinds}, got {x.dtype.name}")
    if rank is not None and x.ndim != rank:
        raise ValueError(f"{what} must have {rank} axes, got shape {x.shape}")
    return x


def described(what: str, x: Any) -> None:
    """Raises TypeError where a field of a packed weight has no shape and dtype; what has is an array, or stands for one."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(f"{what} must be an array, got {kind_of(x)}")


def number(what: str, x: Any, *, is_integer: bool = False) -> None:
    """Raises TypeError where `x` is neither a real number nor an array of them; a whole one, where asked."""
    is_number = isinstance(x, int | float | jax.Array | np.ndarray | np.generic) or hasattr(x, "__jax_array__")
    if isinstance(x, bool) or not is_number:
        raise TypeError(f"{what} must be a number or an array of jax or numpy, got {kind_of(x)}")
    dtype = getattr(x, "dtype", None)
    if dtype is not None and not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"{what} must be a real number, got {dtype}")
    if is_integer and isinstance(x, float) and not x.is_integer():
        raise TypeError(f"{what} must be an integer, got {x!r}")


def integer(what: str, n: Any, least: int | None = None, most: int | None = None) -> int:
    """Returns an integer of Python or numpy that lies in `[least, most]`.

    Raises:
        TypeError: anything else; True and False are no numbers here.
        ValueError: beyond the ends.
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer):
        raise TypeError(f"{what} must be an integer, got {kind_of(n)}")
    if (least is not None and n < least) or (most is not None and n > most):
        allowed = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{what} must be {allowed}, got {n}")
    return int(n)


def integers(what: str, values: Any, count: int, least: int | None = None) -> tuple[int, ...]:
    """Returns `count` integers, each at least `least`.

    Raises:
        TypeError: no sequence of integers.
        ValueError: another number of them, or one that is too small.
    """
    if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str):
        raise TypeError(f"{what} must be {count} integers, got {kind_of(values)}")
    if len(values) != count:
        raise ValueError(f"{what} must be {count} integers, got {len(values)}: {values!r:.80}")
    return tuple(integer(f"each of {what}", n, least) for n in values)


def flag(what: str, value: Any) -> None:
    """Raises TypeError where `value` is neither True nor False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{what} must be True or False, got {kind_of(value)}")


def float_dtype(what: str, dtype: Any) -> str:
    """Returns the name of a dtype of results.

    Raises:
        TypeError: no dtype.
        ValueError: a dtype of other numbers.
    """
    allowed = f"one of {', '.join(FLOATS)}"
    if isinstance(dtype, list | tuple | dict | float | int | None):  # numpy reads structures from some
        raise TypeError(f"{what} must be {allowed}, got {kind_of(dtype)}")
    try:
        name = jnp.dtype(dtype).name
    except TypeError as error:
        raise TypeError(f"{what} must be {allowed}, got {kind_of(dtype)}") from error
    if name not in FLOATS:
        raise ValueError(f"{what} must be {allowed}, got {name}")
    return name


def word(what: str, value: Any, allowed: Sequence[str]) -> str:
    """Returns one of the words that are allowed.

    Raises:
        TypeError: no text.
        ValueError: another word.
    """
    names = ", ".join(map(repr, allowed))
    if not isinstance(value, str):
        raise TypeError(f"{what} must be one of {names}, got {kind_of(value)}")
    if value not in allowed:
        raise ValueError(f"{what} must be one of {names}, got {value!r}")
    return value


def instance(what: str, value: Any, kinds: type | tuple[type, ...], made_by: str) -> None:
    """Raises TypeError where `value` is not of one of the classes; the message says which function makes them."""
    if not isinstance(value, kinds):
        names = " or ".join(f"a {kind.__name__}" for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise TypeError(f"{what} must be {names}, as {made_by} makes it, got {kind_of(value)}")


def kind_of(value: Any) -> str:
    """Returns a few words that say what a value is."""
    if value is None or isinstance(value, bool | int | float | str):
        return f"{value!r:.60}"
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype} {value.shape}"
    return f"a {type(value).__name__}"
