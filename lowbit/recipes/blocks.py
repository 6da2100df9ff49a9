"""Blocks of a solved model, learned again one after the other on what the blocks before them hand on.

Float and quantized values of every batch are carried from block to block, so that the model is run once whatever the number of blocks;
programs of blocks alike are compiled once.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.core.kept import Kept
from lowbit.core.metrics import decibels
from lowbit.core.paths import flatten
from lowbit.core.qtensor import QTensor
from lowbit.formats.integer import Integer
from lowbit.interpret.state import get, layer_operand, quantizer_of
from lowbit.plan.rows import Plan, Site
from lowbit.program.read import Program, Value, read
from lowbit.program.segments import INLINED
from lowbit.program.stretches import Stretch, stretches
from lowbit.quantizers.rtn import RTN
from lowbit.solvers.brecq import Block, Reconstruction, Rounding, error, full, rounding

from .compiled import Compiled
from .piece import Piece
from .problem import encoded, stored

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a model.

    Attributes:
        params: weights on their grids, biases moved.
        qstate: with the scales of weights and inputs.
        codes: by leaf path.
        notes: by leaf path.
        sizes: by leaf path of what was learned: squared error and size of the weight, and the share of it beyond its range.
    """

    params: dict[str, Any]
    qstate: Any
    codes: dict[str, Any]
    notes: dict[str, list[str]]
    sizes: dict[str, dict[str, float]]


