"""A product with a prepared weight as one equation of a traced program: what follows it may then be put into its call.

It is there between two tracings alone: `lowbit.interpret.fuse` evaluates it together with what follows. Where it is left as
it is, in a body that nobody looks into, it is lowered as the call without anything after it.
"""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.extend import core as jex
from jax.interpreters import mlir
from jaxtyping import Array

from . import native_calls
from .native import NativeTensor, Order
from .native_calls import Grid, Product

NAME = "lowbit_product"

_primitive = jex.Primitive(NAME)


def bound(product: Product, x: Array, grid: Grid | None, weight: NativeTensor, *, keeps_nan: bool) -> Array:
    """Returns the result of a product as one equation.

    Args:
        product: what it is.
        x: its input, float.
        grid: of a static input.
        weight: prepared.
        keeps_nan: as in `native_calls.run`.
    """
    order = Order(weight.matrix, weight.contract, weight.batch, weight.axes)
    leaves, tree = jax.tree.flatten((x, grid, order))
    return _primitive.bind(*leaves, product=product, tree=tree, keeps_nan=keeps_nan)


def operands(params: Any, values: Any) -> tuple[Any, Any, Any]:
    """Returns the input, its grid and the weight of an equation, of its values."""
    return jax.tree.unflatten(params["tree"], values)


def _alone(*values: Any, product: Product, tree: Any, keeps_nan: bool) -> Array:
    x, grid, weight = jax.tree.unflatten(tree, values)
    return native_calls.run(product, x, grid, weight, keeps_nan=keeps_nan).value


@_primitive.def_abstract_eval
def _(*_: Any, product: Product, tree: Any, keeps_nan: bool) -> Any:
    return jax.core.ShapedArray(product.shape, jnp.dtype(product.dtype))


_primitive.def_impl(_alone)
mlir.register_lowering(_primitive, mlir.lower_fun(_alone, multiple_results=False))
