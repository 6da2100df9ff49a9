"""Along which axis codes share bytes: the fewest bytes, and of as few a contracted axis, whose codes a kernel reads together."""

import itertools
import math

import jax
import jax.numpy as jnp
import pytest

import lowbit as lb
from lowbit.packed.bits import packing_axis


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_fewest_bytes_then_contracted(bits):
    """Brute force over axes; a byte holds 8 // bits codes of two or four bits, three bits fill three bytes with eight codes."""
    unit = 8 // math.gcd(8, bits)  # codes that end on a whole byte

    def padded(shape, axis):
        return math.prod(shape) // shape[axis] * math.ceil(shape[axis] / unit)

    for shape in itertools.product((1, 5, 8, 32), repeat=3):
        least = min(padded(shape, axis) for axis in range(3))
        for contract in ((), (0,), (1,), (2,), (0, 2)):
            axis = packing_axis(shape, bits, contract)
            assert padded(shape, axis) == least
            if any(padded(shape, each) == least for each in contract):
                assert axis in contract, (shape, contract)
        assert packing_axis(shape, bits, (0,), stack=1) in (1, 2)


def test_a_packed_weight_shares_bytes_along_what_its_product_sums():
    def fn(p, x):
        return x @ p["w"], jnp.einsum("bk,ok->bo", x, p["v"])

    params = {"w": jax.random.normal(jax.random.key(0), (16, 8)), "v": jax.random.normal(jax.random.key(1), (8, 16))}
    x = jnp.ones((2, 16))
    plan = lb.bind(fn, {"**": "w4"}, params, x)
    qparams = lb.pack(plan, params, lb.init(fn, plan, params, x))
    assert {path: w.packed_axis[0] % 2 for path, w in qparams.weights().items()} == {"w": 0, "v": 1}
