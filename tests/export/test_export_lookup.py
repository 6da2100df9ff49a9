"""Look-ups of one row, of rows picked one by one, of windows and of matrices, in what is exported."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import lowbit as lb
from lowbit.export.verify import verify
from tests.values import normal

P = {"table": normal(0, 11, 8), "place": normal(1, 7, 8), "w": normal(2, 8, 4), "experts": normal(3, 3, 8, 8)}


def one_row(p, token, at):
    return jax.nn.relu((p["table"][token] + p["place"][at])[None] @ p["w"])


def rows_one_by_one(p, token, at):
    return jax.vmap(lambda t, a: jax.nn.relu((p["table"][t] + p["place"][a])[None] @ p["w"]))(token, at)


def window(p, token, at):
    return (p["table"][jnp.arange(3) + token] + lax.dynamic_slice(p["place"], (at, 0), (3, 8))) @ p["w"]


def experts(p, token, at):
    return jax.vmap(lambda t, a: (p["table"][t][None] @ p["experts"][a]) @ p["w"])(token, at)


ONE, TWO = (jnp.int32(3), jnp.int32(2)), (jnp.array([1, 2]), jnp.array([0, 1]))


@pytest.mark.parametrize(
    ("fn", "args", "integer"),
    [
        (one_row, ONE, False),
        (window, ONE, True),
        (rows_one_by_one, TWO, True),
        (experts, TWO, False),
        (experts, TWO, True),
    ],
)
def test_what_is_exported_is_what_is_served(fn, args, integer, tmp_path):
    """Bound on all rows; every target finds the served numbers, and these are the model's but for the grids."""
    every = [args] + [tuple(jnp.full_like(a, i) for a, i in zip(args, (t, t % 3), strict=True)) for t in range(5)]
    plan = lb.bind(fn, {"**": "w8,a8"}, P, *args, integer=integer)
    qparams = lb.pack(plan, P, lb.calibrate(fn, plan, P, every))
    want, got = fn(P, *args), lb.execute(fn, plan)(qparams, *args)
    assert float(jnp.max(jnp.abs(want - got))) < 0.05 * max(float(jnp.max(jnp.abs(fn(P, *a)))) for a in every)
    bundle = lb.export(fn, plan, qparams, args, tmp_path / "floats", targets=["xla-universal"])
    status = {row.target: row.status for row in verify(bundle.path, ["interpreter", "xla", "xla-universal"]).rows}
    assert status.pop("xla-universal") in ("exact", "close")
    assert status == {"interpreter": "exact", "xla": "exact"}


def test_a_look_up_of_one_row_is_c(tmp_path):
    plan = lb.bind(one_row, {"**": "w8,a8"}, P, *ONE, integer=True)
    qparams = lb.pack(plan, P, lb.init(one_row, plan, P, *ONE))
    bundle = lb.export(one_row, plan, qparams, ONE, tmp_path / "codes", integer_io=True, targets=["c"])
    assert [row.status for row in verify(bundle.path, ["c"], run_code=True).rows] == ["exact"]
