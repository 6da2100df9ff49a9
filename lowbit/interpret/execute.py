"""`execute`: the packed model."""

import dataclasses
import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from lowbit.core.checks import is_traced
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.ranges import Full
from lowbit.core.scales import stored_scale
from lowbit.packed import arguments, native
from lowbit.packed.bits import unpack
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan, Row, Site

from .arithmetic import Matmul, integer_result, is_integer_pair, result_dtype
from .compat import rebind
from .graph import Operation
from .integer.interpretations import execution as integer_execution
from .lookup import lookup
from .state import layer_operand
from .trace import Model, check_same_operations, trace
from .walk import Walk, plain

IMPLEMENTATIONS = ("cpu", "carried", "reference")


def execute(fn: Model, plan: Plan, *, implementation: str | None = None) -> Callable[..., Any]:
    """Returns ``run(qparams, *args, **kwargs)``: ``fn`` on packed weights.

    The bits of integer operations are the same whatever the implementation; `explain` says which one each runs on.

    Args:
        fn: the function the plan was bound for, or another with the same operations.
        plan: from `lowbit.bind`, or read from a file.
        implementation: ``"cpu"`` (native kernels on packed bytes), ``"carried"`` (the same integers carried in float32),
            ``"reference"`` (integer codes, int32 accumulation: what is exported), or None: for every operation the
            first of these that can run it.

    Returns:
        A function, jitted inside and cached by ``(fn, plan)`` and shapes. Called with concrete ``qparams``, it puts
        weights into the kernels' order once and keeps that as long as ``qparams`` lives; under an outer jit, call
        `lowbit.prepare` on ``qparams`` first.

    Raises:
        TypeError: if ``plan`` is not a plan; at the call, if ``qparams`` is not packed.
        ValueError: for an unknown implementation, or "cpu" for a full-integer plan; at the call, if the traced operations differ from the plan, or the
            named implementation cannot run one of them.
    """
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)} or None, got {implementation!r}")
    if implementation == "cpu" and native.status() is not None:
        raise ValueError(f"implementation 'cpu' cannot run: {native.status()}")
    arguments.check(fn=fn, plan=plan)
    if implementation == "cpu" and plan.is_full_integer:
        raise ValueError("implementation 'cpu' has no kernels for full-integer plans; use 'carried' or 'reference'")
    return _executor(fn, plan, implementation)


@functools.lru_cache(maxsize=256)
def _executor(fn: Model, plan: Plan, implementation: str | None) -> Callable[..., Any]:
    @jax.jit
    def compiled(qparams, args, kwargs):
        return execution(fn, plan, qparams, args, kwargs, implementation=implementation)

    prepared = _Prepared(plan)

    def run(qparams, *args, **kwargs):
        _check_packed(qparams)
        arguments.check_call(fn, qparams, args, kwargs)
        if implementation in (None, "cpu") and not plan.is_full_integer:
            qparams = prepared(qparams)
        return compiled(qparams, args, kwargs)

    return run