@dataclasses.dataclass
class Walk:
    """The blocks of a solved model, one after the other.

    Attributes:
        plan: of the model.
        method: hyper-parameters.
        floats: parameters of the float model, by path.
        params: as the solver before left them, by path.
        qstate: with its scales.
        codes: what it chose, by leaf path.
        is_free: whether scales of weights may move.
        kept: where learned blocks are kept.
        say: told of what is done.
        left: which batches are not learned from, for the report.
    """

    plan: Plan
    method: Reconstruction
    floats: dict[str, Any]
    params: dict[str, Any]
    qstate: Any
    codes: dict[str, Any]
    is_free: bool
    kept: Kept
    say: Progress
    left: str = ""

    def run(self, calls: Iterator[tuple[Any, ...]]) -> Outcome:
        """Returns what becomes of the model on calibration batches, of which those of the first one's shapes are used."""
        traced = self.plan.program
        program = read(traced.jaxpr, fixed=traced.count, inlined=INLINED)
        addresses = [op.address for op in traced.inventory.operations]
        parts = stretches(program, addresses, most=self.method.most)
        pieces = [Piece(part, program, self.plan, traced.paths) for part in parts]
        readers: dict[str, int] = {}
        for piece in pieces:
            for path in piece.leaves:
                readers[path] = readers.get(path, 0) + 1
        outcome = Outcome(dict(self.params), self.qstate, dict(self.codes), {}, {})
        reached = {row.path for piece in pieces for row in piece.rows.values()}
        for row in self.plan.rows:
            if row.path not in reached and row.weight is not None and row.weight.key in self.codes:
                outcome.notes[row.weight.key] = ["in a loop or a call: not learned with a block"]
        batches = self.batches(calls, program, parts)
        right, now = [dict(b) for b in batches], [dict(b) for b in batches]
        compiled = Compiled()
        for number, piece in enumerate(pieces):
            outcome = self.one(number, piece, program, outcome, right, now, compiled, readers)
            later = {v for p in parts[number + 1 :] for v in p.inputs}
            for env in (*right, *now):
                for value in [v for v in env if v not in later]:
                    del env[value]
            self.say("blocks", number + 1, len(pieces))
        return outcome

    def batches(
        self, calls: Iterator[tuple[Any, ...]], program: Program, parts: Sequence[Stretch]
    ) -> list[dict[Value, Any]]:
        """The inputs of the program, batch by batch, as many as fit what may be held."""
        given = program.inputs[program.count :]
        most = max(sum(v.dtype.itemsize * int(np.prod(v.shape)) for v in (*p.inputs, *p.outs)) for p in parts)
        size = 2 * most + sum(v.dtype.itemsize * int(np.prod(v.shape)) for v in given)
        values: list[dict[Value, Any]] = []
        others = beyond = 0
        for args in calls:
            if [np.shape(x) for x in jax.tree.leaves(args)] != [v.shape for v in given]:
                others += 1
            elif values and (len(values) + 1) * size > self.method.held:
                beyond += 1
            else:
                values.append(dict(zip(given, map(jnp.asarray, jax.tree.leaves(args)), strict=True)))
        count = len(values) + others + beyond
        said = [f"{others} have other shapes than the first"] if others else []
        said += [f"{beyond} more than {self.method.held:.3g} bytes would hold"] if beyond else []
        self.left = f"; of {count} batches {len(values)} are looked at: {', '.join(said)}" if said else ""
        return values

    def one(
        self, number: int, piece: Piece, program: Program, outcome: Outcome, right: Sequence[dict[Value, Any]],
        now: Sequence[dict[Value, Any]], compiled: Compiled, readers: Mapping[str, int],
    ) -> Outcome:  # fmt: skip
        """Learns one block, and hands on what it makes."""
        part = piece.stretch
        float_leaves = [self.floats[path] for path in piece.leaves]

        def plain(leaves: list[Any], inputs: list[Any]) -> list[Any]:
            return piece.run(dict(zip(piece.leaves, leaves, strict=True)), inputs, [], None, None)

        def graded(leaves: list[Any], inputs: list[Any], states: list[Any]) -> list[Any]:
            ones = [jnp.ones(()) for _ in piece.inputs]
            return piece.run(dict(zip(piece.leaves, leaves, strict=True)), inputs, states, ones, lambda i, q, x: q)

        in_float, on_grids = compiled(plain), compiled(graded)
        for env in right:
            env.update(zip(part.outs, in_float(float_leaves, [env[v] for v in part.inputs]), strict=True))

        def compute(outcome: Outcome, at: Sequence[int]) -> list[list[Any]]:
            leaves, states = self.leaves(piece, outcome), self.states(piece, outcome.qstate)
            return [on_grids(leaves, [now[i][v] for v in part.inputs], states) for i in at]

        weights = self.weights(piece, outcome, readers)
        every = range(len(right))
        if weights:
            held = every[-max(1, len(right) // 8) :] if len(right) > 3 else every
            taught = [i for i in every if i not in held] or list(every)
            first = taught[0]
            unit = jnp.maximum(error(compute(outcome, [first])[0], [right[first][v] for v in part.outs]), 1e-12)
            tried = [outcome]
            for rate in self.method.rates:
                task = f"block-{number}-{rate}"
                tried.append(
                    self.learned(
                        number,
                        task,
                        piece,
                        program,
                        outcome,
                        weights,
                        right,
                        now,
                        taught,
                        compiled,
                        readers,
                        unit,
                        rate,
                    )
                )
            wants = [[right[i][v] for v in part.outs] for i in held]
            lost = [
                sum(float(error(outs, want)) for outs, want in zip(compute(each, held), wants, strict=True)) / len(held)
                for each in tried
            ]
            # What is not finite is not less than anything.
            best = min(range(len(tried)), key=lambda i: lost[i] if np.isfinite(lost[i]) else np.inf)
            outcome = tried[best]
            learned = ", ".join(f"{decibels(1.0, x):.1f}" for x in lost[1:])
            said = f"{decibels(1.0, lost[0]):.1f} dB on held-out batches, {learned} learned{self.left}"
            for key in weights:
                outcome.notes.setdefault(key, []).append(
                    f"its block {'stays as solved' if best == 0 else 'is learned'}: {said}"
                )
        for env, outs in zip(now, compute(outcome, every), strict=True):
            env.update(zip(part.outs, outs, strict=True))
        return outcome

    def leaves(self, piece: Piece, outcome: Outcome) -> list[Any]:
        """The leaves of a block on their grids."""
        sites = self.plan.leaf_sites()
        leaves = []
        for path in piece.leaves:
            leaf, site = jnp.asarray(outcome.params[path]), sites.get(path)
            if site is not None and site.spec is not None and path not in outcome.codes:
                state = get(outcome.qstate, site.key, site.role)
                leaf = quantizer_of(site).quantize(state, leaf, site.operand).dequantize()
            leaves.append(leaf)
        return leaves

    def states(self, piece: Piece, qstate: Any) -> list[Any]:
        """The states of inputs, then of derived weights."""
        return [get(qstate, site.key, site.role) for site in (*piece.inputs, *piece.derived)]

    def weights(self, piece: Piece, outcome: Outcome, readers: Mapping[str, int]) -> dict[str, tuple[Site, Rounding]]:
        """What can be learned of a block: integers with scales of their own, read in this block alone."""
        learnable: dict[str, tuple[Site, Rounding]] = {}
        for row in piece.rows.values():
            site = row.weight
            if site is None or site.kind != "leaf" or site.key not in outcome.codes or row.primitive == "gather":
                continue
            spec, state = site.spec, get(outcome.qstate, site.key, site.role)["fixed"]
            scale = state.get("scale")
            if spec is None or type(spec.format) is not Integer or scale is None or isinstance(scale, QTensor):
                continue
            if readers[site.key] > 1 or site.operand.stack:
                outcome.notes[site.key] = ["read in several blocks or layers: not learned with one"]
                continue
            learnable[site.key] = site, self.rounding(site, outcome, scale, state.get("zero"))
        return learnable

    def rounding(self, site: Site, outcome: Outcome, scale: Any, zero: Any) -> Rounding:
        """What is learned of one weight."""
        spec = site.spec
        assert spec is not None
        parts = tuple(spec.granularity.blocks(site.operand))
        weight = jnp.asarray(self.floats[site.key])
        levels = jnp.asarray(outcome.codes[site.key]).astype(jnp.float32)
        shift = jnp.float32(0) if zero is None else full(jnp.asarray(zero, jnp.float32), weight.shape, parts)
        bounds = jnp.float32(spec.format.low) - shift, jnp.float32(spec.format.high) - shift
        free = self.is_free and type(quantizer_of(site)) is RTN and not spec.dynamic
        scale = jnp.asarray(scale, jnp.float32)
        return rounding(weight, levels - shift, scale, bounds, parts, self.method.slack, is_free=free)

    def clipped(self, site: Site, qstate: Any) -> float:
        """The share of a weight's entries beyond the range of its grid."""
        spec, state = site.spec, get(qstate, site.key, site.role)["fixed"]
        assert spec is not None
        weight = jnp.asarray(self.floats[site.key], jnp.float32)
        parts = tuple(spec.granularity.blocks(site.operand))
        place = np.asarray(weight / full(state["scale"], weight.shape, parts))
        zero = state.get("zero")
        shift = 0.0 if zero is None else np.asarray(full(jnp.asarray(zero, jnp.float32), weight.shape, parts))
        return float(np.mean((place > spec.format.high - shift + 0.5) | (place < spec.format.low - shift - 0.5)))

    def learned(
        self, number: int, task: str, piece: Piece, program: Program, outcome: Outcome, weights: Mapping[str, tuple[Site, Rounding]],
        right: Sequence[dict[Value, Any]], now: Sequence[dict[Value, Any]], taught: Sequence[int], compiled: Compiled,
        readers: Mapping[str, int], unit: Any, rate: float,
    ) -> Outcome:  # fmt: skip
        """Returns what is learned of one block, out of what is kept where it was learned before."""
        part, method = piece.stretch, self.method
        kept = self.kept.load(task)
        quantized = {site.key for site in self.plan.leaf_sites().values() if site.spec is not None}
        biases = [path for path in piece.biases(program, dict.fromkeys(quantized)) if readers[path] == 1]
        if kept is None:
            names = [*weights, *biases]
            rest = [path for path in piece.leaves if path not in names]

            def run(soft: Any, steps: Any, moved: Any, others: Any, inputs: Any, mixed: Any) -> list[Any]:
                leaves, states = others
                every = dict(zip(rest, leaves, strict=True))
                every |= {key: x.astype(self.floats[key].dtype) for key, x in zip(names, [*soft, *moved], strict=True)}
                return piece.run(every, inputs, states, steps, mixed)

            block = Block(run, method)
            roundings = [x for _, x in weights.values()]
            vectors = [jnp.asarray(outcome.params[path]) for path in biases]
            by_path = dict(zip(piece.leaves, self.leaves(piece, outcome), strict=True))
            others = [by_path[path] for path in rest], self.states(piece, outcome.qstate)
            state = block.begin(roundings, len(piece.inputs), vectors)
            one = compiled(block.step)
            step_keys = jax.random.split(
                jax.random.fold_in(jax.random.key(method.seed, impl="rbg"), number), method.steps
            )
            draw = np.random.default_rng([method.seed, number])
            order = np.concatenate([draw.permutation(taught) for _ in range(-(-method.steps // len(taught)))])
            for step, i in enumerate(order[: method.steps]):
                data = tuple([env[v] for v in values] for env, values in (
                    (now[i], part.inputs), (right[i], part.inputs), (right[i], part.outs)))  # fmt: skip
                state, _ = one(state, roundings, vectors, others, data, unit, jnp.float32(rate), step_keys[step])
            kept = self.arrays(state[0], weights, biases, vectors, piece, outcome)
            self.kept.keep(task, kept)
        return self.applied(kept, weights, biases, piece, outcome)

    def arrays(
        self, learned: Any, weights: Mapping[str, tuple[Site, Rounding]], biases: Sequence[str], vectors: Sequence[Any],
        piece: Piece, outcome: Outcome,
    ) -> dict[str, Any]:  # fmt: skip
        """What is learned, to be kept: codes and scales of weights, scales of inputs, biases."""
        arrays: dict[str, Any] = {}
        for i, (key, (site, each)) in enumerate(weights.items()):
            levels = each.levels(learned["rounding"][i])
            scale = each.scale
            if each.is_free:
                scale = stored(scale * jnp.exp(learned["scale"][i]), site.spec, site.operand)
            zero = get(outcome.qstate, site.key, site.role)["fixed"].get("zero")
            shift = 0.0 if zero is None else full(jnp.asarray(zero, jnp.float32), each.start.shape, each.parts)
            assert site.spec is not None
            arrays[f"{key}:codes"] = encoded(site.spec.format, np.asarray(levels + shift))
            arrays[f"{key}:scale"] = scale
            arrays[f"{key}:values"] = (levels * full(scale, each.start.shape, each.parts)).astype(
                self.floats[key].dtype
            )
        for i, path in enumerate(biases):
            arrays[f"{path}:bias"] = vectors[i] + learned["bias"][i] * jnp.mean(jnp.abs(vectors[i]))
        for i, site in enumerate(piece.inputs):
            scale = get(outcome.qstate, site.key, site.role)["fixed"].get("scale")
            if scale is not None and not isinstance(scale, QTensor):
                assert site.spec is not None
                moved = scale * jnp.exp(learned["step"][i])
                arrays[f"{site.key}:{site.role}:step"] = stored(moved, site.spec, layer_operand(site))
        return {name: np.asarray(x) for name, x in arrays.items()}

    def applied(
        self, kept: Mapping[str, Any], weights: Mapping[str, tuple[Site, Rounding]], biases: Sequence[str], piece: Piece,
        outcome: Outcome,
    ) -> Outcome:  # fmt: skip
        """The model with what was learned of one block."""
        params, codes, qstate = dict(outcome.params), dict(outcome.codes), outcome.qstate
        notes, sizes = {key: list(x) for key, x in outcome.notes.items()}, dict(outcome.sizes)
        for key, (site, _) in weights.items():
            params[key] = jnp.asarray(kept[f"{key}:values"])
            codes[key] = jnp.asarray(kept[f"{key}:codes"])
            qstate = _with_scale(qstate, site, kept[f"{key}:scale"])
            weight, values = (np.asarray(x, np.float64) for x in (self.floats[key], params[key]))
            sizes[key] = {
                "noise": float(np.sum((weight - values) ** 2)),
                "size": float(np.sum(weight**2)),
                "clipped": self.clipped(site, qstate),
            }
        for path in biases:
            moved = kept[f"{path}:bias"]
            most = float(np.max(np.abs(np.asarray(moved) - np.asarray(params[path]))))
            said = f"moved by up to {most:.3g}" if most > 0 else "is zero, has no unit to move by, and stays"
            if most > 0 or not np.any(moved):
                notes.setdefault(next(iter(weights)), []).append(f"{path} {said}")
            params[path] = jnp.asarray(moved)
        for site in piece.inputs:
            scale = kept.get(f"{site.key}:{site.role}:step")
            if scale is not None:
                qstate = _with_scale(qstate, site, scale)
        return Outcome(params, qstate, codes, notes, sizes)


def _with_scale(qstate: Any, site: Site, scale: Any) -> Any:
    fixed = dict(qstate["fixed"])
    own = fixed[site.key][site.role]
    fixed[site.key] = {**fixed[site.key], site.role: {**own, "scale": jnp.asarray(scale)}}
    return {**qstate, "fixed": fixed}


def reconstructed(
    plan: Plan, method: Reconstruction, before: Any, solved: Any, qstate: Any, codes: dict[str, Any],
    calls: Iterator[tuple[Any, ...]], kept: Kept, say: Progress, *, is_free: bool,
) -> tuple[Any, Any, dict[str, Any], dict[str, list[str]], dict[str, dict[str, float]]]:  # fmt: skip
    """Returns parameters, state, codes, notes and sizes of a model whose blocks were learned again.

    Args:
        plan: from `lowbit.bind`.
        method: hyper-parameters.
        before: float parameters.
        solved: the same on their grids.
        qstate: with their scales, and the inputs' ranges.
        codes: of the weights, by leaf path.
        calls: calibration batches, as the program takes them.
        kept: where learned blocks are kept.
        say: told of what is done.
        is_free: whether scales of weights may move.
    """
    paths, leaves, tree = flatten(solved)
    floats = dict(zip(*flatten(before)[:2], strict=True))
    walk = Walk(plan, method, floats, dict(zip(paths, leaves, strict=True)), qstate, codes, is_free, kept, say)
    outcome = walk.run(calls)
    params = jax.tree.unflatten(tree, [outcome.params[path] for path in paths])
    return params, outcome.qstate, outcome.codes, outcome.notes, outcome.sizes
