"""What a function says of its own arguments, through whatever is wrapped around it."""

import functools
from typing import Any


def takes_state(fn: Any) -> bool:
    """Returns whether the first argument of ``fn`` after the parameters is a model's state, and no data.

    `lowbit.linen`, `lowbit.nnx` and rewrites say so by an attribute ``takes_state = True``. It is looked for through
    ``__wrapped__`` (`functools.wraps`, `jax.jit`, `jax.checkpoint`, rewrites) and `functools.partial` of keywords. A plain function around another is not looked into: `lowbit.chain` marks what its rewrites return.
    """
    seen = set()
    while id(fn) not in seen:
        seen.add(id(fn))
        if isinstance(fn, functools.partial):
            if fn.args:
                return False  # the parameters are bound: what comes first now is another argument
            fn = fn.func
        elif (mark := getattr(fn, "takes_state", None)) is not None:
            return bool(mark)
        elif (inner := getattr(fn, "__wrapped__", None)) is not None:
            fn = inner
        else:
            return False
    return False