class _Prepared:
    """Remembers the prepared form of the last packed parameters, as long as they live. Changes no number."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.source: Any = lambda: None
        self.value: QParams | None = None

    def __call__(self, qparams: QParams) -> QParams:
        if self.source() is qparams and self.value is not None:
            return self.value
        if native.status() is not None or any(is_traced(x) for x in jax.tree.leaves(qparams)):
            return qparams
        self.value = native.prepare(self.plan, qparams)
        self.source = weakref.ref(qparams, self._forget)
        return self.value

    def _forget(self, _: Any) -> None:
        self.value = None


def _check_packed(qparams: Any) -> None:
    if not isinstance(qparams, QParams):
        raise TypeError(f"execute takes packed parameters (qparams) from lowbit.pack, got {type(qparams).__name__}")


def explain(
    fn: Model, plan: Plan, qparams: QParams, *args: Any, implementation: str | None = None, **kwargs: Any
) -> str:
    """Returns a line per operation: which implementation runs it, and why no faster one.

    Args:
        fn: the function of the plan.
        plan: its plan.
        qparams: packed parameters.
        *args: example arguments; shapes and dtypes matter.
        implementation: as in `execute`.
        **kwargs: example keyword arguments.
    """
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)} or None, got {implementation!r}")
    arguments.check(fn=fn, plan=plan, qparams=qparams)
    arguments.check_call(fn, qparams, args, kwargs)
    if implementation in (None, "cpu") and native.status() is None and not plan.is_full_integer:
        qparams = native.prepare(plan, qparams)
    report: list[tuple[str, str, str]] = []
    jax.eval_shape(
        lambda q, a, k: execution(fn, plan, q, a, k, implementation=implementation, report=report),
        qparams,
        args,
        kwargs,
    )
    report += [(row.path, "float", "not quantized") for row in plan.rows if not row.is_quantized]
    order = [row.path for row in plan.rows]
    report.sort(key=lambda line: order.index(line[0]))
    width = max([len(path) for path, _, _ in report], default=0)
    return "\n".join(f"{path:<{width}}  {how:<9}  {why}".rstrip() for path, how, why in report)


def execution(
    fn: Model,
    plan: Plan,
    qparams: QParams,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    implementation: str | None = None,
    report: list[tuple[str, str, str]] | None = None,
    has_integer_io: bool = False,
) -> Any:
    """Returns ``y`` of one call on packed parameters; `execute` is this under jit.

    Args:
        fn: the function of the plan.
        plan: its plan.
        qparams: packed parameters.
        args: arguments; with ``has_integer_io``, codes (int8, int16) wherever the function takes floats.
        kwargs: keyword arguments.
        implementation: as in `execute`.
        report: gets a line per operation.
        has_integer_io: of a full-integer plan: arguments and results are codes, and no float is left.
    """
    traced = trace(fn, qparams.params, args, dict(kwargs), has_codes=has_integer_io)
    check_same_operations(traced.graph, plan)
    if plan.is_full_integer:
        outs = integer_execution(
            plan, traced, qparams, carried=implementation != "reference", has_integer_io=has_integer_io
        )
        if report is not None:
            report += [(row.path, "reference" if implementation == "reference" else "carried", "") for row in plan]
        return jax.tree.unflatten(traced.out_tree, outs)
    rows = {row.path: row for row in plan.rows}

    def at(op: Operation, values: list[Any], states: Any) -> tuple[Any, Any]:
        states, row = states or {}, rows[op.path]
        values = [
            states[s.role] if s.kind in _COMPUTED and s.spec else v for s, v in zip(row.sites, values, strict=True)
        ]
        reason = _why_not_native(op, row, values) if implementation in (None, "cpu") else f"asked for {implementation}"
        if reason is None:
            site, state, x, weight = row.sites[0], states.get("input", {}), plain(values[0]), values[1]
            if site.spec is not None and not row.is_integer:  # levels that are no integers: x is rounded, then float
                x, site = quantized_input(site, state, x).dequantize(), dataclasses.replace(site, spec=None)
            where = site, state, result_dtype(op.eqn)
            if op.eqn.primitive.name == "dot_general":
                result = native.matmul(op.eqn.params["dimension_numbers"], x, weight, *where)
            else:
                result = native.conv(op.eqn.params, x, weight, *where)
            how = "cpu"
        elif implementation == "cpu":
            raise ValueError(f"implementation 'cpu' cannot run {op.path}: {reason}")
        else:
            is_lookup = op.eqn.primitive.name == "gather"
            operands = [
                _operand(site, v, states, is_lookup=is_lookup) for site, v in zip(row.sites, values, strict=True)
            ]
            how = "reference" if implementation == "reference" else "carried"
            how = how if row.is_integer else "xla"
            result = _result(op, *operands, carried=implementation != "reference")
        if report is not None:
            report.append((op.path, how, reason or ""))
        return result, states

    walk = Walk(traced.graph, at, frozenset(row.path for row in plan.quantized), is_guarded=True)
    outs, _ = walk.run(traced.jaxpr, traced.leaves, qparams.sites)
    return jax.tree.unflatten(traced.out_tree, outs)


_COMPUTED = ("derived", "constant")


def _why_not_native(op: Operation, row: Row, values: Sequence[Any]) -> str | None:
    weight = row.weight
    if weight is None:
        return "both operands are computed"
    if (reason := native.status()) is not None:
        return reason
    if (reason := native.why_not(row, weight)) is not None:
        return reason
    if not isinstance(values[1], native.NativeTensor):
        return "the weight is moved before use, or its bytes do not line up, or it is not prepared"
    if op.eqn.primitive.name == "conv_general_dilated" and not native.is_plain_conv(op.eqn.params):
        return "the convolution kernels take NHWC inputs, not transposed, without negative padding"
    if not row.is_integer:
        return None
    return None if native.can_take_input(row.sites[0]) else "this input is quantized outside the kernel"


def _operand(site: Site, value: Any, states: Mapping[str, Any], *, is_lookup: bool) -> Any:
    if site.spec is None:
        return value if isinstance(value, QTensor) else plain(value)
    if site.is_weight:
        return value if is_lookup else unpack(value)
    return quantized_input(site, states.get(site.role, {}), plain(value))


def _result(op: Operation, left: Any, right: Any, *, carried: bool) -> Any:
    if op.eqn.primitive.name == "gather":
        return lookup(op.eqn, left, right) if isinstance(left, QTensor) else rebind(op.eqn, [left, right])[0]
    if is_integer_pair(left, right):
        return integer_result(Matmul.of(op.eqn), left, right, result_dtype(op.eqn), carried=carried)
    return rebind(op.eqn, [plain(left), plain(right)])[0]


def quantized_input(site: Site, state: Mapping[str, Any], x: Any) -> QTensor:
    """Returns an input on its served grid, from the spec alone: no quantizer code."""
    spec = site.spec
    assert spec is not None
    operand = layer_operand(site)
    operand = type(operand)(tuple(x.shape), str(x.dtype), operand.contract, 0, False)
    blocks = spec.granularity.blocks(operand)
    if spec.dynamic:
        scale, zero = Full().of_values(x, operand, spec)
        return quantize_with(x, spec, stored_scale(scale, spec), zero, blocks)
    return quantize_with(x, spec, state["scale"], state.get("zero"), blocks)
