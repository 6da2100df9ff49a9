"""The plan: a row per operation. Frozen, hashable data; traced once, checked once, taken by every later step."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from lowbit.core.matrix import MatrixView
from lowbit.core.quantizer import Quantizer, is_served_by_spec
from lowbit.core.spec import Operand, Spec

from .geometry import Geometry


@dataclasses.dataclass(frozen=True)
class Site:
    """One operand of one operation.

    Attributes:
        role: ``weight``, ``input``, ``lhs`` or ``rhs``; ``output`` of a step.
        kind: ``leaf`` (a parameter, moved at most), ``derived`` (computed from parameters), ``constant`` (an array the
            function closed over), ``input``, ``mixed`` (parameters combined with data), or, in a full-integer plan,
            ``grid`` (it is on the grid of a step, which holds the state).
        key: where its state is kept: the leaf path for leaves, the grid's path for grids, the operation's path for the
            rest.
        leaves: paths of the parameters behind a weight.
        operand: what a quantizer may know: shape, dtype and axes, in leaf coordinates for leaves. Inputs have 0 for every
            length but those of layers: a state fits every one of them.
        spec: how it is quantized, or None.
        quantizer: what quantizes it; None where ``spec`` is None, and in a plan read from a file.
        text: of the quantizer, in a plan read from a file; else "".
        is_lost: in a plan read from a file, whether an input's quantizer would serve it by code of its own.
        shape: of the operand as the operation takes it, in one layer, as it was bound. None is the length of the axis that
            counts examples: of an input the first one that is neither summed over nor paired with an axis of a weight, of
            a product of two inputs the first that is paired, else the first that is not summed over.
        axes: of a leaf: what makes up every axis of ``shape``, as ``(axis of the leaf, elements)``, the slowest first; where
            data picked the leaf's matrix, axes that count what was picked are below 0.
        flipped: axes of the leaf that the operation takes in reversed order, as kernels of transposed convolutions are.
        cuts: what the operation takes of axes of the leaf that slices cut, as ``(axis, first element, elements)``; neither
            compared nor saved.
    """

    role: str
    kind: str
    key: str
    leaves: tuple[str, ...]
    operand: Operand
    spec: Spec | None = None
    quantizer: Quantizer | None = dataclasses.field(default=None, compare=True)
    text: str = ""
    is_lost: bool = False
    shape: tuple[int | None, ...] = dataclasses.field(default=(), compare=False)
    axes: tuple[tuple[tuple[int, int], ...], ...] = dataclasses.field(default=(), compare=False)
    flipped: tuple[int, ...] = dataclasses.field(default=(), compare=False)
    cuts: tuple[tuple[int, int, int], ...] = dataclasses.field(default=(), compare=False)

    @property
    def method(self) -> str:
        """The quantizer as text, also where a file held nothing else of it; "" where there is none."""
        return self.text if self.quantizer is None else self.quantizer.text

    @property
    def is_weight(self) -> bool:
        """Whether the operand is a weight."""
        return self.role == "weight"

    @property
    def own_code(self) -> str:
        """The quantizer, as text, whose own code serves this input; "" where the spec says it all (`Quantizer.served_by_spec`)."""
        if self.is_weight or self.spec is None:
            return ""
        is_own = self.is_lost if self.quantizer is None else not is_served_by_spec(self.quantizer)
        return self.method if is_own else ""


@dataclasses.dataclass(frozen=True)
class Row:
    """One operation.

    Attributes:
        path: unique path; glob rules match it, and it without ``@0``.
        primitive: ``dot_general``, ``conv_general_dilated`` or ``gather``.
        sites: its two operands, in the primitive's order.
        stack: lengths of the enclosing scans over layers.
        rule: the rule that took it.
        feature_groups: of a convolution; 1 elsewhere.
        batch: axes of the weight that a dot pairs with axes of the input without a sum (experts), in the weight's coordinates.
        macs: multiply-adds at the shapes it was bound with.
        source: where it was written.
        geometry: how the operands meet; axes are those of ``Site.shape``. None in a file of an older lowbit.
        producers: paths of the rows that its operands are computed from, nearest upstream; see `lowbit.plan.costs.consumers`.
        own_gradient: the function with a derivative of its own that it is in, ``custom_vjp`` and its source line, or "".
        operation: what was traced: what `lowbit.observe.replay` runs. None in a row read from a file; neither compared nor
            saved.
    """

    path: str
    primitive: str
    sites: tuple[Site, Site]
    stack: tuple[int, ...]
    rule: str
    feature_groups: int = 1
    batch: tuple[int, ...] = ()
    macs: int = dataclasses.field(default=0, compare=False)
    source: str = dataclasses.field(default="", compare=False)
    geometry: Geometry | None = dataclasses.field(default=None, compare=False)
    producers: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    own_gradient: str = dataclasses.field(default="", compare=False)
    operation: Any = dataclasses.field(default=None, compare=False, repr=False, kw_only=True)

    @property
    def base(self) -> str:
        """The path without ``@0``."""
        return self.path.split("@")[0]

    @property
    def is_quantized(self) -> bool:
        """Whether any operand is quantized."""
        return any(site.spec is not None for site in self.sites)

    @property
    def is_integer(self) -> bool:
        """Whether both operands are integers, so that the operation accumulates in integers."""
        return all(site.spec is not None and site.spec.format.is_integer for site in self.sites)

    @property
    def weight(self) -> Site | None:
        """The site of the weight, or None where both operands are computed."""
        return next((site for site in self.sites if site.is_weight), None)

    @property
    def matrix(self) -> MatrixView:
        """How the weight is read as matrices ``[matrix, K, N]``, one for all that have inputs of their own.

        Raises:
            ValueError: where both operands are computed.
        """
        if self.weight is None:
            raise ValueError(f"{self.path} has no weight: both operands are computed")
        return MatrixView.of(self.weight.operand, batch=self.batch, feature_groups=self.feature_groups)


@dataclasses.dataclass(frozen=True)
class Step:
    """One integer computation of a full-integer plan: from codes on grids to codes on a grid.

    Attributes:
        path: unique path; that of its row where it is an operation.
        kind: the name of a kind of integer computation: a file of ``lowbit/interpret/integer/ops``.
        inputs: paths of the steps it reads.
        grid: path of the step that names the grid its result is on.
        absorbed: primitives that follow the main one and cost nothing: bias, scale, relu, clip, or those of a table.
        scope: paths of the scans it is in.
        site: of the grid, on the step that names it.
        source: where it was written.
    """

    path: str
    kind: str
    inputs: tuple[str, ...]
    grid: str
    absorbed: tuple[str, ...] = ()
    scope: tuple[str, ...] = ()
    site: Site | None = None
    source: str = dataclasses.field(default="", compare=False)

    @property
    def stack(self) -> tuple[int, ...]:
        """No grid differs between layers."""
        return ()


@dataclasses.dataclass(frozen=True)
class Uncovered:
    """A parameter that is no operation's weight, and is stored as it is: a bias, a gain, or a product that is not seen.

    Attributes:
        path: of the leaf.
        nbytes: that it takes.
        uses: the primitives that compute with it, each with its source line, or ``the result``; empty where nothing does.
    """

    path: str
    nbytes: int
    uses: tuple[str, ...] = ()

    @property
    def primitives(self) -> tuple[str, ...]:
        """The primitives alone, each once."""
        return tuple(dict.fromkeys(use if use == "the result" else use.split(" ")[0] for use in self.uses))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is quantized, and how.

    Attributes:
        rows: one per operation, in program order.
        unseen: ``(primitive, source line)`` of primitives that may hide a matmul.
        dropped: parameter leaves that only derived weights need: gone once packed.
        uncovered: parameters that no operation has as its weight.
        steps: of a full-integer plan, in program order; else none.
        rounding: the named rounding of a full-integer plan, else "".
        program: what was traced, as data that packing computes derived weights and integer constants by; None in a plan
            read from a file. It is neither compared nor saved.
    """

    rows: tuple[Row, ...]
    unseen: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()
    uncovered: tuple[Uncovered, ...] = dataclasses.field(default=(), compare=False, kw_only=True)
    steps: tuple[Step, ...] = ()
    rounding: str = ""
    program: Any = dataclasses.field(default=None, compare=False, repr=False, kw_only=True)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, path: str) -> Row:
        for row in self.rows:
            if row.path == path:
                return row
        raise KeyError(f"no operation {path!r}; there are: {', '.join(row.path for row in self.rows)}")

    @property
    def quantized(self) -> tuple[Row, ...]:
        """The rows that are not left in float."""
        return tuple(row for row in self.rows if row.is_quantized)

    @property
    def is_full_integer(self) -> bool:
        """Whether every tensor that crosses an operation has a grid."""
        return bool(self.steps)

    @functools.cached_property
    def fingerprint(self) -> str:
        """What states and packed parameters of this plan carry; see `lowbit.plan.fingerprint`."""
        from .fingerprint import fingerprint

        return fingerprint(self)

    def grids(self) -> dict[str, Site]:
        """Returns the grids of a full-integer plan, by path."""
        return {step.path: step.site for step in self.steps if step.site is not None}

    def leaf_sites(self) -> dict[str, Site]:
        """Returns the quantized weight leaves, by leaf path."""
        sites = {}
        for row in self.rows:
            for site in row.sites:
                if site.kind == "leaf" and site.spec is not None:
                    sites[site.key] = site
        return sites

    def __str__(self) -> str:
        from .show import table

        return table(self)
