"""Functions of data with a gradient of their own (`jax.custom_jvp`) in a full-integer plan: inlined, they would lose it.

Where all of such a function is in one node, between two grids, the node is the function as it was traced. Where a grid cuts it
in two, nothing has its gradient: differentiating that raises.
"""

from collections.abc import Callable, Mapping
from typing import Any

from lowbit.core.meshes import automatic
from lowbit.interpret.derivative import without_derivative
from lowbit.program import compat
from lowbit.program.read import Equation, Value

from .nodes import Node


def own_call(equation: Equation) -> Equation | None:
    """Returns the outermost inlined function with its own gradient that an equation is in, or None."""
    outermost, caller = None, equation.caller
    while caller is not None and caller.scope is equation.scope:
        outermost = caller if caller.call == "custom_jvp" and caller.is_data else outermost
        caller = caller.caller
    return outermost


def is_whole(node: Node, call: Equation) -> bool:
    """Returns whether all that a function computes of data is in a node, and no operation on a weight is."""
    inside = {v for e in node.equations for v in e.outs}
    is_cut = any(v.source is not None and own_call(v.source) is call for v in node.ins)
    has_operation = node.op is not None and own_call(node.equations[0]) is call
    return not is_cut and not has_operation and all(v in inside for v in call.outs if v.is_data)


def refusing_parts(node: Node, result: Any) -> Any:
    """Returns a node's result, which raises when differentiated if it is a part of a function with its own gradient."""
    calls = dict.fromkeys(call for e in node.equations if (call := own_call(e)) is not None)
    for call in calls:
        if not is_whole(node, call):
            what = (
                f"{node.path}: a grid of this full-integer plan lies inside a function with its own gradient ({call.call}, "
                f"{call.source}); differentiating it would drop that gradient: pass custom_vjp='body' to use the gradient of "
                f"its body"
            )
            result = without_derivative(what, result)
    return result


def called(node: Node, equation: Equation, env: Mapping[Value, Any], get: Callable[[Value], Any]) -> dict[Value, Any]:
    """Returns what the whole function makes that an equation is of; nothing where it is of none, or of a part.

    Args:
        node: the node of the equation.
        equation: the equation.
        env: values.
        get: the values of what is not data.
    """
    call = own_call(equation)
    if call is None or not is_whole(node, call):
        return {}
    outs = compat.rebind(call.eqn, [env[v] if v in env else get(v) for v in call.ins])
    outs = automatic(lambda *results: results, *outs)  # its body was traced on the explicit mesh, and names it again
    return dict(zip(call.outs, outs, strict=True))
