"""`pairs`: which parameters can exchange positive factors of channels, so that the function stays what it is.

A pair is a set of channels with those that make them (weights, along their output channels; gains after a normalisation;
tables), those that take their factors back (weights, along their input channels), and what is scaled with them on the way
(biases). Multiply what makes channel ``c`` and what is added to it by ``s_c > 0``, and divide what reads it by ``s_c``: nothing else changes. It is
found by data flow: through relu, pooling, reshapes, heads, concatenations, residual sums, and scans over layers, where every layer has
factors of its own unless the scan carries the channels. Cross-layer equalization, SmoothQuant and AWQ are choices of ``s``.
"""

import dataclasses
import types
from collections.abc import Mapping, Sequence

import numpy as np

from .channels import Labels, Reason, varying
from .commuting import COMMUTING
from .crossings import CROSSINGS
from .flow import Flow, Rule, Use
from .read import Equation, Program, Value


@dataclasses.dataclass(frozen=True, eq=False)
class End:
    """One parameter's part in a pair.

    Attributes:
        leaf: index among the fixed inputs of the program; -1 for a written bound of a clip.
        kind: ``weight``, ``table`` or ``gain`` (makes or takes back), ``bias`` or ``bound`` (is scaled with).
        equation: that reads it.
        operand: which operand of the equation it is, moved at most.
        channels: for every entry of the parameter, its channel in the pair, or -1: of the parameter's rank, length 1 along
            axes that all is one channel along. Of a bound: of the equation's result, turns of loops in front.
        value: what data the equation reads, of what takes back; else what it makes.
        value_channels: the same for the elements of that; turns of loops in front.
    """

    leaf: int
    kind: str
    equation: Equation
    operand: int
    channels: Labels
    value: Value
    value_channels: Labels

    def largest(self, magnitudes: np.ndarray, size: int) -> np.ndarray:
        """Returns the largest entry of every channel, 0 where it has none: ``magnitudes`` has the parameter's shape."""
        return largest(magnitudes, self.channels, size)


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """Channels that can be scaled.

    Attributes:
        size: how many there are.
        makers: what makes them.
        takers: what takes their factors back.
        scaled: what is scaled with them.
        between: the equations that hand them on, in order.
        is_linear: whether factors may be negative, too: nothing between asks for their sign.
    """

    size: int
    makers: tuple[End, ...]
    takers: tuple[End, ...]
    scaled: tuple[End, ...]
    between: tuple[Equation, ...]
    is_linear: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Blocked:
    """What makes channels that cannot be scaled.

    Attributes:
        leaf: index among the fixed inputs.
        kind: ``weight``, ``table`` or ``gain``.
        equation: that reads it.
        count: how many of its channels cannot be scaled.
        reason: the equation that stands in the way, of the first of them.
    """

    leaf: int
    kind: str
    equation: Equation
    count: int
    reason: Reason


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """What `pairs` found.

    Attributes:
        found: the pairs, by the first that makes their channels, in program order.
        blocked: what makes channels that cannot be scaled.
    """

    found: tuple[Pair, ...]
    blocked: tuple[Blocked, ...]


def pairs(
    program: Program, *, has_bounds: bool = False, rules: Mapping[str, Rule] = types.MappingProxyType({})
) -> Pairs:
    """Returns the pairs of a program, and which equation stands in the way where there is none.

    Args:
        program: from `lowbit.program.read`, calls inlined as `lowbit.program.flow.INLINED` says. Its fixed inputs are the
            parameters (and whatever else may be scaled, such as a model's running means).
        has_bounds: whether a written bound of a clip, such as the 6 of relu6, may be scaled; the function that is then
            equal has other constants.
        rules: by primitive, in place of those of factors: what else than a factor goes through, such as copies
            (`lowbit.program.copies`).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lowbit.program.read import read
        >>> fn = lambda a, b, x: jax.nn.relu(x @ a) @ b
        >>> traced = jax.make_jaxpr(fn)(jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.ones((1, 2)))
        >>> (pair,) = pairs(read(traced, fixed=2)).found
        >>> [end.leaf for end in pair.makers], [end.leaf for end in pair.takers], [e.name for e in pair.between]
        ([0], [1], ['max'])
        >>> [str(blocked.reason) for blocked in pairs(read(traced, fixed=2)).blocked]
        ['result is a result of the model']
    """
    gains: frozenset[tuple[int, ...]] = frozenset()
    while True:
        flow = Flow(program, {**COMMUTING, **CROSSINGS, **rules}, has_bounds=has_bounds, gains=gains)
        more = {e.address for e, labels in flow.products if not flow.channels.is_free(labels)} - gains
        if not more:
            return _found(flow)
        gains |= more


