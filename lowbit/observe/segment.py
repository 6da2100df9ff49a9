"""`segment`: a block of a model as a function of its own, with its plan: what block reconstruction works on."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.core.paths import flatten, is_match, nearest
from lowbit.interpret.bind import planned
from lowbit.interpret.simulate import simulate
from lowbit.interpret.state import QState, check_state, get, marked, put, quantized_sites
from lowbit.interpret.trace import Model, trace
from lowbit.interpret.with_quantizers import rule_of
from lowbit.packed import arguments
from lowbit.plan.rows import Plan
from lowbit.program.compat import jaxpr_of
from lowbit.program.evaluate import again
from lowbit.program.read import Program, Value, read
from lowbit.program.segments import INLINED, Block, cut
from lowbit.program.taps import Place, tapped


@dataclasses.dataclass(frozen=True, eq=False)
class BlockFunction:
    """``fn(params, *inputs)`` of a block; ``params`` is ``{path: array}`` of the leaves that it reads, of one layer.

    Attributes:
        block: the equations.
        leaves: the path of every leaf that it reads, whole or a layer of it.
    """

    block: Block
    leaves: Mapping[Value, str]

    def __call__(self, params: Mapping[str, Any], *inputs: Any) -> Any:
        for value, given in zip(self.block.inputs, inputs, strict=True):
            if tuple(given.shape) != value.shape:
                raise ValueError(
                    f"this segment was traced with an input of {value.shape}, got {tuple(given.shape)}: give segment(..., "
                    f"args=) arguments of the batch size that it is run with"
                )
        known: dict[Value, Any] = {}

        def fixed(value: Value) -> Any:
            if value.is_written:
                return value.value
            if value in self.leaves:
                return params[self.leaves[value]]
            if value not in known:
                assert value.source is not None
                known.update(
                    zip(value.source.outs, again(value.source, [fixed(v) for v in value.source.ins]), strict=True)
                )
            return known[value]

        return self.block.run(inputs, fixed)


@dataclasses.dataclass(frozen=True)
class Captured:
    """A model that returns what comes into a block and what goes out, stacked over the turns of the loops it is in."""

    fn: Model
    places: tuple[Place, ...]

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> list[Any]:
        leaves, tree = jax.tree.flatten((params, args, kwargs))

        def flat(*leaves: Any) -> list[Any]:
            params, args, kwargs = jax.tree.unflatten(tree, leaves)
            return jax.tree.leaves(self.fn(params, *args, **kwargs))

        closed = jaxpr_of(flat, [jax.ShapeDtypeStruct(jnp.shape(x), x.dtype) for x in leaves])
        return tapped(read(closed, inlined=("jit",)), leaves, self.places)[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """A block of a model.

    Attributes:
        fn: ``fn(params, *inputs)``, a pure function of the leaves it reads, ``{path: array}``, and of what comes in.
        plan: its own, with the quantizers of the whole model's.
        paths: of each of its operations, in order, the path in the whole model's plan.
        stack: lengths of the loops that it is in; of a scan over layers, it is the same function for all of them.
        whole: the model that returns what comes in and goes out.
        model_plan: the whole model's plan.
    """

    fn: BlockFunction
    plan: Plan
    paths: tuple[str, ...]
    stack: tuple[int, ...]
    whole: Captured
    model_plan: Plan

    def capture(
        self, params: Any, *args: Any, qstate: QState | None = None, kwargs: Mapping[str, Any] | None = None
    ) -> tuple[list[Any], Any]:
        """Returns what comes in, ``[array, ...]``, and what goes out, of the whole model on ``args``; layers are leading axes.

        Args:
            params: of the whole model.
            *args: its arguments.
            qstate: of its plan: as the quantized model leaves them. None: the model in float.
            kwargs: its keyword arguments.
        """
        given = dict(kwargs or {})
        if qstate is None:
            results = _compiled(self.whole)(params, args, given)
        else:
            results = simulate(self.whole, self.model_plan)(params, qstate, *args, kwargs=given)
        return list(results[:-1]), results[-1]

    def params(self, params: Any, layer: Sequence[int] = ()) -> dict[str, Any]:
        """Returns the leaves that the block reads, of one layer; traced indices are fine.

        Raises:
            ValueError: if ``layer`` does not have an index per loop over stacked parameters.
        """
        by_path = dict(zip(*flatten(params)[:2], strict=True))
        leaf_of = {}
        for value, path in self.fn.leaves.items():
            leaf = by_path[path]
            depth = leaf.ndim - value.ndim
            if depth > len(layer):
                raise ValueError(
                    f"layer must have {depth} indices, as this segment is in a scan over layers, got {tuple(layer)}"
                )
            for i in layer[len(layer) - depth :] if depth else ():
                leaf = leaf[i]
            leaf_of[path] = leaf
        return leaf_of

    def state(self, qstate: QState, layer: Sequence[int] = ()) -> QState:
        """Returns the state of the block's plan out of the whole model's, of one layer."""
        check_state(self.model_plan, qstate)
        wanted = dict(zip((row.path for row in self.plan), self.paths, strict=True))
        parts: QState = {"learn": {}, "fixed": {}}
        for row, site in quantized_sites(self.plan):
            whole = self.model_plan[wanted[row.path]]
            old = whole.sites[self.plan[row.path].sites.index(site)]
            state = get(qstate, old.key, old.role)
            for i in layer[: len(whole.stack)]:
                state = jax.tree.map(lambda x, i=i: x[i], state)
            put(parts, site.key, site.role, state)
        return marked(self.plan, parts)


@functools.lru_cache(maxsize=64)
def _compiled(whole: Captured) -> Callable[..., Any]:
    return jax.jit(lambda params, args, kwargs: whole(params, *args, **kwargs))


def segment(fn: Model, plan: Plan, first: str, last: str, *, args: Sequence[Any] | None = None) -> Segment:
    """Returns the block of a model between two operations as a function of its own.

    It begins where the operations before ``first``, with the bias, activation and residual sum that follow them, end, and goes on after ``last``
    to the value that others read: a residual block ends with its sum. What else it reads is captured as an input. A block may
    lie inside a scan over layers; it is then one function of a layer's parameters and inputs.

    Its limits: both operations are in one loop or outside of all; scans over layers, ``jit`` and ``remat`` are read through,
    branches, while loops and functions with a derivative of their own are not; a scan is over the parameters themselves, not over
    what is computed from them; one value goes out; the batch size is the one it was traced with.

    Args:
        fn: the function of the plan.
        plan: from `lowbit.bind`.
        first: path of an operation, or a glob: the first that it matches.
        last: the same: the last that it matches.
        args: arguments of another batch size than the plan was bound with, for the function to be traced with.

    Raises:
        ValueError: for a plan read from a file or a full-integer one, a glob that matches nothing, operations with no
            block between them, and what is beyond the limits above, by name.

    Example:
        >>> from lowbit.interpret.bind import bind
        >>> params = {"a": jnp.eye(2), "b": jnp.eye(2) * 3.0, "c": jnp.eye(2)}
        >>> fn = lambda p, x: jnp.tanh(x + jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]
        >>> block = segment(fn, bind(fn, {}, params, jnp.ones((1, 2))), "a", "b")
        >>> inputs, out = block.capture(params, jnp.ones((1, 2)))
        >>> len(inputs), out.tolist(), block.fn(block.params(params), *inputs).tolist() == out.tolist()
        (1, [[0.9993292093276978, 0.9993292093276978]], True)
    """
    arguments.check(fn=fn, plan=plan)
    if plan.program is None:
        raise ValueError("a plan read from a file does not hold what was traced: bind again")
    if plan.is_full_integer:
        raise ValueError(
            "segment is for ordinary plans; this one is full-integer: bind the same rules without integer=True"
        )
    traced = plan.program
    if args is not None:
        params = jax.tree.unflatten(traced.param_tree, traced.avals[: traced.count])
        traced = trace(fn, params, tuple(args), {})
    program = read(traced.jaxpr, fixed=traced.count, inlined=INLINED)
    by_path = {op.path: op for op in traced.inventory.operations}
    addresses = {op.address: op.path for op in traced.inventory.operations}
    begin, end = _match(first, list(by_path))[0], _match(last, list(by_path))[-1]
    block = cut(program, addresses, by_path[begin].address, by_path[end].address)
    paths = tuple(
        path
        for address, path in addresses.items()
        if any(e.address == address[: len(e.address)] for e in block.equations)
    )
    leaves = _leaves(block, program, traced.paths)
    function = BlockFunction(block, leaves)
    avals = {path: jax.ShapeDtypeStruct(value.shape, value.dtype) for value, path in leaves.items()}
    inner = trace(function, avals, [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in block.inputs], {})
    traced_paths = [op.path for op in inner.inventory.operations]
    assert len(traced_paths) == len(paths), (traced_paths, paths)
    rules = {name: rule_of(plan[path]) for name, path in zip(traced_paths, paths, strict=True)}
    own = planned(inner, rules, integer=False, rounding="exact")
    stack = tuple(loop.length for loop in block.loops)
    whole = Captured(fn, (*block.places, block.out_place))
    return Segment(function, own, paths, stack, whole, plan)


def _match(glob: str, paths: list[str]) -> list[str]:
    matching = [path for path in paths if is_match(glob, path) or path == glob]
    if not matching:
        raise ValueError(f"{glob!r} matches no operation; the nearest paths are {', '.join(nearest(glob, paths))}")
    return matching


def _leaves(block: Block, program: Program, paths: Sequence[str]) -> dict[Value, str]:
    """The leaves that a block reads: whole, or a layer's part."""
    known = {value: paths[i] for i, value in enumerate(program.inputs[: program.count])}
    slices = {part: whole for loop in block.loops for whole, part in zip(loop.xs, loop.slices, strict=True)}
    path_of: dict[Value, str] = {}
    todo = list(block.fixed)
    while todo:
        value = todo.pop()
        root = value
        while root in slices:
            root = slices[root]
        if root in known:
            if known[root] in path_of.values() and value not in path_of:
                raise ValueError(
                    f"{known[root]} is read both whole and by layer, which a segment cannot be given at once"
                )
            path_of[value] = known[root]
        elif value in slices:
            raise ValueError(
                f"a scan is over parameters computed before it ({root.source.source if root.source else ''}): scan over the parameters themselves"
            )
        elif value.source is not None:
            todo += [v for v in value.source.ins if not v.is_written]
    return path_of
