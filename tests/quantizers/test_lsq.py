"""LSQ: values and gradients by hand and by its equations in float64, its starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.core.metrics import nmse
from lowbit.quantizers.lsq import lsq
from tests.quantizers.by_hand import KEY, gradients, operand_of, row
from tests.quantizers.equations import GRIDS, STEPS, S, case_of, close, pulled, rng, rows, summed

V = row([-1.0, 0.2, 0.5, 0.9, 1.4, 2.2, 2.6, 3.7])


def test_lsq_golden():
    """s = 1, Qn = 0, Qp = 3 (Esser et al., 2020, Eqs. 1 to 3); the gradient scale 1 / sqrt(N Qp) divided out."""
    q = lsq("wuint2/tensor").weight
    value, to_v, to = gradients(q, {"step": jnp.ones((1, 1))}, V)
    np.testing.assert_array_equal(value, [0, 0, 0, 1, 1, 2, 3, 3])
    np.testing.assert_array_equal(to_v, [0, 1, 1, 1, 1, 1, 1, 0])
    np.testing.assert_allclose(to["step"] * np.sqrt(8 * 3), [0, -0.2, -0.5, 0.1, -0.4, -0.2, 0.4, 3], atol=1e-6)


def test_lsq_starts():
    """The paper's start at 8 bits is 12.8 dB worse than least squares on normal weights; below 4 bits it is the default."""
    x = jax.scipy.special.ndtri((jnp.arange(2.0**17) + 0.5) / 2**17)[None]
    operand = operand_of(x)
    error = {}
    for start in ("paper", "mse"):
        q = lsq("w8/tensor", start=start).weight
        state = q.init(operand, {"values": x}, KEY)
        error[start] = float(nmse(x, q.fake(state, x, operand)))
    assert abs(10 * np.log10(error["paper"] / error["mse"]) - 12.8) < 0.2
    step = lsq("w2/tensor").weight.init(operand, {"values": x}, KEY)["learn"]["step"]
    np.testing.assert_allclose(step, 1.5958, rtol=0.02)
    with pytest.raises(ValueError, match="'paper', got 'best'"):
        lsq("w4", start="best")


@pytest.mark.parametrize(("text", "is_weight"), GRIDS, ids=str)
def test_lsq(text, is_weight):
    """Esser et al., 2020, Eqs. (3), (5), and g = 1 / sqrt(N Qp); of an affine grid Qp = 2**b - 1, of inputs N per example."""
    q, grid, per_row, shape, fixed, x, g = case_of(lsq, text, is_weight)
    to_x, to, _ = pulled(q, {"step": np.full(shape, S)}, x, g, fixed, is_weight=is_weight)
    low, high = grid.ends
    v = x / S
    inside = (v > low) & (v < high)
    ds = np.where(inside, np.round(v) - v, np.where(v <= low, low, high))
    count = STEPS.size if per_row or not is_weight else x.size
    top = grid.high if q.spec.symmetric else grid.high - grid.low
    close(to_x, g * inside)
    close(
        to["step"],
        summed(g * ds, per_row) / np.sqrt(count * top),
        summed(np.abs(g * ds), per_row) / np.sqrt(count * top),
    )


@pytest.mark.parametrize("group", [4, 7])
def test_lsq_of_groups(group):
    """A step a group: N is the group, also of the short last one's siblings."""
    q = lsq(f"w4/g{group}").weight
    x, g = rows()[:, :21], rng().normal(size=(2, 21))
    groups = -(-21 // group)
    steps = S * 2.0 ** rng().integers(-1, 2, (2, groups))
    to_x, to, _ = pulled(q, {"step": steps}, x, g)
    s = np.repeat(steps, group, 1)[:, :21]
    v = x / s
    inside = (v > -8) & (v < 7)
    ds = g * np.where(inside, np.round(v) - v, np.where(v <= -8, -8, 7))
    want = np.stack([ds[:, i : i + group].sum(1) for i in range(0, 21, group)], 1) / np.sqrt(group * 7)
    close(to_x, g * inside)
    close(to["step"], want, np.abs(ds).sum() / np.sqrt(group * 7))
