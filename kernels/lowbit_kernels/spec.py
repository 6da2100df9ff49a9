"""What a kernel is asked to do, as static data: enough for an implementation to accept or refuse with a reason."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax


class Matrix(Protocol):
    """What a packed and a prepared matrix share."""

    scales: Any
    zeros: Any
    codebook: Any
    factors: Any
    bits: int
    signed: bool
    length: int
    group: int

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def groups(self) -> int: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatmulSpec:
    """Static description of one `quant_matmul`.

    Attributes:
        rows, length, out: M, K, N, in elements.
        bits, signed, group, groups: of the codes of the weight; `group` in codes, `groups` along K.
        affine: the weight has zero points.
        codebook: entries of the weight's table, 0 without one.
        factors: the weight has integer scales of groups.
        scale_dtype: of the weight's scales.
        x_dtype, out_dtype: names.
        activation: "float" (weight-only), "dynamic" (int8 per row) or "static".
        prepared: the weight is in an implementation's own physical order, by that name, or None.
        platform: one of `platforms.PLATFORMS` or `INTERPRETERS`; "interpret" where the configuration asks for the interpreter.
    """

    rows: int
    length: int
    out: int
    bits: int
    signed: bool
    group: int
    groups: int
    affine: bool
    codebook: int
    factors: bool = False
    scale_dtype: str
    x_dtype: str
    out_dtype: str
    activation: str
    prepared: str | None
    platform: str


class Implementation(NamedTuple):
    """One way to run a matmul.

    Attributes:
        name: what `implementation=` and `explain` call it.
        supports: `spec -> None`, or the reason why not, as text.
        run: `(x (M, K), matrix, activation, out_dtype, config) -> (M, N)` of `out_dtype`; those with `sums` also give the
            int32 sums, as "int32", of a static activation and a weight of one group.
        cost: `spec -> text`, what a user should know when this one runs (a fallback, a copy), or "".
        config: dataclass of its options, all with defaults, or None; `tuning.lookup` finds one for a spec.
        candidates: `spec -> configs` worth timing for a spec; the heuristic's own choice is timed besides.
        sums: `run` takes "int32".
    """

    name: str
    supports: Callable[[MatmulSpec], str | None]
    run: Callable[..., jax.Array]
    cost: Callable[[MatmulSpec], str]
    config: type | None = None
    candidates: Callable[[MatmulSpec], tuple[Any, ...]] = lambda spec: ()
    sums: bool = False
