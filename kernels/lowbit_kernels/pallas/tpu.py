"""The TPU matmul as an implementation: what it supports, its options, and how the kernel is called."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from lowbit_kernels.matrix import PackedMatrix
from lowbit_kernels.pallas import tpu_blocks
from lowbit_kernels.platforms import device_kind
from lowbit_kernels.spec import Implementation, MatmulSpec

BITS = (2, 4, 8)
TERMS = {"bfloat16": 1, "float16": 2, "float32": 3}  # 8, 11 and 24 significant bits, 8 to a bfloat16


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuConfig:
    """Options of the TPU kernel. Blocks change time only; `scale_on` changes the rounding of float activations.

    Attributes:
        block_m: rows in a block, a multiple of 8; None, here and below, takes the heuristic's (`tpu_blocks.py`).
        block_n: output channels in a block, a multiple of 128.
        block_k: codes along K in a block, at least 128: at most so many, in whole groups.
        scale_on: "sums" scales the float32 sums of each group: every product is exact. "weight" scales the weight
            and rounds it to bfloat16, so that a product may span groups: faster where M is large, at most
            `2**-8 * |x| @ |W|` further off. For bfloat16 activations; integer ones are always scaled by sums.
        interpret: run in the Pallas interpreter, on any platform: slow, for tests.
    """

    block_m: int | None = None
    block_n: int | None = None
    block_k: int | None = None
    scale_on: str | None = None
    interpret: bool = False

    @property
    def platform(self) -> str | None:
        """Where the kernel is asked to run, if not on the default platform."""
        return "interpret" if self.interpret else None


def supports(spec: MatmulSpec) -> str | None:
    """None where the kernel runs `spec`, else the reason."""
    if spec.platform not in ("tpu", "tpu-interpreter", "interpret"):
        return f"runs on TPUs, not on {spec.platform} (TpuConfig(interpret=True) interprets)"
    if spec.factors:
        return "takes float scales of groups, not integer ones"
    if spec.platform == "tpu" and is_too_old(kind := device_kind("tpu") or ""):
        return f"needs a TPU v5 or newer, got {kind}"
    if spec.activation not in ("float", "dynamic", "static"):
        return f"takes float and int8 activations, got {spec.activation}"
    if spec.bits not in BITS:
        return f"reads codes of 2, 4 or 8 bits, got {spec.bits}"
    if spec.codebook:
        return "has no look-up in a codebook"
    if min(spec.rows, spec.out) == 0:
        return "needs at least one row and one output channel"
    return None


def is_too_old(device_kind: str) -> bool:
    """Chips whose matrix unit has no integer product, and whose compiler aborts on 2-bit codes.

    >>> is_too_old("TPU v4"), is_too_old("TPU v5 lite"), is_too_old("TPU7x")
    (True, False, False)
    """
    return device_kind.lower().startswith(("tpu v2", "tpu v3", "tpu v4"))


def cost(spec: MatmulSpec) -> str:
    """What to know when this implementation runs."""
    notes = [] if spec.prepared is None else ["takes the weight out of another machine's order in every call"]
    if not tpu_blocks.is_native(spec.group, spec.groups):
        padded = tpu_blocks.padded_group(spec.group)
        notes.append(f"pads groups of {spec.group} to {padded}: copies the weight in every call")
    if _scale_on(spec.rows, spec.activation, spec.x_dtype, spec.out_dtype) == "weight":
        notes.append('rounds scaled weights to bfloat16 (TpuConfig(scale_on="sums") does not)')
    return "; ".join(notes)


def candidates(spec: MatmulSpec) -> tuple[TpuConfig, ...]:
    """Configurations worth timing; none changes a result."""
    most = tpu_blocks.round_up(spec.rows, 16)
    rows = (8,) if spec.rows <= 8 else tuple(sorted({min(most, m) for m in (128, 256, 512)}))
    return tuple(
        TpuConfig(block_m=m, block_n=n, block_k=k) for m in rows for n in (512, 1024, 2048) for k in (1024, 2048, 4096)
    )


def _scale_on(rows: int, activation: str, x_dtype: str, out_dtype: str) -> str:
    """Where scales go by default: on the weight only where x and the result are bfloat16 and rows are many."""
    is_rounded = activation == "float" and x_dtype == out_dtype == "bfloat16"
    return "weight" if is_rounded and rows >= tpu_blocks.MANY_ROWS else "sums"


def run(x: Array, packed: PackedMatrix, activation: Any, out_dtype: str, config: object) -> Array:
    """See `Implementation.run`. Traces for a TPU wherever it is called, unless `config` asks for the interpreter."""
    from lowbit_kernels.pallas import tpu_kernel, tpu_operands  # Pallas takes as long to import as jax itself

    config = TpuConfig() if config is None else config
    if not isinstance(config, TpuConfig):
        raise ValueError(f"implementation 'pallas_tpu' takes config=TpuConfig(...), got {type(config).__name__}")
    _check(config)
    count, x_dtype = x.shape[0], x.dtype.name
    length, out = packed.shape
    is_native = tpu_blocks.is_native(packed.group, packed.groups)
    group = packed.group if is_native else tpu_blocks.padded_group(packed.group)
    blocks = tpu_blocks.choose(
        count, length, out, group, packed.groups, m=config.block_m, n=config.block_n, k=config.block_k
    )
    rows = tpu_operands.activations(x, activation, in_kernel=is_native and tpu_blocks.rows_fit(blocks, x))
    scale_on = config.scale_on or _scale_on(count, rows.kind, x_dtype, out_dtype)
    if scale_on == "weight" and (rows.kind, x_dtype) != ("float", "bfloat16"):
        raise ValueError(f'TpuConfig.scale_on="weight" is for bfloat16 activations without codes, got {x_dtype}')
    zeros = packed.zeros
    geometry = tpu_kernel.Geometry(
        rows=tpu_blocks.round_up(count, blocks.m),
        length=length,
        out=out,
        bits=packed.bits,
        signed=packed.signed or not is_native,
        group=group,
        groups=packed.groups,
        filled=packed.group,
        block_m=blocks.m,
        block_n=blocks.n,
        block_k=blocks.k,
        activation=rows.kind,
        lo=rows.lo,
        hi=rows.hi,
        terms=TERMS[x_dtype] if rows.kind == "float" else 1,
        weight_terms=2 if zeros is not None and (zeros.dtype == jnp.uint8) == packed.signed else 1,
        affine=zeros is not None or not packed.signed,
        scale_on=scale_on,
        out_dtype=out_dtype if out_dtype in ("bfloat16", "int32") else "float32",
    )
    arrays = tpu_operands.operands(geometry, rows, packed)
    return tpu_kernel.matmul(geometry, *arrays, interpret=config.interpret)[:count].astype(out_dtype)


def _check(config: TpuConfig) -> None:
    """Raises ValueError where an option is outside its range."""
    for name, multiple in (("block_m", 8), ("block_n", 128), ("block_k", 128)):
        value = getattr(config, name)
        if value is not None and (value < multiple or value % multiple):
            raise ValueError(f"TpuConfig.{name} must be a positive multiple of {multiple}, or None; got {value}")
    if config.scale_on not in (None, "sums", "weight"):
        raise ValueError(f'TpuConfig.scale_on must be "sums", "weight" or None, got {config.scale_on!r}')


IMPLEMENTATION = Implementation("pallas_tpu", supports, run, cost, TpuConfig, candidates, sums=True)
