"""What `lowbit.execute` asks of a kind of plan about weights in the kernels' order: a physical form beside the packed one."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from lowbit.interpret.trace import Args, Kwargs
from lowbit.packed.trees import QParams

TraceOf = Callable[..., Any]
"""``(qparams, args, kwargs, where=, is_fused=, orders=) -> result``: one call, for the platform ``where``."""

Orders = Mapping[str, Any]
"""Weights in the kernels' order: by key of an ordinary plan, by path of a full-integer one, whose sums have numbers too."""


@runtime_checkable
class KernelOrders(Protocol):
    """The weights of the last packed parameters of one plan in the kernels' order, as long as their arrays live."""

    def platform(self, implementation: str | None, platform: str) -> str | None:
        """Returns whose kernels' order weights are put into, where these are asked for on a platform; None for nobody's."""
        ...

    def __call__(self, qparams: QParams, args: Args, kwargs: Kwargs, platform: str) -> Orders:
        """Returns the orders."""
        ...

    def attached(self, qparams: QParams, orders: Orders) -> QParams:
        """Returns the parameters with those orders that are read out of them."""
        ...

    def on_cpu(self, trace_of: TraceOf, qparams: QParams, args: Any, kwargs: Any, orders: Orders) -> Any:
        """Returns one call's result on the kernels of a CPU; ``qparams`` are `attached`."""
        ...

    def read_alone(self, qparams: QParams, orders: Orders) -> list[bool]:
        """Returns, for every array of ``qparams`` and then of ``orders``, whether native calls alone read it."""
        ...

    def unprepared(self, qparams: QParams, args: Args, kwargs: Kwargs) -> list[str]:
        """Returns the operations whose weights the kernels of a CPU would take, and that are not in their order before a call."""
        ...

    @property
    def advice(self) -> str:
        """What to do where parameters are traced before they are in the kernels' order; goes on "the jitted function close over"."""
        ...
