"""Integer scales of groups: the sum over all of K stays in int32, and one float32 scale a channel follows it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit_kernels import (
    CpuConfig,
    StaticActivation,
    dequantize_matrix,
    explain,
    pack_matrix,
    prepare,
    quant_matmul,
    quantize_dynamic,
    restore,
    status,
)
from tests.kernels.test_fused import GRIDS, grid_codes, product

F = np.float32


def case(index):
    rng = np.random.default_rng(50 + index)
    rows, out = [1, 2, 3, 4, 5, 17, 40][index % 7], int(rng.integers(1, 50))
    length = int(rng.integers(2, 150))
    group = int(rng.integers(1, length + 1))
    bits = [4, 2, 3][index % 3]
    codes = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (length, out))
    factors = rng.integers(-15, 16, (-(-length // group), out)).astype(np.int8)
    scales = (rng.standard_t(3, (1, out)) * 0.01).astype(F)
    packed = pack_matrix(codes, scales, bits=bits, group=group, factors=factors)
    x = rng.standard_t(3, (rows, length)).astype(F)
    levels = codes * np.repeat(factors.astype(np.int64), group, axis=0)[:length]
    return packed, x, levels, scales


@pytest.mark.parametrize("index", range(14))
def test_products_are_exact_in_every_implementation(index):
    packed, x, levels, scales = case(index)
    grid = GRIDS[index % 3]
    steps = grid_codes(x, grid).astype(np.int64) - int(grid.zero)
    expected = product(product((steps @ levels).astype(F), scales[0]), grid.scale)
    codes, rows = (np.asarray(a) for a in quantize_dynamic(jnp.asarray(x)))
    dynamic = product(product((codes.astype(np.int64) @ levels).astype(F), scales[0]), rows[:, None])
    prepared = prepare(packed)
    for leaf, other in zip(jax.tree.leaves(restore(prepared)), jax.tree.leaves(packed), strict=True):
        np.testing.assert_array_equal(leaf, other)

    @jax.jit
    def everything(x, packed, prepared):
        isas = {isa: (prepared, {"implementation": "cpu", "config": CpuConfig(isa=isa)}) for isa in status().isas}
        names = {name: (packed, {"implementation": name}) for name in ("xla", "reference")}
        return {
            name: [quant_matmul(x, w, activation=activation, **options) for activation in (grid, "int8")]
            for name, (w, options) in (isas | names).items()
        }

    for name, got in everything(jnp.asarray(x), packed, prepared).items():
        np.testing.assert_array_equal(got[0], expected, err_msg=name)
        np.testing.assert_array_equal(got[1], dynamic, err_msg=name)


def test_float_activations_gradients_and_maps():
    packed, x, levels, scales = case(5)
    weights = levels * scales[0].astype(np.float64)
    np.testing.assert_allclose(dequantize_matrix(packed), weights, rtol=1e-6)
    for w in (packed, prepare(packed)):
        got = quant_matmul(jnp.asarray(x), w, implementation="cpu")
        np.testing.assert_allclose(got, x.astype(np.float64) @ weights, atol=1e-4 * np.abs(weights).max())
        slope = jax.grad(lambda x, w=w: quant_matmul(x, w, activation="int8").sum())(jnp.asarray(x))
        np.testing.assert_allclose(slope, np.tile(weights.sum(1), (len(x), 1)), rtol=1e-4, atol=1e-4)
    assert "writes the weight out" in explain(jnp.asarray(x), prepare(packed))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), prepare(packed))
    mapped = jax.vmap(lambda w: quant_matmul(jnp.asarray(x), w, activation=GRIDS[0]))(stacked)
    np.testing.assert_array_equal(mapped[1], quant_matmul(jnp.asarray(x), packed, activation=GRIDS[0]))


def test_what_does_not_fit_is_refused():
    codes, scales = np.full((4, 3), -8), np.ones((1, 3), F)
    with pytest.raises(ValueError, match="must fit int8, got"):
        pack_matrix(codes, scales, bits=4, group=2, factors=np.full((2, 3), 17, np.int8))
    with pytest.raises(ValueError, match="factors must be int8"):
        pack_matrix(codes, scales, bits=4, group=2, factors=np.ones((1, 3), np.int8))
    with pytest.raises(ValueError, match="signed symmetric codes of 2 to 4 bits"):
        pack_matrix(codes, scales, bits=8, group=2, factors=np.ones((2, 3), np.int8))
    many = np.ones((2057, 1), np.int8)
    long = pack_matrix(np.ones((65794, 1), int), np.ones((1, 1), F), bits=4, group=32, factors=many)
    with pytest.raises(ValueError, match="can sum above int32"):
        quant_matmul(jnp.ones((1, 65794)), long, activation="int8")
    bad = prepare(pack_matrix(codes, scales, bits=4, group=2, factors=np.ones((2, 3), np.int8)))
    with pytest.raises(ValueError, match=r"PreparedMatrix.scales must have shape \(1, 2, 16\)"):
        quant_matmul(jnp.ones((1, 4)), dataclasses.replace(bad, factors=None), activation=StaticActivation(1.0))