OPERATIONS = ("dot_general", "conv_general_dilated", "gather")
"""What makes channels, and does not lie between."""


def _found(flow: Flow) -> Pairs:
    roots = flow.channels.roots
    makers = [use for use in flow.uses if use.kind in ("weight", "table", "gain")]
    members: dict[int, set[int]] = {}
    for i, use in enumerate(makers):
        for root in np.unique(roots(use.makes)):
            if root > 0:
                members.setdefault(int(root), set()).add(i)
    groups: dict[frozenset[int], list[int]] = {}
    for root in sorted(members):
        groups.setdefault(frozenset(members[root]), []).append(root)
    positive = (
        set(np.unique(np.concatenate([roots(x).reshape(-1) for x in flow.positive])).tolist())
        if flow.positive
        else set()
    )
    passed = [(e, _roots(flow, labels)) for e, labels in flow.passed if e.name not in OPERATIONS]
    known = {
        (i, side): _roots(flow, getattr(use, side)) for i, use in enumerate(flow.uses) for side in ("makes", "takes")
    }
    place = {id(use): i for i, use in enumerate(flow.uses)}
    joined = []
    for group, numbers in sorted(groups.items(), key=lambda item: min(item[0])):
        number = {root: i for i, root in enumerate(numbers)}

        def ends(uses: Sequence[Use], side: str, number: dict[int, int] = number) -> tuple[End, ...]:
            touching = [use for use in uses if known[place[id(use)], side] & number.keys()]
            return tuple(end for use in touching if (end := _end(flow, use, side, number)) is not None)

        takers = ends([u for u in flow.uses if u.kind == "weight"], "takes")
        if takers:
            between = tuple(e for e, roots_of in passed if roots_of & number.keys())
            scaled = ends([u for u in flow.uses if u.kind in ("bias", "bound")], "makes")
            making = ends([makers[i] for i in sorted(group)], "makes")
            joined.append(Pair(len(numbers), making, takers, scaled, between, not positive & set(numbers)))
    return Pairs(tuple(joined), tuple(b for use in makers if (b := _blocked(flow, use)) is not None))


def _end(flow: Flow, use: Use, side: str, number: dict[int, int]) -> End | None:
    labels = use.makes if side == "makes" else use.takes
    channels = _numbered(flow, labels, number)
    if not np.any(channels >= 0):
        return None
    at = use.read if side == "takes" else use.made
    assert at is not None
    outside = np.broadcast_to(np.where(use.makes < 0, -1, 0), np.broadcast_shapes(channels.shape, use.makes.shape))
    if np.any(outside < 0):
        channels = np.where(outside < 0, -1, channels)
    return End(max(use.leaf, -1), use.kind, use.equation, use.operand, channels, at[0], _numbered(flow, at[1], number))


def _numbered(flow: Flow, labels: Labels, number: dict[int, int]) -> Labels:
    roots = flow.channels.roots(labels)
    distinct, inverse = np.unique(roots, return_inverse=True)
    return np.asarray([number.get(int(r), -1) for r in distinct], np.int64)[inverse].reshape(roots.shape)


def _roots(flow: Flow, labels: Labels) -> set[int]:
    return {int(r) for r in np.unique(flow.channels.roots(np.unique(labels)))}


def _blocked(flow: Flow, use: Use) -> Blocked | None:
    labels = np.unique(use.makes)
    stopped = [int(x) for x in labels if x > 0 and not flow.channels.is_free(np.asarray(x))]
    reason = flow.channels.why(stopped[0]) if stopped else None
    return None if reason is None else Blocked(use.leaf, use.kind, use.equation, len(stopped), reason)


def largest(magnitudes: np.ndarray, channels: Labels, size: int) -> np.ndarray:
    """Returns the largest magnitude of every channel, 0 where it has none.

    Args:
        magnitudes: zero or positive.
        channels: of the same rank, broadcasts to its shape.
        size: how many channels there are.
    """
    lead = magnitudes.ndim - channels.ndim
    kept = (*range(lead), *(lead + i for i in varying(channels, 0)))
    least = np.max(magnitudes, axis=tuple(i for i in range(magnitudes.ndim) if i not in kept), initial=0.0)
    maxima = np.zeros(size + 1, magnitudes.dtype)
    np.maximum.at(maxima, np.squeeze(channels).reshape(-1), least.reshape(-1))
    return maxima[:-1]
