"""LSQ+: values and gradients by hand and by its equations in float64, and the claim on swish."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.core.metrics import mean_squared_error
from lowbit.core.ranges import MSE
from lowbit.quantizers.lsq_plus import lsq_plus
from lowbit.quantizers.rtn import rtn
from tests.quantizers.by_hand import KEY, gradients, operand_of, row
from tests.quantizers.equations import GRIDS, STEPS, S, case_of, close, pulled, summed


def test_lsq_plus_golden():
    """Eqs. (4), (5): d/d beta is 1 outside and 0 inside; d/ds is n and p outside, level - x / s inside."""
    q = lsq_plus("auint2").input
    x = row([-3.0, -0.7, 0.4, 9.0])
    value, to_x, to = gradients(q, {"step": jnp.ones((1, 1)), "offset": jnp.full((1, 1), -1.0)}, x, is_weight=False)
    np.testing.assert_array_equal(value, [-1, -1, 0, 2])  # beta = -1: levels -1, 0, 1, 2
    np.testing.assert_array_equal(to_x, [0, 1, 1, 0])
    g = np.sqrt(4 * 3)
    np.testing.assert_allclose(to["offset"] * g, [1, 0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(to["step"] * g, [0, -0.3, -0.4, 3], atol=1e-6)


def test_lsq_plus_beats_lsq_on_swish():
    """The claim: with negative values that matter, a learned offset starts (and stays) better than an unsigned grid."""
    x = jax.nn.swish(jax.random.normal(KEY, (1, 16384)))
    operand = operand_of(x, is_weight=False)
    q = lsq_plus("a4").input
    stats = {s.name: s.finish(s.update(s.init(operand), x, operand)) for s in q.needs(operand)}
    unsigned = rtn("auint4/sym", range=MSE()).input
    ours = q.fake(q.init(operand, stats, KEY), x, operand)
    theirs = unsigned.fake(unsigned.init(operand, stats, KEY), x, operand)
    assert float(mean_squared_error(x, ours)) < 0.8 * float(mean_squared_error(x, theirs))


@pytest.mark.parametrize(("text", "is_weight"), GRIDS, ids=str)
@pytest.mark.parametrize("part", [0.0, 0.3])
def test_lsq_plus(text, is_weight, part):
    """Bhalgat et al., 2020, Eqs. (4), (5), at an offset of whole steps, and at ``part`` of a step more.

    With u = (x - beta) / s: dx^/ds = round(u) - u inside, n below, p above; dx^/dbeta = 0 inside, 1 outside. On the offset
    that is used, beta rounded to whole steps, all three are about the same u; beside it, what is outside gets the
    distance of beta from there, in steps.
    """
    q, grid, per_row, shape, _, x, g = case_of(lsq_plus, text, is_weight)
    whole = (grid.low - grid.zero) * S
    beta = whole + part * S
    learn = {"step": np.full(shape, S)} | ({} if q.spec.symmetric else {"offset": np.full(shape, beta)})
    to_x, to, _ = pulled(q, learn, x, g, is_weight=is_weight)
    low, high = grid.ends
    v = x / S
    inside = (v > low) & (v < high)
    rest = 0.0 if q.spec.symmetric else whole - beta
    n, p = (low, high) if q.spec.symmetric else (0, grid.high - grid.low)
    ds = np.where(inside, np.round(v) - v, np.where(v <= low, n, p) + rest / S)
    count = STEPS.size if per_row or not is_weight else x.size
    factor = 1 / np.sqrt(count * (grid.high if q.spec.symmetric else grid.high - grid.low))
    close(to_x, g * inside)
    close(to["step"], summed(g * ds, per_row) * factor, 16 * np.abs(g).sum() * factor)
    if not q.spec.symmetric:
        close(to["offset"], summed(g * ~inside, per_row) * factor, np.abs(g).sum() * factor)
