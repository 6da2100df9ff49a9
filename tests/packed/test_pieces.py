"""Large arrays a piece at a time: the same bits, and no memory beside the array, its codes and one piece."""

import inspect
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.packed import native, pieces
from tests.values import heavy_tailed


def same(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(np.asarray(x), np.asarray(y)) and x.dtype == y.dtype for x, y in pairs
    )


TEXTS = ("int4", "int4/g24/affine", "nf4/g16/bfloat16", "int3/g7", "int8/tensor", "nvfp4", "int16")
SHAPES = (((90, 64), 1), ((6, 33, 10), 1), ((512,), 0))


@pytest.mark.parametrize(
    ("shape", "axis", "text"),
    [
        *(((64, 90), 0, text) for text in TEXTS),
        *((*shape, text) for shape in SHAPES for text in ("int4/g24/affine", "int3/g7", "int8/tensor")),
    ],
)
def test_pieces_are_the_whole(monkeypatch, shape, axis, text):
    x = heavy_tailed(0, *shape)
    whole = lb.quantize_array(x, text, axis=axis)
    codes = lb.quantize_array(x, text, axis=axis, packed=False)
    monkeypatch.setattr(pieces, "ELEMENTS", 700)
    made = []
    monkeypatch.setattr("lowbit.packed.arrays.joined", lambda *given: made.append(given[0]) or pieces.joined(*given))
    assert same(lb.quantize_array(x, text, axis=axis), whole)
    assert same(inspect.unwrap(lb.quantize_array)(np.asarray(x), text, axis=axis), whole)
    assert same(lb.quantize_array(x, text, axis=axis, packed=False), codes)
    shares = text in ("int8/tensor", "nvfp4") or len(shape) == 1
    assert [n > 1 for n in made] == ([] if shares else [True] * 3)
    assert same(jax.jit(lambda x: lb.quantize_array(x, text, axis=axis))(x), whole)


@pytest.mark.parametrize("places", [[(5, 89)], [(63, 0), (2, 80)], [(1, 2), (1, 3), (40, 40)]])
def test_what_is_not_finite_is_found_in_every_piece(monkeypatch, places):
    x = np.array(heavy_tailed(0, 64, 90))
    for i, place in enumerate(places):
        x[place] = (np.nan, -np.inf, np.inf)[i]
    monkeypatch.setattr(pieces, "ELEMENTS", 700)
    said = rf"{len(places)} of 5760 values, first at {re.escape(str(min(places)))}"
    for given in (x, jnp.asarray(x)):
        with pytest.raises(ValueError, match=said):
            lb.quantize_array(given, "int4")
        with pytest.raises(ValueError, match=said):
            jax.jit(lambda given=given: lb.quantize_array(given, "int4").codes)()


def dense(params, x):
    return x @ params["w"]


def transposed(params, x):
    return x @ params["w"].T


def heads(params, x):
    return jnp.einsum("bk,khd->bhd", x, params["w"])


def experts(params, x):
    return jnp.einsum("bk,ekd->ebd", x, params["w"])


def layers(params, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["w"])[0]


MODELS = {dense: (64, 96), transposed: (96, 64), heads: (64, 12, 8), experts: (6, 64, 16), layers: (6, 64, 64)}
"""And the shape of its weight, which is cut into six pieces."""


@pytest.mark.parametrize(
    ("fn", "rule"),
    [
        *((dense, rule) for rule in ("w4/g32", "w4,a8", "w8/tensor,a8", "w4/g16/affine", "w3", "wnf4/g16", "wnvfp4", "w4/g8/dq")),
        *((transposed, rule) for rule in ("w4/g32", "w3")),
        *((fn, "w4/g16/affine") for fn in (heads, experts, layers)),
        (layers, "wnvfp4"),
    ],
)  # fmt: skip
def test_prepared_pieces_are_the_whole(monkeypatch, fn, rule):
    params, x = {"w": heavy_tailed(0, *MODELS[fn])}, heavy_tailed(1, 3, 64)
    plan = lb.bind(fn, {"**": rule}, params, x)
    qparams = lb.pack(plan, params, lb.init(fn, plan, params, x))
    whole = lb.prepare(plan, qparams)
    assert isinstance(whole.params["w"], native.NativeTensor)
    monkeypatch.setattr(pieces, "ELEMENTS", 4100 if fn is layers else 1100)
    made, joined = [], pieces.joined
    monkeypatch.setattr(pieces, "joined", lambda *given, **how: made.append(given[0]) or joined(*given, **how))
    assert same(lb.prepare(plan, qparams), whole)
    assert made == [6]


