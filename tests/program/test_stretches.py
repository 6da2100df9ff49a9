"""`stretches`: cuts where one value is handed on, and what all of them make, one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.program.evaluate import again
from lowbit.program.read import read
from lowbit.program.stretches import stretches


def network(p, x, mask):
    h = jax.nn.relu(x @ p[0] + 1.0)
    h = h @ p[1] * mask
    h = h + jnp.tanh(h @ p[2]) @ (2.0 * p[3])
    return h @ p[4], h @ p[5]


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    p = [jnp.asarray(rng.normal(size=(4, 4)), jnp.float32) for _ in range(6)]
    x, mask = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), jnp.asarray([[1.0], [0.0], [1.0]])
    program = read(jax.make_jaxpr(network)(p, x, mask), fixed=6, inlined=("jit", "remat"))
    return p, x, mask, program, [e.address for e in program.equations if e.name == "dot_general"]


@pytest.mark.parametrize(("most", "counts"), [(1, [1, 1, 2, 2]), (2, [2, 2, 2]), (4, [4, 2]), (6, [6])])
def test_blocks_are_cut_where_one_value_goes_on_and_no_further(case, most, counts):
    """Two layers in a row, a residual block, and two heads, which both hand on: between those it may be cut."""
    *_, program, operations = case
    found = stretches(program, operations, most=most)
    assert [len(part.operations) for part in found] == counts
    assert [a for part in found for a in part.operations] == operations
    assert all(len(part.outs) == 1 for part in found[:-1])


@pytest.mark.parametrize("most", [1, 2, 3, 6])
def test_all_of_them_make_what_the_function_makes(case, most):
    p, x, mask, program, operations = case
    env = dict(zip(program.inputs[6:], (x, mask), strict=True))
    place = {value: i for i, value in enumerate(program.inputs)}
    for part in stretches(program, operations, most=most):
        outs = part.run([env[v] for v in part.inputs], lambda v: p[place[v]], lambda e, values: again(e, values)[0])
        env.update(zip(part.outs, outs, strict=True))
    for got, want in zip([env[v] for v in program.outs], network(p, x, mask), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_loop_is_in_one_stretch_and_said_to_be():
    def fn(p, x):
        h = x @ p[0]
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, p[1])[0] @ p[0]

    p = [jnp.eye(3), jnp.ones((2, 3, 3))]
    program = read(jax.make_jaxpr(fn)(p, jnp.ones((2, 3))), fixed=2, inlined=("jit", "remat"))
    scan = next(e for e in program.equations if e.call == "scan")
    inside = next(e.address for e in scan.loop.equations if e.name == "dot_general")
    outside = [e.address for e in program.equations if e.name == "dot_general"]
    found = stretches(program, [outside[0], inside, outside[1]], most=1)
    assert [(len(part.operations), part.has_loops) for part in found] == [(1, False), (0, True), (1, False)]


def test_a_block_has_at_least_one_operation(case):
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        stretches(case[3], case[4], most=0)
