"""The implementations of packed operations by name, and how one call is executed."""

from typing import NamedTuple

from .kernel_orders import Orders

IMPLEMENTATIONS = ("cpu", "pallas_tpu", "mosaic_gpu", "xla", "carried", "reference")
ELSEWHERE = ("pallas_tpu", "mosaic_gpu")
ANYWHERE = ("carried", "reference")
"""Those that are the same program on every platform."""


class How(NamedTuple):
    """How a call is executed: see `lowbit.interpret.execute.execution`."""

    implementation: str | None
    report: list[tuple[str, str, str]] | None
    platform: str | None
    has_integer_io: bool
    keeps_nan: bool
    is_fused: bool
    has_derivative: bool
    orders: Orders
