"""Batch-norm folding, for inference and in training, with correction and freezing.

Reference: Krishnamoorthi, Quantizing deep convolutional networks for efficient inference: A whitepaper, 2018,
https://arxiv.org/abs/1806.08342, section 3.2.2. ``W``: weight, ``gamma``, ``beta``: the norm's scale and bias, ``mu``,
``sigma``: long-term mean and deviation, ``mu_B``, ``sigma_B``: those of the batch, ``c = sigma_B / sigma``.

* Evaluation: ``W_inf = gamma W / sigma``, ``b_inf = beta - gamma mu / sigma``; the norm is gone.
* Training: the weight that is quantized is ``c gamma W / sigma_B = gamma W / sigma``, which does not jump with the batch;
  its result is divided by ``c`` and gets the bias ``beta - gamma mu_B / sigma_B``: batch norm, exactly.
* Frozen: long-term statistics, no division, the bias of evaluation; the running averages stand still.

Differs from the paper: the batch's statistics are those of the quantized operation's own result, so that the operation runs
once and running averages are what the served network needs; the paper takes them from a second convolution in float.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from lowbit.core.keywords import check_keywords, merged
from lowbit.core.rounding import rounded_product
from lowbit.program.evaluate import again
from lowbit.program.read import Equation, Value

from .chain import Rewrite
from .fixed import Reader
from .norms import Left, Norm, find
from .traced import Traced, trace_model

SMALLEST_FACTOR = 2.0**-50
"""A channel's ``gamma / sigma`` counts as at least this: where gamma is 0, training can still divide by it."""


