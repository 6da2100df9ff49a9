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


@pytest.mark.parametrize(
    "text", ["int4", "int4/g24/affine", "nf4/g16/bfloat16", "int3/g7", "int8/tensor", "nvfp4", "int16"]
)
@pytest.mark.parametrize(("shape", "axis"), [((64, 90), 0), ((90, 64), 1), ((6, 33, 10), 1), ((512,), 0)])
def test_pieces_are_the_whole(monkeypatch, text, shape, axis):
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


@pytest.mark.parametrize("rule", ["w4/g32", "w4,a8", "w8/tensor,a8", "w4/g16/affine", "w3"])
@pytest.mark.parametrize("is_last", [False, True])
def test_prepared_pieces_are_the_whole(monkeypatch, rule, is_last):
    params, x = {"w": heavy_tailed(0, *((96, 64) if is_last else (64, 96)))}, heavy_tailed(1, 3, 64)

    def fn(params, x):
        return x @ (params["w"].T if is_last else params["w"])

    plan = lb.bind(fn, {"**": rule}, params, x)
    qparams = lb.pack(plan, params, lb.init(fn, plan, params, x))
    whole = lb.prepare(plan, qparams)
    assert isinstance(whole.params["w"], native.NativeTensor)
    monkeypatch.setattr(pieces, "ELEMENTS", 1100)
    made = []
    monkeypatch.setattr(native, "joined", lambda *given: made.append(given[0]) or pieces.joined(*given))
    native._builder.cache_clear()
    assert same(lb.prepare(plan, qparams), whole)
    assert made == [6]


MEMORY = """
    import sys, time
    import jax, numpy as np
    import lowbit as lb
    from lowbit.packed import pieces
    pieces.ELEMENTS = 1 << 20

    def high():
        return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

    def quantized(count):
        x = np.random.default_rng(0).standard_normal((4097, count // 4096), np.float32)  # groups do not line up
        open("/proc/self/clear_refs", "w").write("5")
        before = high()
        q = jax.block_until_ready(lb.quantize_array(x, "int4/g32/affine", axis=0))
        return high() - before, q.nbytes, x.nbytes

    quantized(1 << 22)  # compiled, and whatever else happens once
    for count in (1 << 23, 1 << 25):
        quantized(count)
        print(*quantized(count))
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
