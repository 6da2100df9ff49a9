"""jit, vmap, grad and shard_map."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lowbit_kernels import (
    PackedMatrix,
    StaticActivation,
    dequantize_matrix,
    pack_matrix,
    prepare,
    quant_matmul,
    quantize_dynamic,
    restore,
    status,
)
from lowbit_kernels.shapes import SMALL, MatmulShape
from tests.kernels.cases import ACTIVATIONS, float_bound, inputs, matrix

NAMES = ["reference", "xla"] + ([] if status().reason else ["cpu"])
SHAPE = SMALL[2]


@pytest.mark.parametrize("name", NAMES)
def test_vmap_is_a_loop(name):
    xs = jnp.stack([inputs(s, SHAPE) for s in range(3)])
    packs = [matrix(s, SHAPE, 4, signed=True, affine=True) for s in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *packs)
    scales = jnp.asarray([0.01, 0.03, 0.07], jnp.float32)

    def call(x, packed, scale):
        return quant_matmul(x, packed, activation=StaticActivation(scale, jnp.int32(3)), implementation=name)

    jitted = jax.jit(call)
    both = jax.jit(jax.vmap(call))(xs, stacked, scales)
    only_x = jax.jit(jax.vmap(call, in_axes=(0, None, None)))(xs, packs[0], scales[0])
    only_w = jax.jit(jax.vmap(call, in_axes=(None, 0, None)))(xs[0], stacked, scales[1])
    nested = jax.jit(jax.vmap(jax.vmap(call, (None, 0, None)), (0, None, 0)))(xs, stacked, scales)
    for i in range(3):
        np.testing.assert_array_equal(both[i], jitted(xs[i], packs[i], scales[i]))
        np.testing.assert_array_equal(only_x[i], jitted(xs[i], packs[0], scales[0]))
        np.testing.assert_array_equal(only_w[i], jitted(xs[0], packs[i], scales[1]))
        for j in range(3):
            np.testing.assert_array_equal(nested[i, j], jitted(xs[i], packs[j], scales[i]))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_to_x_and_to_the_scales(name):
    packed = matrix(0, SHAPE, 4, signed=True, affine=True)
    x, cotangent = inputs(0, SHAPE), inputs(9, MatmulShape(SHAPE.rows, SHAPE.out, 1, 1))

    def loss(x, scales, activation):
        y = quant_matmul(x, dataclasses.replace(packed, scales=scales), activation=activation, implementation=name)
        return jnp.sum(y * cotangent)

    def plain(x, scales):
        return jnp.sum((x @ dequantize_matrix(dataclasses.replace(packed, scales=scales))) * cotangent)

    expected = jax.grad(plain, (0, 1))(x, packed.scales)
    got = jax.grad(functools.partial(loss, activation=None), (0, 1))(x, packed.scales)
    for e, g in zip(expected, got, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-4 * float(jnp.max(jnp.abs(e))))
    d_x, d_scales = jax.grad(functools.partial(loss, activation="int8"), (0, 1))(x, packed.scales)
    np.testing.assert_array_equal(d_x, got[0])
    codes, rows = quantize_dynamic(x)
    rounded = codes.astype(jnp.float32) * rows[:, None]
    want = jax.grad(plain, 1)(
        rounded, packed.scales
    )  # rounding passes straight through: the float gradient at its values
    np.testing.assert_allclose(d_scales, want, rtol=1e-4, atol=1e-4 * float(jnp.max(jnp.abs(want))))
    assert float(jnp.max(jnp.abs(want - expected[1]))) > 1e-4 * float(jnp.max(jnp.abs(want)))


def test_gradient_of_a_static_scale_and_of_prepared_weights():
    packed = matrix(0, SHAPE, 4, signed=True, affine=False)
    x = inputs(0, SHAPE)
    act = StaticActivation(jnp.float32(0.05), jnp.int32(0), -8, 7)

    def loss(x, w, act):
        return jnp.sum(quant_matmul(x, w, activation=act) ** 2)

    grad = jax.grad(loss, (0, 1, 2), allow_int=True)
    d_x, d_w, d_act = grad(x, packed, act)
    clipped = jnp.abs(x) > 0.05 * 9
    assert bool(jnp.all(d_x[clipped] == 0))
    assert bool(jnp.any(d_x != 0))
    assert float(d_act.scale) != 0
    _, d_prepared, _ = grad(x, prepare(packed), act)
    back = restore(dataclasses.replace(prepare(packed), scales=d_prepared.scales))
    np.testing.assert_array_equal(back.scales, d_w.scales)


@pytest.mark.parametrize("name", NAMES)
def test_shard_map_over_rows_channels_and_k(name):
    shape = MatmulShape(8, 64, 32, 16)
    packed, x = matrix(0, shape, 4, signed=True, affine=False), inputs(0, shape)
    act = ACTIVATIONS["signed"]
    whole = quant_matmul(x, packed, activation=act, implementation="reference")
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("a", "b"))

    def local(x, codes, scales):
        part = pack_matrix_like(codes, scales)
        return quant_matmul(x, part, activation=act, implementation=name)

    def pack_matrix_like(codes, scales):
        return PackedMatrix(codes=codes, scales=scales, bits=4, length=codes.shape[0] * 2, group=16)

    split = jax.jit(
        jax.shard_map(
            local, mesh=mesh, in_specs=(P("a"), P(None, "b"), P(None, "b")), out_specs=P("a", "b"), check_vma=False
        )
    )
    np.testing.assert_array_equal(split(x, packed.codes, packed.scales), whole)
    k_split = jax.jit(
        jax.shard_map(
            lambda x, c, s: jax.lax.psum(local(x, c, s), "b"),
            mesh=mesh, in_specs=(P(None, "b"), P("b"), P("b")), out_specs=P(), check_vma=False,
        )
    )  # fmt: skip
    bound = float_bound(x, dequantize_matrix(packed))
    assert (np.abs(k_split(x, packed.codes, packed.scales) - whole) <= bound).all()


def test_no_second_compilation():
    packed, x = matrix(0, SHAPE, 4, signed=True, affine=False), inputs(0, SHAPE)
    count = 0

    @jax.jit
    def call(x, packed):
        nonlocal count
        count += 1
        return quant_matmul(x, packed, activation="int8")

    call(x, packed)
    call(x + 1, jax.tree.map(lambda leaf: leaf, packed))
    assert count == 1


def test_works_with_eval_shape_and_tree_operations():
    packed = matrix(0, SHAPE, 4, signed=True, affine=True)
    assert jax.eval_shape(lambda x, p: quant_matmul(x, prepare(p)), inputs(0, SHAPE), packed).shape == (9, 33)
    sizes = jax.tree.map(lambda leaf: leaf.nbytes, packed)
    assert sizes.codes == 25 * 33
    assert pack_matrix(jnp.zeros((4, 4), int), jnp.ones((1, 4)), bits=4).zeros is None
