"""What rewrites that compute products otherwise share: products of data with a matrix of parameters, and a function with others.

A rewrite of this kind adds parameters under a name of its own: ``{**params, root: {path of the weight: ...}}``, or
``{"params": params, root: ...}`` where parameters are no dictionary, so that all others keep their paths.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lowbit.program.evaluate import again, evaluate
from lowbit.program.read import Equation, Value

from .traced import Traced, trace_model


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product of data with a weight ``[K, N]`` or ``[N, K]``, moved at most, outside loops.

    Attributes:
        path: of the weight.
        leaf: its index among the parameters.
        address: of the equation.
        side: which operand is the weight.
        axis: of the data, that is summed over.
        inner: axis of the leaf that is summed over.
    """

    path: str
    leaf: int
    address: tuple[int, ...]
    side: int
    axis: int
    inner: int

    def data(self, values: Sequence[Any]) -> Any:
        """Returns the data among the operands."""
        return values[1 - self.side]

    def placed(self, result: Any) -> Any:
        """Returns results ``[..., N]`` with the axis of outputs where the equation has it."""
        return result if self.side == 1 else jnp.moveaxis(result, -1, 0)

    def multiplied(self, x: Any, matrix: Any) -> Any:
        """Returns the data times a matrix ``[K, N]``, outputs last."""
        return jax.lax.dot_general(x, matrix, (((self.axis,), (0,)), ((), ())))

    def through(self, x: Any, a: Any, b: Any) -> Any:
        """Returns the data times two thin matrices ``[K, k]`` and ``[k, N]``, with the axis of outputs where the equation has it."""
        thin = self.multiplied(x, a.astype(x.dtype))
        return self.placed(jax.lax.dot_general(thin, b.astype(x.dtype), (((thin.ndim - 1,), (0,)), ((), ()))))

    def scaled(self, x: Any, factors: Any) -> Any:
        """Returns the data times a factor for every input, ``[K]``."""
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return x * factors.reshape(shape).astype(x.dtype)


How = Callable[[Product, Equation, list[Any], Any], Any]
"""``(product, equation, operands, parameters of the weight) -> what the equation makes``"""


@dataclasses.dataclass(frozen=True)
class Altered:
    """A function some of whose products are computed otherwise: ``fn(params, state, *args)``. ``print`` shows what was done.

    Attributes:
        fn: the function that was rewritten.
        title: which rewrite.
        root: under which its parameters stand.
        products: those that are computed otherwise.
        how: they are.
        lines: what it did, and what it left as it is and why.
    """

    fn: Callable[..., Any]
    title: str
    root: str
    products: tuple[Product, ...]
    how: How
    lines: tuple[str, ...]

    takes_state: ClassVar[bool] = True  # the first argument after the parameters is no data

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The function that was rewritten: what `inspect.signature` shows."""
        return self.fn

    def __call__(self, params: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.products:
            return self.fn(params, state, *args, **kwargs)
        own = params[self.root]
        rest = {k: v for k, v in params.items() if k != self.root}
        rest = rest["params"] if self._is_wrapped(params) else rest
        traced = trace_model(self.fn, rest, state, args, kwargs)
        by_address = {product.address: product for product in self.products}
        met = set()

        def made(equation: Equation, values: list[Any]) -> Sequence[Any]:
            product = by_address.get(equation.address)
            if product is None:
                return again(equation, values)
            if equation.name != "dot_general":
                raise ValueError(
                    f"{self.title}: for these arguments the function has no product with {product.path} where one was "
                    f"rewritten; rewrite with arguments of the shapes and flags it is called with"
                )
            met.add(product.address)
            return [self.how(product, equation, values, own[product.path]).astype(equation.outs[0].dtype)]

        outs = evaluate(traced.program, jax.tree.leaves((rest, state, args, kwargs)), otherwise=made)
        if len(met) != len(by_address):
            raise ValueError(f"{self.title}: for these arguments the function has fewer products than were rewritten")
        return jax.tree.unflatten(traced.out_tree, outs)

    def _is_wrapped(self, params: Mapping[str, Any]) -> bool:
        return _WRAPPED in params[self.root]

    def __str__(self) -> str:
        before = f"{self.fn}\n" if hasattr(self.fn, "lines") else ""
        return before + "\n".join([f"{self.title}:", *(f"  {line}" for line in self.lines)])


_WRAPPED = "wrapped"


def with_own(params: Any, root: str, own: Mapping[str, Any]) -> Any:
    """Returns parameters with those of a rewrite beside them.

    Raises:
        ValueError: where the name is taken.
    """
    if type(params) is not dict:
        return {"params": params, root: {**own, _WRAPPED: {}}}
    if root in params:
        raise ValueError(f"params hold {root!r} already, which is what this rewrite calls its own")
    return {**params, root: dict(own)}


def products(traced: Traced) -> tuple[list[Product], dict[str, str]]:
    """Returns the products with a matrix of parameters, and why others of them are none, by path.

    A weight that anything else reads as well is none: what is done to its products would not be done there.

    Args:
        traced: the model.
    """
    leaves = {value: (i, False) for i, value in enumerate(traced.params) if value.ndim == 2}
    products_of_weights: list[Product] = []
    other: dict[int, str] = {}
    for equation in traced.equations:
        held = [(side, *leaves[v]) for side, v in enumerate(equation.ins) if v in leaves]
        for side, leaf, is_turned in held:
            kind = _kind(equation, side)
            if kind == "moved":
                turned = is_turned != (equation.name == "transpose" and tuple(equation.params["permutation"]) == (1, 0))
                leaves[equation.outs[0]] = leaf, turned
            elif kind == "product":
                (left, right), _ = equation.params["dimension_numbers"]
                inner = (left, right)[side][0]
                data = (left, right)[1 - side][0]
                axis = 1 - inner if is_turned else inner
                products_of_weights.append(Product(traced.paths[leaf], leaf, equation.address, side, data, axis))
            else:
                other[leaf] = f"{equation.name} ({equation.source}) reads it"
    _say_turned(products_of_weights, other)
    for value in traced.outs:
        if value in leaves:
            other[leaves[value][0]] = "it is a result"
    return [p for p in products_of_weights if p.leaf not in other], {
        traced.paths[leaf]: why for leaf, why in other.items()
    }


def _kind(equation: Equation, side: int) -> str:
    if equation.name in ("transpose", "convert_element_type"):
        is_float = jnp.issubdtype(equation.outs[0].dtype, jnp.floating)
        return "moved" if is_float else "other"
    if equation.name != "dot_general" or not _is_data(equation.ins[1 - side]):
        return "other"
    (left, _), (batch, _) = equation.params["dimension_numbers"]
    return "product" if len(left) == 1 and not batch else "other"


def _is_data(value: Value) -> bool:
    return value.is_data


def _say_turned(found: Sequence[Product], other: dict[int, str]) -> None:
    inner: dict[int, int] = {}
    for product in found:
        if inner.setdefault(product.leaf, product.inner) != product.inner:
            other[product.leaf] = "one product sums over its rows, another over its columns"
