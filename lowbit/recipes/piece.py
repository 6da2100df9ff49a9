"""A stretch of a model with its rows: run in float, or with its inputs on grids and its weights as they are given."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from lowbit.interpret.state import layer_operand, quantizer_of
from lowbit.plan.rows import Plan, Site
from lowbit.program import primitives
from lowbit.program.read import Equation, Program, Value
from lowbit.program.stretches import Stretch
from lowbit.solvers.depthwise import depthwise


class Piece:
    """One stretch of the program with its rows: what is run, in float and quantized, and what can be learned of it.

    Args:
        stretch: the equations.
        program: that they are of.
        plan: of the model.
        paths: of its leaves.
    """

    def __init__(self, stretch: Stretch, program: Program, plan: Plan, paths: Sequence[str]):
        operations = {op.address: op for op in plan.program.inventory.operations}
        self.stretch = stretch
        self.operations = {address: operations[address] for address in stretch.operations}
        self.rows = {address: plan[op.path] for address, op in self.operations.items()}
        self.places = {value: paths[i] for i, value in enumerate(program.inputs[: program.count])}
        self.leaves = list(dict.fromkeys(self.places[v] for v in _fixed(stretch)))
        self.inputs = [
            site for row in self.rows.values() for site in row.sites if not site.is_weight and site.spec is not None
        ]
        derived = [
            row.weight
            for row in self.rows.values()
            if row.weight is not None and row.weight.kind != "leaf" and row.weight.spec is not None
        ]
        self.derived: list[Site] = derived

    def run(
        self, leaves: Mapping[str, Any], inputs: Sequence[Any], states: Any, steps: Sequence[Any] | None, mixed: Any
    ) -> list[Any]:
        """Returns what goes out; without ``steps`` as the float model does, else on grids.

        Args:
            leaves: by path.
            inputs: what comes in.
            states: of the inputs' quantizers and of derived weights', in order.
            steps: multiples of the inputs' scales.
            mixed: ``(i, quantized, float) -> what the operation reads`` of the i-th quantized input.
        """
        count = iter(range(len(self.inputs)))
        after = iter(states[len(self.inputs) :])

        def at(equation: Equation, values: list[Any]) -> Any:
            op, row = self.operations[equation.address], self.rows[equation.address]
            operands = op.operands(values)
            if steps is not None:
                operands = [given(site, x) for site, x in zip(row.sites, operands, strict=True)]
            fast = depthwise(op.eqn)
            return op.rebind(operands) if fast is None else fast(*operands)

        def given(site: Site, x: Any) -> Any:
            if site.spec is None or (site.is_weight and site.kind == "leaf"):
                return x
            if site.is_weight:
                return quantizer_of(site).quantize(next(after), x, layer_operand(site)).dequantize()
            assert steps is not None  # `at` asks for grids only where there are some
            i = next(count)
            state = states[i]
            if "scale" in state["fixed"]:
                fixed = {**state["fixed"], "scale": state["fixed"]["scale"] * steps[i]}
                state = {**state, "fixed": fixed}
            return mixed(i, quantizer_of(site).quantize(state, x, layer_operand(site)).dequantize(), x)

        return self.stretch.run(inputs, lambda value: leaves[self.places[value]], at)

    def biases(self, program: Program, kept: Mapping[str, Any]) -> list[str]:
        """Paths of the vectors that are added to what operations make, and to nothing else."""
        paths = []
        for value, path in self.places.items():
            if path in self.leaves and path not in kept and value.ndim == 1 and _is_added(value, program):
                paths.append(path)
        return paths


def _fixed(stretch: Stretch) -> Iterator[Value]:
    """The parameters that a stretch reads."""
    todo, seen = [v for e in stretch.equations for v in e.ins if not v.is_data], set()
    while todo:
        value = todo.pop(0)
        if value in seen or value.is_written:
            continue
        seen.add(value)
        if value.source is None:
            yield value
        else:
            todo += value.source.ins


def _is_added(value: Value, program: Program) -> bool:
    readers = program.readers.get(value, [])
    if not readers or not jnp.issubdtype(value.dtype, jnp.floating):
        return False
    return all(
        e is not None
        and (
            (e.name in primitives.MOVES and not e.is_data and _is_added(e.outs[0], program))
            or (e.name == "add" and e.is_data)
        )
        for e in readers
    )
