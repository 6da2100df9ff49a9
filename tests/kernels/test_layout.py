"""The canonical bytes: golden values, and pack/unpack as inverses on any rank and axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit_kernels import code_range, pack_codes, packed_length, prepare, restore, unpack_codes
from lowbit_kernels.shapes import SMALL
from tests.kernels.cases import matrix

GOLDEN = {  # bits: (codes, bytes)
    1: ([-1, 0, 0, -1, -1, 0, -1, 0, -1], [0b01011001, 0b00000001]),
    2: ([1, -2, -1, 0, -1], [0b00111001, 0b00000011]),
    3: ([1, -2, 3, -4, 0, -1, 2, -3, 1], [0b11110001, 0b10001000, 0b10101011, 0b00000001, 0, 0]),
    4: ([1, -2, 7, -8, 3], [0xE1, 0x87, 0x03]),
    8: ([1, -1, -128, 127], [0x01, 0xFF, 0x80, 0x7F]),
}


@pytest.mark.parametrize("bits", sorted(GOLDEN))
def test_golden_bytes(bits):
    codes, expected = GOLDEN[bits]
    packed = pack_codes(jnp.array(codes), bits, axis=0)
    assert packed.tolist() == expected
    assert unpack_codes(packed, bits, len(codes), axis=0).tolist() == codes


def test_neighbours_in_k_share_a_byte_and_columns_do_not():
    codes = jnp.array([[1, 2], [3, 4], [5, 6]])
    assert pack_codes(codes, 4).tolist() == [[0x31, 0x42], [0x05, 0x06]]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_unpack_inverts_pack(data):
    bits, signed = data.draw(st.integers(1, 8)), data.draw(st.booleans())
    shape = tuple(data.draw(st.lists(st.integers(1, 11), min_size=1, max_size=4)))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    low, high = code_range(bits, signed)
    codes = np.random.default_rng(data.draw(st.integers(0, 99))).integers(low, high + 1, shape)
    packed = pack_codes(codes, bits, axis)
    assert packed.shape[axis] == packed_length(shape[axis], bits)
    assert packed.dtype == jnp.uint8
    np.testing.assert_array_equal(np.asarray(unpack_codes(packed, bits, shape[axis], axis, signed), np.int64), codes)


def test_pack_under_jit_vmap_and_eval_shape():
    codes = jnp.arange(-8, 7).reshape(3, 5, 1).repeat(2, -1)
    packed = pack_codes(codes, 3, axis=1)
    np.testing.assert_array_equal(jax.vmap(lambda c: pack_codes(c, 3, axis=0))(codes), packed)
    np.testing.assert_array_equal(jax.jit(lambda c: pack_codes(c, 3, axis=1))(codes), packed)
    assert jax.eval_shape(lambda c: pack_codes(c, 3, axis=1), codes).shape == packed.shape


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: pack_codes(jnp.zeros((2, 2), int), 9), "bits must be 1 to 8, got 9"),
        (lambda: pack_codes(jnp.zeros((2, 2), int), 4, axis=2), "axis 2 is outside"),
        (lambda: unpack_codes(jnp.zeros((2, 2), jnp.uint8), 4, 5), "5 codes of 4 bits take 3 bytes"),
    ],
)
def test_bad_input_says_what_is_allowed(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
def test_restore_inverts_prepare(bits):
    round_trip = jax.jit(lambda packed: restore(prepare(packed)))
    for seed, shape in enumerate(SMALL[bits % 2 :: 2]):
        packed = matrix(seed, shape, bits, signed=(seed + bits) % 2 == 0, affine=seed % 2 == 0)
        back = round_trip(packed)
        assert jax.tree.structure(back) == jax.tree.structure(packed)
        for expected, got in zip(jax.tree.leaves(packed), jax.tree.leaves(back), strict=True):
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected)
