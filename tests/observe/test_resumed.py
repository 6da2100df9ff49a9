"""Passes that were killed: they go on where they were, and what is not the same pass is not taken for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.core.moments import Gram
from lowbit.core.spec import Tensor
from lowbit.core.statistics import MinMax
from lowbit.observe.resumed import EVERY
from tests.values import normal

PARAMS = {"a": normal(1, 6, 5), "b": normal(2, 5, 3)}
DATA = [(normal(10 + i, 4, 6),) for i in range(EVERY + 3)]
WANTED = {"**": {"input": (Gram(), MinMax(Tensor()))}}


def model(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


class Killed(Exception):
    """Stands for the end of a process."""


def until(count):
    yield from DATA[:count]
    raise Killed


def counted():
    """The model, and how often it was computed."""
    seen = []

    def fn(params, x):
        jax.debug.callback(lambda _: seen.append(1), jnp.sum(x))
        return model(params, x)

    return fn, seen


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_killed_pass_goes_on_and_a_repeated_one_costs_a_batch(tmp_path):
    fn, seen = counted()
    plan = lb.bind(fn, {}, PARAMS, *DATA[0])
    right = lb.observe(fn, plan, PARAMS, DATA, WANTED)
    with pytest.raises(Killed):
        lb.observe(fn, plan, PARAMS, until(EVERY + 2), WANTED, cache=tmp_path)
    done = []
    for computed in (1 + 3, 1):
        jax.effects_barrier()
        seen.clear()
        same(lb.observe(fn, plan, PARAMS, iter(DATA), WANTED, cache=tmp_path, progress=done.append), right)
        jax.effects_barrier()
        assert len(seen) == computed
    assert done == 2 * [i + 1 for i in range(len(DATA))]


def test_calibrate_and_diagnose_go_on(tmp_path):
    plan = lb.bind(model, {"**": "w4,a8"}, PARAMS, *DATA[0])
    for sequential in (False, True):
        right = lb.calibrate(model, plan, PARAMS, DATA, sequential=sequential)
        with pytest.raises(Killed):
            lb.calibrate(model, plan, PARAMS, until(EVERY + 1), sequential=sequential, cache=tmp_path)
        same(lb.calibrate(model, plan, PARAMS, DATA, sequential=sequential, cache=tmp_path), right)
    whole = lb.diagnose(model, plan, PARAMS, right, DATA)
    with pytest.raises(Killed):
        lb.diagnose(model, plan, PARAMS, right, until(EVERY + 1), cache=tmp_path)
    assert lb.diagnose(model, plan, PARAMS, right, DATA, cache=tmp_path) == whole


def test_another_pass_is_not_taken_for_it(tmp_path):
    plan = lb.bind(model, {}, PARAMS, *DATA[0])

    def observed(fn, params, batches):
        return lb.observe(fn, plan, params, batches, WANTED, cache=tmp_path)

    observed(model, PARAMS, DATA)
    for fn, params in (
        (lambda p, x: jnp.sin(x @ p["a"]) @ p["b"], PARAMS),
        (model, {**PARAMS, "a": PARAMS["a"] + 1}),
    ):
        same(observed(fn, params, DATA), lb.observe(fn, plan, params, DATA, WANTED))
    other = [DATA[0], DATA[2], DATA[1], *DATA[3:]]
    with pytest.raises(ValueError, match=r"batches\[1\] is another than in the pass"):
        observed(model, PARAMS, other)
    with pytest.raises(ValueError, match=f"batches has 2, and .* over {len(DATA)} or more"):
        observed(model, PARAMS, DATA[:2])
    with pytest.raises(ValueError, match=r"outside jax\.jit"):
        jax.jit(lambda p: observed(model, p, DATA))(PARAMS)
    with pytest.raises(TypeError, match="cache must be"):
        lb.observe(model, plan, PARAMS, DATA, WANTED, cache=7)  # pyright: ignore[reportArgumentType] (what is tested)