@dataclasses.dataclass(frozen=True)
class Folded:
    """A function with its batch norms folded: ``fn(params', state, *args, frozen=None, kwargs=None, **keywords)``.

    ``params'`` is ``{"params": ..., "shift": ...}``: the parameters with folded weights in place (None where a parameter
    is no longer needed), and ``b_inf`` by weight path; in training also ``"scale"``, ``gamma / sigma``.

    Attributes:
        fn: the function that was folded.
        paths: the folded operations, by their weight's path.
        left: what looks like a batch norm and was left as it is.
        is_training: whether ``fn`` updates the running statistics.
        dropped: ``(index, shape, dtype)`` of the parameters that evaluation no longer needs.
    """

    fn: Callable[..., Any]
    paths: tuple[str, ...]
    left: tuple[Left, ...]
    is_training: bool
    dropped: tuple[tuple[int, tuple[int, ...], str], ...]

    takes_state: ClassVar[bool] = True  # ``state`` is no data

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The function that was folded: what `inspect.signature` shows."""
        return self.fn

    def __call__(
        self,
        params: Any,
        state: Any,
        *args: Any,
        frozen: Bool[Array, ""] | bool | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **keywords: Any,
    ) -> Any:
        given = {"frozen": frozen, "kwargs": kwargs}
        given = keywords | {n: x for n, x in given.items() if x is not None}
        check_keywords("a folded function", self.fn, ("frozen", "kwargs"), given)
        kwargs = merged(keywords, kwargs)
        if frozen is not None and not self.is_training:
            raise ValueError("frozen= is for a training function; this one updates no running statistics")
        leaves, tree = jax.tree.flatten(params["params"], is_leaf=lambda x: x is None)
        for i, shape, dtype in self.dropped:
            leaves[i] = jnp.zeros(shape, dtype)
        original = jax.tree.unflatten(tree, leaves)
        program = trace_model(self.fn, original, state, args, kwargs)
        norms, _ = find(program)
        if (paths := tuple(norm.path for norm in norms)) != self.paths:
            raise ValueError(
                f"batch norms were folded into {list(self.paths)}, but for these arguments the function has them after "
                f"{list(paths)}: fold with arguments of the shapes and flags it is called with"
            )
        values = program.start([*leaves, *jax.tree.leaves((state, args, kwargs))])
        outs = _evaluate(program, norms, values, params["shift"], params.get("scale"), frozen)
        return jax.tree.unflatten(program.out_tree, outs)

    def __str__(self) -> str:
        lines = [f"{path}: batch norm folded" for path in self.paths]
        return "\n".join([*lines, *(f"{left} (left as it is)" for left in self.left)])


def fold(*args: Any, unfolded: str = "raise", kwargs: Mapping[str, Any] | None = None, **keywords: Any) -> Rewrite:
    """Returns the rewrite that folds batch norms into the operations before them.

    Norms are found in the jaxpr by data flow: a dense layer or a convolution (grouped, depthwise, transposed) whose weight
    is a parameter leaf, moved at most, followed by any additions and products with values of parameters and state along
    its output channels, one of them with a root. A bias before the norm, casts and reshapes between, a norm without scale
    or bias are all the same. Applied to an evaluation function it removes the norm. Applied to a training function
    (one that returns ``(y, state')`` with moved running averages) it folds as section 3.2.2 of the paper does;
    the function it returns takes ``frozen=``, a traced boolean: after the freeze, running averages stand still.

    Both fold to the same weights at the same paths: they share one plan, bound on the evaluation function. The rewrite
    is differentiable. In a training loss, apply it to the parameters that are trained, so that their gradients arrive::

        def loss(tree, qstate, state, x, step):
            fn, params, _ = rewrite(train_fn, tree, state)
            (y, state), qstate = lb.simulate(fn, plan, train=True)(params, qstate, state, x, frozen=step >= 1000)

    Args:
        *args: example arguments after ``params, state``; only shapes and dtypes matter.
        unfolded: what to do about what looks like a batch norm and cannot be folded: ``"raise"``, or ``"keep"``: leave
            it as it is, listed in ``fn'.left`` and by ``print(fn')``.
        kwargs: example keyword arguments, whatever their names: ``unfolded`` too.
        **keywords: example keyword arguments, such as ``rngs``.

    Returns:
        ``(fn, params, state) -> (fn', params', state)``; ``fn'`` is a `Folded`. Weights are folded in float32, one cast at
        the end.

    Raises:
        ValueError: for another ``unfolded``; at the call, if there is no batch norm that can be folded, or one that cannot.

    Example:
        >>> def fn(p, s, x):
        ...     return (x @ p["w"] - s["mean"]) / jnp.sqrt(s["var"]) * p["gamma"]
        >>> params = {"w": jnp.ones((2, 3)), "gamma": jnp.full(3, 6.0)}
        >>> state, x = {"mean": jnp.ones(3), "var": jnp.full(3, 4.0)}, jnp.ones((1, 2))
        >>> folded, params, state = fold(x)(fn, params, state)
        >>> print(folded)
        w: batch norm folded
        >>> params["params"]["w"][0].tolist(), params["shift"]["w"].tolist(), folded(params, state, x).tolist()
        ([3.0, 3.0, 3.0], [-3.0, -3.0, -3.0], [[3.0, 3.0, 3.0]])
    """
    if unfolded not in ("raise", "keep"):
        raise ValueError(f"unfolded must be 'raise' or 'keep', got {unfolded!r}")
    given = keywords | ({} if kwargs is None else {"kwargs": kwargs})
    given |= {} if unfolded == "raise" else {"unfolded": unfolded}
    example = merged(keywords, kwargs)

    def rewrite(fn: Callable[..., Any], params: Any, state: Any) -> tuple[Folded, dict[str, Any], Any]:
        check_keywords("fold", fn, ("unfolded", "kwargs"), given)
        program = trace_model(fn, params, state, args, example)
        norms, left = find(program)
        _check(norms, left, unfolded)
        is_training = any(norm.stats for norm in norms)
        leaves, tree = jax.tree.flatten(params)
        values = program.start([*leaves, *jax.lax.stop_gradient(jax.tree.leaves(state))])
        fixed = _Fixed(program, values)
        scales, shifts = {}, {}
        for norm in norms:
            scale, shift = fixed.affine(norm)
            small = jnp.abs(scale) < SMALLEST_FACTOR
            scale = jnp.where(small, jnp.where(scale < 0, -SMALLEST_FACTOR, SMALLEST_FACTOR), scale)
            leaves[norm.leaf] = _scaled(leaves[norm.leaf], scale, norm.leaf_axis)
            scales[norm.path], shifts[norm.path] = scale, shift
        dropped = () if is_training else _unneeded(program, norms)
        for i, _, _ in dropped:
            leaves[i] = None
        extra = {"scale": scales} if is_training else {}
        folded = Folded(fn, tuple(norm.path for norm in norms), left, is_training, dropped)
        return folded, {"params": jax.tree.unflatten(tree, leaves), "shift": shifts, **extra}, state

    return rewrite


def _check(norms: tuple[Norm, ...], left: tuple[Left, ...], unfolded: str) -> None:
    listed = "".join(f"\n  {each}" for each in left)
    if not norms:
        raise ValueError(
            f"no batch norm follows an operation here, so there is nothing to fold; a module in training mode whose statistics are "
            f"not returned is none that is served: fold it in evaluation (nnx: module.eval()){':' if left else ''}{listed}"
        )
    if left and unfolded == "raise":
        raise ValueError(
            f"these look like batch norms and cannot be folded; unfolded='keep' leaves them as they are:{listed}"
        )


class _Fixed:
    """Values of the fixed variables of a program, computed when asked for; running statistics in place of the batch's."""

    def __init__(self, program: Traced, values: Mapping[Any, Any]):
        self.program = program
        self.batch = Reader(program).batch
        self.values = dict(values)

    def __call__(self, var: Value) -> Any:
        if var.is_written:
            return jnp.asarray(var.value, var.dtype)
        if var not in self.values:
            if var in self.batch:
                running = self.values[self.program.state[self.batch[var]]]
                self.values[var] = running.reshape(var.shape).astype(var.dtype)
            else:
                assert var.source is not None
                outs = again(var.source, [self(v) for v in var.source.ins])
                self.values.update(zip(var.source.outs, outs, strict=True))
        return self.values[var]

    def affine(self, norm: Norm) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Returns ``scale, shift`` of a norm, so that its result is ``result of the operation * scale + shift``. Float32."""
        scale, shift = jnp.float32(1), jnp.float32(0)
        for step in norm.steps:
            if step.kind == "move":
                continue
            if step.kind == "neg":
                scale, shift = -scale, -shift
                continue
            factor = _along(self(step.fixed), norm.place(step.axes)).astype(jnp.float32)
            if step.kind in ("mul", "div"):
                factor = 1.0 / factor if step.kind == "div" else factor
                scale, shift = rounded_product(scale, factor), rounded_product(shift, factor)
            elif step.kind == "rsub":
                scale, shift = -scale, factor - shift
            else:
                shift = shift + factor if step.kind == "add" else shift - factor
        if norm.axis is not None:
            channels = (norm.op.outs[0].shape[norm.axis],)
            scale, shift = jnp.broadcast_to(scale, channels), jnp.broadcast_to(shift, channels)
        return scale, shift


def _along(full: Array, axis: int | None) -> Array:
    """A value that varies along one axis at most, as a vector."""
    index = tuple(slice(None) if i == axis else 0 for i in range(full.ndim))
    return full[index]


def _spread(vector: Array, axis: int | None, like: Any) -> Array:
    """A vector along one axis, or a number, in the rank and dtype of ``like``."""
    shape = [vector.size if i == axis else 1 for i in range(like.ndim)]
    return vector.reshape(shape).astype(like.dtype)


def _scaled(weight: Array, scale: Array, axis: int | None) -> Array:
    wide = jnp.asarray(weight).astype(jnp.float32)
    return rounded_product(wide, _spread(scale, axis, wide)).astype(jnp.asarray(weight).dtype)


def _evaluate(
    program: Traced, norms: tuple[Norm, ...], values: dict[Value, Any], shifts: Any, scales: Any, frozen: Any
) -> list[Any]:
    """The results of the program on folded weights; with ``scales``, as training does."""
    ops = {norm.op: norm for norm in norms}
    steps = {step.equation: (norm, step) for norm in norms for step in norm.steps}
    carried: dict[Value, Any] = {}  # the operation's result, moved along the chain
    needed, _ = _needed(program, {} if scales is not None else steps)

    def get(var: Value) -> Any:
        return var.value if var.is_written else values[var]

    for equation in program.equations:
        if equation not in needed:
            continue
        if equation not in steps or scales is not None:
            outs = again(equation, [get(v) for v in equation.ins])
            values.update(zip(equation.outs, outs, strict=True))
        if equation in ops:
            norm, out = ops[equation], equation.outs[0]
            carried[out] = values[out]
            if scales is not None:
                wide = values[out].astype(jnp.float32)
                inverse = _spread(1.0 / scales[norm.path], norm.axis, wide)
                values[out] = (wide * inverse).astype(values[out].dtype)
        elif equation in steps:
            (norm, step), (out,) = steps[equation], equation.outs
            before = carried[next(v for v in equation.ins if v in carried)]
            carried[out] = again(equation, [before])[0] if step.kind == "move" else before.astype(out.dtype)
            if step is norm.steps[-1]:
                shift = _spread(shifts[norm.path], norm.place(step.axes), carried[out])
                result = lax.add(carried[out], jnp.broadcast_to(shift, carried[out].shape))
                if scales is None:
                    values[out] = result
                elif frozen is not None:
                    values[out] = jnp.where(frozen, result, values[out])
    outs = [get(v) for v in program.outs]
    if frozen is None:
        return outs
    for norm in norms:
        for leaf in norm.stats:
            at = program.updates[leaf]
            outs[at] = jnp.where(frozen, values[program.state[leaf]], outs[at])
    return outs


def _needed(program: Traced, steps: Mapping[Equation, Any]) -> tuple[set[Equation], set[Value]]:
    """The equations and values that the results need; ``steps`` need only the value that the chain carries."""
    wanted = set(program.outs)
    needed = set()
    for equation in reversed(program.equations):
        if not (equation.eqn.effects or any(v in wanted for v in equation.outs)):
            continue
        needed.add(equation)
        skip = steps[equation][1].fixed if equation in steps else None
        wanted.update(v for v in equation.ins if v is not skip)
    return needed, wanted


def _unneeded(program: Traced, norms: tuple[Norm, ...]) -> tuple[tuple[int, tuple[int, ...], str], ...]:
    """The parameters that nothing but the folded norms needed."""
    steps = {step.equation: (norm, step) for norm in norms for step in norm.steps}
    _, wanted = _needed(program, steps)
    mine = {v for _, step in steps.values() if step.fixed is not None for v in Reader(program).upstream(step.fixed)}
    return tuple(
        (i, var.shape, str(var.dtype)) for i, var in enumerate(program.params) if var in mine and var not in wanted
    )
