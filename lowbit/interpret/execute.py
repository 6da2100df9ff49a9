"""`execute`: the packed model."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax

from lowbit.core.checks import is_traced
from lowbit.core.keywords import merged, shares_keywords
from lowbit.interpret.trace import Args, Kwargs
from lowbit.packed import arguments, native
from lowbit.packed.belongs import check_belongs
from lowbit.packed.platforms import PLATFORMS, platform_named, platform_of
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan

from .implementations import ANYWHERE, IMPLEMENTATIONS, How
from .interpretation import interpretation_of
from .kernel_orders import KernelOrders, Orders
from .served import Served
from .trace import Model


def execute(
    fn: Model, plan: Plan, *, implementation: str | None = None, platform: str | None = None
) -> Callable[..., Any]:
    """Returns ``run(qparams, *args, **kwargs)``: ``fn`` on packed weights.

    The bits of integer operations are the same whatever the implementation; `explain` says which one each runs on. Where no
    operation is quantized this is ``jax.jit(fn)``. The gradient, to arguments and scales, is on every route that of the
    operations on dequantized operands, straight through the rounding of an input within its range: that of `lowbit.simulate`
    with `lowbit.rtn`; forward mode (`jax.jvp`) needs ``implementation="carried"`` or ``"reference"``. A full-integer plan
    raises when differentiated.

    Args:
        fn: the function the plan was bound for, or another with the same operations.
        plan: from `lowbit.bind`, or read from a file.
        implementation: ``"cpu"``, ``"pallas_tpu"``, ``"mosaic_gpu"`` (kernels on packed bytes), ``"xla"`` (packed bytes
            unpacked a group at a time), ``"carried"`` (the same integers carried in float32), ``"reference"`` (integer
            codes, int32 accumulation: what is exported), or None: for every operation the first that can run it on the
            platform.
        platform: ``"cpu"``, ``"tpu"``, ``"cuda"`` or ``"rocm"``: what the function is called or lowered for, whatever machine
            this is; ``"tpu-interpreter"`` and ``"cuda-interpreter"`` run those kernels in Pallas' interpreter, slowly. None:
            where ``qparams`` are; under an outer `jax.jit`, what that is lowered for, which may be several
            (`jax.export`).

    Returns:
        A function (what is in ``kwargs={...}`` always goes to ``fn``), jitted inside and cached by ``(fn, plan)`` and shapes. Called with concrete ``qparams``, it puts
        weights into the kernels' order once and keeps that as long as their arrays live; under an outer jit, call
        `lowbit.prepare` on ``qparams`` first, or, of a full-integer plan, close over them: traced, they are put into that order
        in every call.

    Raises:
        TypeError: if ``plan`` is not a plan; at the call, if ``qparams`` is not packed.
        ValueError: at the call, if ``qparams`` are another plan's or on another platform; for an unknown platform or implementation, or one of an accelerator's kernels for a full-integer plan; at the call, if the traced operations differ from the plan, or the
            named implementation cannot run one of them.
    """
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)} or None, got {implementation!r}")
    if implementation == "cpu" and native.status() is not None:
        raise ValueError(f"implementation 'cpu' cannot run: {native.status()}")
    arguments.check(fn=fn, plan=plan)
    if implementation in (interpretation := interpretation_of(plan)).lacks:
        raise ValueError(f"implementation {implementation!r} has no kernels for {interpretation.plans}")
    return _executor(fn, plan, implementation, None if platform is None else platform_named(platform))


@functools.lru_cache(maxsize=256)
def _executor(fn: Model, plan: Plan, implementation: str | None, platform: str | None) -> Callable[..., Any]:
    def trace_of(qparams, args, kwargs, *, where, is_fused, orders=None):
        return execution(
            fn, plan, qparams, args, kwargs, implementation=implementation, platform=where, is_fused=is_fused,
            has_derivative=not is_fused, orders=orders,
        )  # fmt: skip

    orders = interpretation_of(plan).kernel_orders(fn, plan)
    served = Served(trace_of, orders)

    @shares_keywords("lowbit.execute", fn)
    def run(qparams, /, *args, kwargs=None, **keywords):
        given = merged(keywords, kwargs)
        if not (is_waiting := _is_waiting((args, given))) and (call := served.known(qparams, args, given)) is not None:
            return call(args, given)
        check_belongs(plan, qparams)
        arguments.check_call(fn, qparams, args, given)
        is_waiting, here = is_waiting or _is_waiting(qparams), platform_of(qparams)
        where = platform or ("cpu" if implementation == "cpu" else None if is_waiting else here)
        if where in PLATFORMS and where != here and not is_waiting:
            raise ValueError(
                f"platform is {where!r}, and the arrays are on {here}: lower the function for it, or move them"
            )
        kernels = orders.platform(implementation, where or here)
        if kernels == "cpu" and _is_waiting(qparams):
            _warn_unprepared(orders, qparams, args, given)
        return served.prepared(qparams, args, given, where, kernels)(args, given)

    return run


def _is_waiting(arrays: Any) -> bool:
    """Whether arrays have no values yet."""
    return any(is_traced(x) for x in jax.tree.leaves(arrays))


def _warn_unprepared(orders: KernelOrders, qparams: QParams, args: Args, kwargs: Kwargs) -> None:
    """Says, when an outer function is traced, that its packed weights are arguments which nobody has prepared."""
    if paths := orders.unprepared(qparams, args, kwargs):
        shown = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        warnings.warn(
            f"{shown}: packed weights are traced before they are in the native kernels' order, {orders.advice} the jitted "
            f"function close over qparams",
            stacklevel=4,
        )


@shares_keywords("lowbit.explain")
def explain(
    fn: Model,
    plan: Plan,
    qparams: QParams,
    *args: Any,
    implementation: str | None = None,
    platform: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> str:
    """Returns a line per operation, which implementation runs it and why no faster one, and per parameter of none.

    That is where `execute` runs it, called here: under `jax.jit`, ``qparams`` being traced, the weights of an ordinary plan
    cannot be put into the kernels' order any more, and those of a full-integer one are in every call; the lines say so.

    Args:
        fn: the function of the plan.
        plan: its plan.
        qparams: packed parameters.
        *args: example arguments; shapes and dtypes matter.
        implementation: as in `execute`.
        platform: as in `execute`: what runs on another machine than this one; None is where ``qparams`` are.
        kwargs: example keyword arguments, whatever their names: ``implementation`` too.
        **keywords: example keyword arguments.
    """
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)} or None, got {implementation!r}")
    arguments.check(fn=fn, plan=plan, qparams=qparams)
    check_belongs(plan, qparams)
    kwargs = merged(keywords, kwargs)
    arguments.check_call(fn, qparams, args, kwargs)
    platform = platform_of(qparams) if platform is None else platform_named(platform)
    weights, orders, late = interpretation_of(plan).kernel_orders(fn, plan), {}, []
    if (kernels := weights.platform(implementation, platform)) is not None:
        late = weights.unprepared(qparams, args, kwargs) if kernels == "cpu" else []
        orders = weights(qparams, args, kwargs, kernels)
        qparams = weights.attached(qparams, orders)
    report: list[tuple[str, str, str]] = []
    jax.eval_shape(
        lambda q, a, k: execution(
            fn, plan, q, a, k, implementation=implementation, report=report, platform=platform, orders=orders
        ),
        qparams,
        args,
        kwargs,
    )
    if late and not _is_waiting(qparams):
        report = [(p, how, why or (_LATE if how == "cpu" and p in late else "")) for p, how, why in report]
    report += [(row.path, "float", "not quantized") for row in plan.rows if not row.is_quantized]
    report += [
        (leaf.path, "as it is", f"no operation: {', '.join(leaf.uses) or 'unused'}, {leaf.nbytes} bytes")
        for leaf in plan.uncovered
    ]
    order = [*(row.path for row in plan.rows), *(leaf.path for leaf in plan.uncovered)]
    report.sort(key=lambda line: order.index(line[0]))
    width = max([len(path) for path, _, _ in report], default=0)
    return "\n".join(f"{path:<{width}}  {how:<9}  {why}".rstrip() for path, how, why in report)


def execution(
    fn: Model,
    plan: Plan,
    qparams: QParams,
    args: Args,
    kwargs: Kwargs,
    *,
    implementation: str | None = None,
    report: list[tuple[str, str, str]] | None = None,
    platform: str | None = "cpu",
    has_integer_io: bool = False,
    keeps_nan: bool = True,
    is_fused: bool = False,
    has_derivative: bool = False,
    orders: Orders | None = None,
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
        platform: what it is traced for; None where that is known when it is lowered.
        has_integer_io: of a full-integer plan: arguments and results are codes, and no float is left.
        keeps_nan: whether NaN at an integer input reaches what sums over it; False in exported artifacts, where it takes
            the code of the zero point. Full-integer plans never do.
        is_fused: whether products on native kernels are equations that `lowbit.interpret.fuse` puts together with what
            follows them.
        has_derivative: whether it may be differentiated: that of a full-integer plan is an error. Without, gradients are lost
            at products of integers.
        orders: of a full-integer plan: the operations that run on the native kernels, by path.
    """
    check_belongs(plan, qparams)
    platform = "cpu" if implementation in ANYWHERE else platform
    how = How(
        implementation, report, platform, has_integer_io, keeps_nan, is_fused, has_derivative, orders or {}
    )  # fmt: skip
    return interpretation_of(plan).executed(fn, plan, qparams, args, kwargs, how)


_LATE = (
    "put into the kernel's order at the first call; where jax.jit takes qparams as an argument, carried or xla: call "
    "lowbit.prepare(plan, qparams) before"
)
