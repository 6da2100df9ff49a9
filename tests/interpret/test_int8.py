"""Products of 8-bit codes with zero points on both sides, in int8: numpy's int64, and no wider operand."""

import jax
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from tests.values import normal


def attention(p, q, k, v):
    scores = lax.dot_general(q, k, (((3,), (3,)), ((0, 2), (0, 2))))  # batch, head, q, k
    return lax.dot_general(scores, v, (((3,), (1,)), ((0, 1), (0, 2))))


def grids(x, state):
    """int64 steps from the zero point of a calibrated grid, as numpy rounds them: half to even."""
    scale, zero = np.float32(np.asarray(state["scale"]).item()), int(np.asarray(state["zero"]).item())
    steps = np.round(np.asarray(x, np.float32) * (np.float32(1) / scale)) + zero
    return np.clip(steps, -128, 127).astype(np.int64) - zero, scale


@pytest.mark.parametrize("platform", ["tpu-interpreter", "cuda"])
def test_attention_products_are_those_of_numpy_and_multiply_bytes(platform):
    args = tuple(normal(i, 2, 5, 3, 8) + 0.5 * i for i in range(3))
    plan = lb.bind(attention, {"**": "w8,a8"}, {}, *args)
    qstate = lb.calibrate(attention, plan, {}, [args])
    qparams = lb.pack(plan, {}, qstate)
    run = lb.execute(attention, plan, platform=platform)
    text = jax.jit(run).trace(qparams, *args).lower(lowering_platforms=(platform.split("-")[0],)).as_text()
    dots = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(dots) == 2
    assert all(line.count("xi8>") == 2 and "xi32>" in line for line in dots)
    if platform == "cuda":  # lowered; nothing here runs it
        return
    got = run(qparams, *args)
    np.testing.assert_array_equal(got, lb.simulate(attention, plan)({}, qstate, *args))
    first = plan.rows[0]
    (left, s_left), (right, s_right) = (
        grids(x, qparams.sites[first.path][site.role]) for x, site in zip(args, first.sites, strict=False)
    )
    sums = np.einsum("bqhd,bkhd->bhqk", left, right).astype(np.float32)
    second = plan.rows[1]
    scores, s_scores = grids((sums * s_right) * s_left, qparams.sites[second.path][second.sites[0].role])
    value, s_value = grids(args[2], qparams.sites[second.path][second.sites[1].role])
    want = np.einsum("bhqk,bkhd->bhqd", scores, value).astype(np.float32)
    np.testing.assert_array_equal(got, (want * s_value) * s_scores)
