"""What a recipe is made of: rewrites of the model, a range rule for inputs, a solver for weights."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowbit.core.grid import Grid
from lowbit.core.moments import Gram, SecondMoment
from lowbit.core.ranges import RangeRule
from lowbit.plan.rows import Plan
from lowbit.rewrites.chain import Rewrite
from lowbit.solvers.brecq import Reconstruction
from lowbit.solvers.descent import descend, refit
from lowbit.solvers.factor import Factor

VALUES = ("none", "ones", "diagonal", "conditional")
"""What a squared error of a row counts in the search of a scale: no search at all; 1; ``H_kk``; ``c_k``."""


@dataclasses.dataclass(frozen=True)
class Solver(abc.ABC):
    """How the levels of a weight are found: scales by search, a rounding, then rounds of refit and descent.

    Subclasses are final, frozen dataclasses that say how to round.

    Attributes:
        value: what the search of scales weighs errors by, one of `VALUES`.
        steps: scales tried, evenly spaced between 0.4 and 1.1 of the full range, or 1.6 where levels are not evenly spaced.
        rounds: of refitting all scales of an output by least squares, then one sweep of coordinate descent.
        damping: added to the diagonal of the inputs' second moment, as a share of its mean.
        alpha: how much of what rounding before it did to the inputs the weight takes back (`lowbit.solvers.target`): 0 nothing,
            1 all that a regression on the calibration inputs can.
        ridge: the damping of that regression, as a share of the mean second moment.
        is_centered: whether a bias that follows takes back means, so that rounding minds the inputs' covariance alone.
    """

    value: str = "conditional"
    steps: int = 64
    rounds: int = 4
    damping: float = 0.01
    alpha: float = 0.0
    ridge: float = 0.01
    is_centered: bool = False

    needs_moment: ClassVar[bool] = True
    order: ClassVar[str] = "diagonal"
    has_own_grid: ClassVar[bool] = False
    """Whether `grid` takes the place of the search, where every output has scales of its own that may change."""

    def __post_init__(self):
        if self.value not in VALUES:
            raise ValueError(f"value must be one of {', '.join(VALUES)}, got {self.value!r}")
        if self.steps < 2 or self.rounds < 0 or self.damping < 0:
            raise ValueError(
                f"a solver needs steps >= 2, rounds >= 0 and damping >= 0, got {self.steps}, {self.rounds}, {self.damping}"
            )
        if not 0 <= self.alpha <= 1 or self.ridge <= 0:
            raise ValueError(f"a solver needs 0 <= alpha <= 1 and ridge > 0, got {self.alpha} and {self.ridge}")

    def moment(self, most: int) -> SecondMoment:
        """Returns the statistic that is the second moment of inputs; beside gradients, where `loss` says of what.

        It may have several matrices for each of the weight's: of groups of neighbouring outputs, which are then solved apart.

        Args:
            most: about how many rows of a batch are taken (`lowbit.core.moments.RowSum`).
        """
        return Gram(most)

    def loss(self, result: Any) -> Float[Array, ""]:
        """Returns what gradients are of, from the model's result: asked where `moment` stands beside them."""
        raise NotImplementedError(f"{type(self).__name__} has a moment beside gradients and no loss")

    @abc.abstractmethod
    def round(self, weight: Float[Array, "in out"], known: Factor, grid: Grid) -> Float[Array, "in out"]:
        """Returns levels of a weight, zero point included; float32, under jit and vmap.

        Args:
            weight: float32.
            known: the inputs' second moment, damped, and its factor. Without one (a look-up, or where ``needs_moment`` is
                false) nothing is asked: every entry takes the nearest level.
            grid: scales, zero points and format.
        """

    def grid(self, weight: Float[Array, "in out"], value: Float[Array, " in"], grid: Grid, store: Any) -> Grid:
        """Returns the grid that is rounded on, float32, under jit and vmap: asked where ``has_own_grid``, without inputs too.

        By whatever it minimises, what is rounded on it must not be worse than what is on ``grid``: that is not looked at again.

        Args:
            weight: float32.
            value: what a squared error of every row counts, as ``value`` of the solver says; 0 of rows that fill up a shape.
            grid: the quantizer's own. Its zero points, where it has some, may change as scales may.
            store: ``scale -> scale`` as it will be stored.
        """
        return grid

    def polished(
        self, weight: Float[Array, "in out"], levels: Float[Array, "in out"], known: Factor, grid: Grid, store: Any
    ) -> tuple[Float[Array, "in out"], Grid]:
        """Returns levels and scales after ``rounds`` of refit and descent.

        Args:
            weight: float32.
            levels: where to start.
            known: as for `round`.
            grid: of ``levels``.
            store: ``scale -> scale`` as it will be stored, or None where scales are not to change.
        """
        pulled = None
        if store is not None:
            pulled = jnp.matmul(known.damped, weight.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)

        def one(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
            levels, scale = state
            now = dataclasses.replace(grid, scale=scale)
            if store is not None:
                now = refit(weight, levels, known.damped, now, pulled)
                now = dataclasses.replace(now, scale=store(now.scale))
            return (descend(weight, levels, known.damped, now), now.scale), None

        (levels, scale), _ = jax.lax.scan(one, (levels, grid.scale), length=self.rounds)
        return levels, dataclasses.replace(grid, scale=scale)

    def __str__(self) -> str:
        rest = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self))
        return f"{type(self).__name__}({rest})"