@pytest.mark.parametrize(
    ("fn", "rule", "is_cut"),
    [
        *((dense, rule, True) for rule in ("w4/g32", "w4,a8", "w4/g16/affine", "w3", "wnf4/g16", "w16")),
        *((dense, rule, False) for rule in ("w8/tensor,a8", "wnvfp4", "w4/g8/dq", lb.lsq("w4"))),
        *((transposed, rule, True) for rule in ("w4/g32", "w3")),
        *((fn, "w4/g16/affine", True) for fn in (heads, experts, layers)),
    ],
)
def test_weights_by_themselves_are_those_of_one_program(monkeypatch, fn, rule, is_cut):
    params, x = {"w": heavy_tailed(0, *MODELS[fn])}, heavy_tailed(1, 3, 64)
    plan = lb.bind(fn, {"**": rule}, params, x)
    key = next(site.key for site in plan.rows[0].sites if site.is_weight)
    codes = {key: lb.pack(plan, params, lb.init(fn, plan, params, x)).weights()[key].unpacked_codes()[..., ::-1]}

    def made():
        qstate = lb.init(fn, plan, params, x)
        return qstate, lb.pack(plan, params, qstate), lb.pack(plan, params, qstate, codes)

    whole, seen, joined = made(), [], pieces.joined
    monkeypatch.setattr(pieces, "ELEMENTS", 4100 if fn is layers else 1100)
    monkeypatch.setattr(pieces, "joined", lambda *given, **how: seen.append(given[0]) or joined(*given, **how))
    assert same(made(), whole)
    assert (len(seen) == 3) == is_cut
    assert all(count > 1 for count in seen)


MEMORY = """
    import jax, jax.numpy as jnp, numpy as np
    import lowbit as lb
    from lowbit.packed import pieces
    pieces.ELEMENTS = 1 << 20

    def high():
        return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

    def size(tree):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    def beside(make, given, old=()):  # bytes that were held at most, of what was made, of what it was made from
        made = jax.block_until_ready(make())  # compiled, and whatever else happens once
        del made
        open("/proc/self/clear_refs", "w").write("5")
        before = high()
        made = jax.block_until_ready(make())
        print(high() - before, size(made) - size(old), size(given))
        return made

    def network(params, x):
        return jax.lax.scan(lambda x, w: (jnp.maximum(x @ w, 0.0), None), x @ params["first"], params["rest"])[0]

    def all_of(count):
        draw = np.random.default_rng(0).standard_normal
        array = draw((4097, count // 4096), np.float32)  # groups do not line up
        beside(lambda: lb.quantize_array(array, "int4/g32/affine", axis=0), array)
        width = int((count // 8) ** 0.5)
        params = {"first": draw((width, width), np.float32), "rest": draw((7, width, width), np.float32)}
        params, x = jax.tree.map(jnp.asarray, params), jnp.ones((1, width))
        plan = lb.bind(network, {"**": "w4/g32"}, params, x)
        qstate = beside(lambda: lb.init(network, plan, params, x), params)
        qparams = beside(lambda: lb.pack(plan, params, qstate), params)
        beside(lambda: lb.prepare(plan, qparams), params, qparams)

    for count in (1 << 23, 1 << 25):
        all_of(count)
"""


def test_memory_is_the_array_and_its_codes():
    """The law: what is held beside the array is its codes and a constant. A float copy of the larger array takes 134 MB."""
    found = subprocess.run([sys.executable, "-c", textwrap.dedent(MEMORY)], capture_output=True, text=True, check=True)
    rows = [tuple(map(int, line.split())) for line in found.stdout.splitlines()]
    for extra, codes, array in rows:
        assert extra < 1.2 * codes + 48 * 2**20, (extra, codes, array)
    assert rows[-1][2] > 1.2 * rows[-1][1] + 96 * 2**20  # a copy would be seen


def test_joined_takes_trees():
    made = pieces.joined(3, lambda i: {"a": jnp.full((2, 2), i), "b": jnp.int32(7)}, 1)
    assert made["a"].tolist() == [[0, 0, 1, 1, 2, 2]] * 2
    assert int(made["b"]) == 7
