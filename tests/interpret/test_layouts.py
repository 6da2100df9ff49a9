"""Every layout of a dot: batch axes, several contracted and free axes, axes of length 1, the weight on either side, moved.

The right value is an einsum in float64 of the operands as they are served: the weight as packed, the input on its grid.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.packed import native
from lowbit.packed.bits import unpack

RULES = (
    "w8,a8",
    "w4",
    "w4/g4,a8/dynamic",
    "w4/g4,a8",
    "w3/affine,a8",
    "w8/tensor,a8",
    "w8,aint16",
    "w2/g8,a8/dynamic/sym",
)
NATIVE = tuple(rule for rule in RULES if rule != "w8,aint16")


def _draw(rng, *, most=3):
    """``(subscripts, lengths)`` of a dot: letters a.. batch, i.. input alone, k.. contracted, n.. weight alone; shuffled."""
    counts = {
        "a": rng.integers(0, 3),
        "i": rng.integers(0, most),
        "k": rng.integers(1, most),
        "n": rng.integers(0, most),
    }
    letters = {kind: [chr(ord(kind) + j) for j in range(count)] for kind, count in counts.items()}
    lengths = {x: int(rng.choice([1, 2, 3, 5, 8])) for each in letters.values() for x in each}
    data, weight = (list(letters["a"] + letters[own] + letters["k"]) for own in "in")
    rng.shuffle(data)
    rng.shuffle(weight)
    return "".join(data), "".join(weight), lengths


def _dot(data, weight, *, weight_left, rng):
    """A function of ``(p, x)``: dot_general itself, its pairs in random order; and the letters of its result."""
    pairs = {kind: [x for x in data if x in weight and (x in "ab") == (kind == "batch")] for kind in ("batch", "sum")}
    for each in pairs.values():
        rng.shuffle(each)
    sides = (weight, data) if weight_left else (data, weight)
    numbers = tuple(tuple(tuple(side.index(x) for x in pairs[kind]) for side in sides) for kind in ("sum", "batch"))
    out = "".join(pairs["batch"]) + "".join(
        x for side in sides for x in side if x not in (*pairs["batch"], *pairs["sum"])
    )

    def fn(p, x):
        return lax.dot_general(*((p["w"], x) if weight_left else (x, p["w"])), numbers)

    return fn, out


def _moves(rng, shape):
    """A movement of a weight to ``shape`` that permutes, merges, spreads, turns or cuts: the leaf's shape, and the way back."""
    order = rng.permutation(len(shape))
    kind = rng.integers(5)
    if kind == 0:
        return tuple(shape[i] for i in order), lambda w: jnp.transpose(w, np.argsort(order))
    if kind == 1:
        return (int(np.prod(shape)),) if len(shape) < 2 else (shape[0] * shape[1], *shape[2:]), lambda w: w.reshape(
            shape
        )
    if kind == 2:
        return (1, *shape), lambda w: jax.checkpoint(lambda w: jnp.squeeze(w, 0))(w)
    if kind == 3:
        return shape, lambda w: jnp.flip(w, len(shape) - 1)
    return (shape[0] + 1, *shape[1:]), lambda w: jax.jit(lambda w: w[1:])(w)


def _served(plan, qparams, x):
    """The input as it is served, in float64: on its grid, computed here."""
    (row,) = plan.rows
    site = next(site for site in row.sites if not site.is_weight)
    if site.spec is None:
        return np.asarray(x, np.float64), 0.0
    x64 = np.asarray(x, np.float32)
    low, high = site.spec.format.low, site.spec.format.high
    if site.spec.dynamic:
        axes = tuple(site.operand.contract)
        reach = np.max(np.abs(x64), axis=axes, keepdims=True)
        if site.spec.symmetric:
            scale, zero = np.where(reach == 0, np.float32(1), reach * np.float32(1 / high)), np.float32(0)
        else:
            bottom, top = (f(x64, axis=axes, keepdims=True) for f in (np.min, np.max))
            bottom, top = np.minimum(bottom, 0), np.maximum(top, 0)
            scale = (top - bottom) * np.float32(1 / (high - low))
            scale = np.where(scale == 0, np.float32(1), scale)
            zero = np.clip(np.round(low - bottom * (np.float32(1) / scale)), low, high)
    else:
        state = qparams.sites[row.path][site.role]
        scale, zero = np.asarray(state["scale"]), np.asarray(state.get("zero", np.float32(0)), np.float32)
    codes = np.clip(np.round(x64 * (np.float32(1) / scale)), low - zero, high - zero)
    return codes.astype(np.float64) * scale.astype(np.float64), codes


def _check(fn, params, x, subscripts, rule, *, value=lambda w: w):
    plan = lb.bind(fn, {"**": rule}, params, x)
    qstate = lb.init(fn, plan, params, x)
    qparams = lb.pack(plan, params, qstate)
    weight = np.asarray(value(unpack(qparams.params["w"]).dequantize()), np.float64)
    served, _ = _served(plan, qparams, x)
    want = np.einsum(subscripts, served, weight)
    size = np.einsum(subscripts, np.abs(served), np.abs(weight))
    simulated = lb.simulate(fn, plan)(params, qstate, x)
    assert simulated.shape == want.shape
    # Integer sums are exact: what is left is a product by two scales, and a sum of groups, each rounded.
    bound = 2.0**-24 * (64 if plan.rows[0].is_integer else 400) * np.maximum(size, 1e-30)
    assert (np.abs(np.asarray(simulated, np.float64) - want) <= bound).all()
    for implementation in (None, "carried", "reference"):
        y = lb.execute(fn, plan, implementation=implementation)(qparams, x)
        assert y.shape == want.shape, implementation
        if plan.rows[0].is_integer:
            np.testing.assert_array_equal(y, simulated)
        assert (np.abs(np.asarray(y, np.float64) - want) <= bound).all()
    return lb.explain(fn, plan, qparams, x)


def _case(seed):
    rng = np.random.default_rng(seed)
    data, weight, lengths = _draw(rng)
    fn, out = _dot(data, weight, weight_left=bool(rng.integers(2)), rng=rng)
    x = jnp.asarray(rng.normal(size=[lengths[c] for c in data]), jnp.float32)
    return rng, fn, f"{data},{weight}->{out}", x, tuple(lengths[c] for c in weight)


@pytest.mark.parametrize("seed", range(8))
def test_any_layout_is_its_einsum(seed):
    rng, fn, subscripts, x, shape = _case(seed)
    params = {"w": jnp.asarray(rng.normal(size=shape), jnp.float32)}
    rule = RULES[seed % len(RULES)]
    told = _check(fn, params, x, subscripts, rule)
    if native.status() is None:
        assert ("cpu" in told) == (rule in NATIVE and "groups of one size" not in told), told


@pytest.mark.parametrize("seed", range(20, 25))
def test_a_weight_moved_into_any_layout_is_its_einsum(seed):
    rng, fn, subscripts, x, shape = _case(seed)
    leaf, value = _moves(rng, shape)
    params = {"w": jnp.asarray(rng.normal(size=leaf), jnp.float32)}
    rule = ("w8,a8", "w4", "w8/tensor,a8/dynamic")[seed % 3]
    _check(lambda p, x: fn({"w": value(p["w"])}, x), params, x, subscripts, rule, value=value)
