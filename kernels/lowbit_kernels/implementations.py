"""The ordered list of matmul implementations: the first that supports a spec runs.

To add one: write a module with an `IMPLEMENTATION` (see `spec.Implementation`) and add its line here.
"""

import jax

from lowbit_kernels import reference, xla
from lowbit_kernels.checks import kind_of
from lowbit_kernels.cpu import matmul as cpu
from lowbit_kernels.pallas import gpu, tpu
from lowbit_kernels.spec import Implementation, MatmulSpec


def _run_reference(x: jax.Array, packed, activation, out_dtype: str, config: object) -> jax.Array:
    return reference.matmul(x, packed, activation).astype(out_dtype)


REFERENCE = Implementation("reference", lambda spec: None, _run_reference, lambda spec: "the slow specification")

IMPLEMENTATIONS: tuple[Implementation, ...] = (
    cpu.IMPLEMENTATION,
    tpu.IMPLEMENTATION,
    gpu.IMPLEMENTATION,
    xla.IMPLEMENTATION,
    REFERENCE,
)


def select(spec: MatmulSpec, name: str | None) -> Implementation:
    """The implementation called `name`, or the first that supports `spec`.

    Raises:
        ValueError: no implementation has that name.
        NotImplementedError: the named one does not support `spec`; the message says why.
    """
    if name is None:
        return next(each for each in IMPLEMENTATIONS if each.supports(spec) is None)
    for each in IMPLEMENTATIONS:
        if each.name == name:
            reason = each.supports(spec)
            if reason is not None:
                raise NotImplementedError(f"implementation {name!r} cannot run this matmul: {reason}")
            return each
    names = ", ".join(repr(each.name) for each in IMPLEMENTATIONS)
    raise ValueError(f"implementation {kind_of(name)} is unknown; the names are {names}, or None to choose")


def select_sums(spec: MatmulSpec, name: str | None) -> Implementation:
    """`select` among those that give int32 sums.

    Raises:
        ValueError: no implementation has that name.
        NotImplementedError: the named one does not support `spec`, or gives no sums.
    """
    if name is not None:
        chosen = select(spec, name)
        if not chosen.sums:
            raise NotImplementedError(f"implementation {name!r} gives no int32 sums")
        return chosen
    return next(each for each in IMPLEMENTATIONS if each.sums and each.supports(spec) is None)


def report(spec: MatmulSpec, name: str | None) -> str:
    """One line per implementation: which runs, which could, and why the others cannot."""
    chosen = select(spec, name)
    shape = f"({spec.rows}, {spec.length}) {spec.x_dtype} @ ({spec.length}, {spec.out}) {'' if spec.signed else 'u'}int{spec.bits}"
    lines = [f"quant_matmul {shape}, group {spec.group}, {spec.activation} activations, on {spec.platform}"]
    for each in IMPLEMENTATIONS:
        reason = each.supports(spec)
        note = each.cost(spec) if reason is None else reason
        mark = "runs" if each is chosen else "could run" if reason is None else "cannot run"
        lines.append(f"  {each.name:<10} {mark:<10} {note}".rstrip())
    return "\n".join(lines)