class Remainder(abc.ABC):
    """Parameters that take back a part of what rounding leaves of a weight: a rewrite put them into the function, as zeros.

    Those of the weight ``path`` are called ``root/path/...``, and stay as they are where the plan quantizes.
    """

    root: ClassVar[str]

    @abc.abstractmethod
    def taken(
        self,
        own: Mapping[str, Any],
        off: Float[np.ndarray, "matrix inner columns"],
        moment: Float[np.ndarray, "matrix inner inner"] | None,
    ) -> tuple[dict[str, Any], Float[np.ndarray, "matrix inner columns"]]:
        """Returns the parameters of one weight, by the names in ``own``, and what they add to the weight.

        Args:
            own: as the rewrite made them.
            off: the weight without its rounded values, float32.
            moment: second moment of its inputs, or None where they are not looked at.
        """


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A post-training method from end to end.

    Attributes:
        name: what it is called.
        solver: of the weights.
        rewrite: ``(fn, params, state) -> (fn', params', state')`` before anything is quantized, such as
            ``lowbit.chain(...)``; None: the model as it is.
        inputs: the range rule of static inputs whose rule text names none (those of `lowbit.rtn`); None: as they are.
        passes: into how many runs, at most, weights are cut in program order, and more where second moments do not fit the
            window: inputs are observed before each, as the weights of the runs before, already solved, leave them.
        most_rows: of every batch's input rows that second moments are taken over, about, evenly spaced; 0: all.
        is_corrected: whether biases take back the mean that rounding adds (`lowbit.rewrites.bias_correction`).
        mean_batches: that those means are measured on, at most: every operation runs the model on them once.
        is_remeasured: whether input ranges are measured again once weights are solved.
        blocks: how blocks are learned again once all is solved (`lowbit.solvers.brecq`); None: they are not.
        rival: a recipe that weights are solved by as well, from the same rewrite; what it makes is kept where it loses less on
            held-out batches. None: no other.
        remainder: what takes back a part of what rounding leaves, in parameters that ``rewrite`` added; None: nothing does.
        why: said in the report: why it was picked.
        pick: from a plan to the recipe that is run on it in place of this one; None: this one.
    """

    name: str
    solver: Solver
    rewrite: Rewrite | None = None
    inputs: RangeRule | None = None
    passes: int = 1
    most_rows: int = 4096
    is_corrected: bool = False
    mean_batches: int = 2
    is_remeasured: bool = True
    blocks: Reconstruction | None = None
    rival: "Recipe | None" = None
    remainder: Remainder | None = None
    why: str = ""
    pick: Callable[[Plan], "Recipe"] | None = dataclasses.field(default=None, repr=False)

    def named(self, name: str, why: str, **changes: Any) -> "Recipe":
        """Returns the recipe under another name, with a reason and other fields."""
        return dataclasses.replace(self, name=name, why=why, **changes)

    def __post_init__(self):
        if not isinstance(self.solver, Solver):
            raise TypeError(f"solver must be a Solver such as lowbit.recipes.gptq.GPTQ(), got {self.solver!r:.60}")
        if self.passes < 1:
            raise ValueError(f"passes must be at least 1, got {self.passes}")
        if self.most_rows < 0:
            raise ValueError(f"most_rows must be zero or positive, got {self.most_rows}")
        if self.mean_batches < 1:
            raise ValueError(f"mean_batches must be at least 1, got {self.mean_batches}")

    def __str__(self) -> str:
        rewrite = "" if self.rewrite is None else f"rewrite={self.rewrite}, "
        text = f"{self.name}: {rewrite}inputs={self.inputs}, solver={self.solver}, passes={self.passes}"
        text += f", most_rows={self.most_rows}"
        text += f", is_corrected={self.is_corrected}"
        text += f", mean_batches={self.mean_batches}" if self.is_corrected else ""
        text += f", is_remeasured={self.is_remeasured}"
        text += "" if self.rival is None else f", rival={self.rival.name}"
        text += "" if self.blocks is None else f", blocks={self.blocks}"
        text += "" if self.remainder is None else f", remainder={self.remainder}"
        return f"{text} ({self.why})" if self.why else text
