"""The calls that an equation is inside of."""

from collections.abc import Sequence
from typing import Any

from . import compat


def around(closed: Any, address: Sequence[int]) -> tuple[str, ...]:
    """Returns the sorts of calls around an equation, from outside in (words of `lowbit.program.compat.kind`).

    Args:
        closed: the closed jaxpr.
        address: of the equation in it: equation index, body index, ..., equation index.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> twice = jax.make_jaxpr(lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, None, 2)[0])(1.0)
        >>> around(twice, (0, 0, 0))
        ('scan',)
    """
    paths: list[str] = []
    jaxpr = closed.jaxpr
    for equation, body in zip(address[:-1:2], address[1::2], strict=True):
        eqn = jaxpr.eqns[equation]
        paths.append(compat.kind(eqn) or eqn.primitive.name)
        jaxpr = compat.bodies(eqn)[body].jaxpr
    return tuple(paths)
