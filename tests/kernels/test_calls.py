"""Calls that nobody should make, straight to the XLA handlers: refused with INVALID_ARGUMENT, never run, never a crash.

`kernels/cpp/tests/fuzz_test.cpp` does the same to the functions behind the handlers, 20,000 times under the address sanitizer.
"""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit_kernels import (
    StaticActivation,
    fused_conv,
    fused_matmul,
    pack_conv,
    pack_matrix,
    prepare,
    prepare_conv,
    prepare_steps,
    quant_conv,
    quant_matmul,
    status,
)

CALLS = int(os.environ.get("LOWBIT_FUZZ_CALLS", "60"))
GRID = StaticActivation(jnp.float32(0.05), jnp.int32(3))

# In a process of its own: a segmentation fault is then a status, and not the end of the suite.
ATTACK = """
    import sys
    import jax
    import numpy as np
    from lowbit_kernels.cpu import library

    library.status()
    rng = np.random.default_rng(int(sys.argv[2]))
    pick = lambda values: values[rng.integers(len(values))]
    ODD = (-(2**62), -(2**31), -1, 0, 1, 2, 3, 7, 15, 16, 17, 63, 65, 255, 256, 2**31 - 1, 2**31, 2**32 + 1, 2**61, 2**63 - 1)
    F, B, I8, U8, I16, I32 = "float32", "bfloat16", "int8", "uint8", "int16", "int32"

    table = (2, 3, 16)

    def matmul():  # (M, K) = (5, 24), N = 20, 4 bits, groups of 8, one step, codes emitted
        arrays = [[(5, 24), F], [(1,), F], [(1,), I32], [(2, 3, 64), U8], [table, F], [table, I32], [(1, 2, 16), F], [(1,), F],
                  [(1,), I32]]
        results = [[(5, 20), F], [(5, 20), I8], [(5,), F], [(4096,), U8]]
        integers = dict(given=101, activation=2, lo=-128, hi=127, bits=4, offset=8, length=24, group=8, x_columns=0,
                        y_columns=0, keeps_nan=1, next_lo=-128, next_hi=127, isa=-1, threads=0)
        return "LowbitMatmulCall", arrays, results, {"config": list(integers.values()), "kinds": [0]}

    def conv():  # NHWC (2, 5, 6, 4), HWIO (3, 3, 4, 20), stride 1, padding 1
        arrays = [[(2, 5, 6, 4), F], [(1,), F], [(1,), I32], [(2, 9, 64), U8], [(2, 16), F], [(2, 16), I32],
                  [(1, 2, 16), F], [(1,), F], [(1,), I32]]
        results = [[(2, 5, 6, 20), F], [(2, 5, 6, 20), I8], [(2, 5, 6), F], [(1 << 17,), U8]]
        integers = dict(given=15, groups=1, depthwise=0, lo=-128, hi=127, bits=8, offset=128, x_channels_first=0,
                        y_channels_first=0, keeps_nan=1, dynamic=0, next_lo=-128, next_hi=127, isa=-1, threads=0)
        geometry = [3, 3, 1, 1, 1, 1, 1, 1]  # kernel, stride, dilation, padding
        return "LowbitConvCall", arrays, results, {"config": [*integers.values(), *geometry], "kinds": [2]}

    def pair():  # x (2, 5, 3, 8), w (2, 7, 3, 8), batch axes 0 and 2
        arrays = [[(2, 5, 3, 8), F], [(2, 7, 3, 8), F], [(1,), F], [(1,), I32], [(1,), F], [(1,), I32]]
        integers = dict(given=3, length=8, x_outer=120, x_inner=8, x_row=24, w_outer=168, w_inner=8, w_column=24, w_step=1,
                        lo=-128, hi=127, w_lo=-128, w_hi=127, x_dynamic=0, w_dynamic=0, keeps_nan=1, isa=-1, threads=0)
        return "LowbitPairCall", arrays, [[(2, 3, 5, 7), F]], {"config": list(integers.values())}

    def placed():  # the matmul, its scale, blocks and scales in an arena: position, offset, type, rank and shape of each
        symbol, arrays, results, spans = matmul()
        spans["config"] += [1, 448, 0, 1, 1, 3, 0, 3, 3, 2, 3, 64, 4, 512, 0, 3, *table]
        return symbol, [arrays[0], arrays[2], *arrays[5:], [(1024,), U8]], results, spans

    def spoil(arrays, spans):
        kind = rng.integers(8)
        if kind < 4:
            each = pick(arrays)
            shape = list(each[0])
            at = rng.integers(len(shape))
            change = rng.integers(5)
            if change == 0:
                shape.insert(at, pick((0, 1, 2)))
            elif change == 1:
                shape.pop(at)
            else:
                shape[at] = max(0, pick((shape[at] - 1, shape[at] + 1, shape[at] // 2, 0, 1, 3, 64)))
            each[0] = tuple(int(n) for n in shape)
        elif kind == 4:
            pick(arrays)[1] = pick((F, B, I8, U8, I16, I32, "float16"))
        else:
            span = spans["kinds" if kind == 7 and "kinds" in spans else "config"]
            span[rng.integers(len(span))] = pick(ODD)
            if rng.integers(4) == 0:
                span.append(1)

    refused = ran = 0
    for call in range(int(sys.argv[1])):
        symbol, arrays, results, spans = (matmul, conv, placed, pair)[call % 4]()
        for _ in range(rng.integers(1, 4) if call > 3 else 0):  # the first four are right
            spoil(arrays + results, spans)
        values = [np.zeros(s, d) if d == I32 else rng.integers(0, 255, s).astype(d) for s, d in arrays]
        shapes = [jax.ShapeDtypeStruct(s, d) for s, d in results]
        attributes = {k: np.asarray(v, np.int64) for k, v in spans.items()}
        attributes |= {"numbers": np.zeros(len(spans["kinds"]), F)} if "kinds" in spans else {}
        try:
            jax.block_until_ready(jax.ffi.ffi_call(library.TARGETS[symbol], shapes)(*values, **attributes))
            ran += 1
        except Exception as error:
            assert "INVALID_ARGUMENT" in str(error), (call, arrays, results, spans, error)
            refused += 1
        if call == 3:
            assert ran == 4, "the calls that are right were refused"
    print(refused, ran)
"""


def test_handlers_refuse_what_does_not_fit(tmp_path):
    if status().reason:
        pytest.fail(status().reason)
    script = tmp_path / "attack.py"
    script.write_text("import ml_dtypes\n" + textwrap.dedent(ATTACK))
    done = subprocess.run([sys.executable, str(script), str(CALLS), "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    refused, ran = map(int, done.stdout.split())
    assert refused > CALLS // 2
    assert ran >= 4


@pytest.mark.parametrize("bits", [1, 3, 5, 7])
def test_a_codebook_of_odd_bits_reads_its_own_entries(bits):
    rng = np.random.default_rng(bits)
    book = np.sort(rng.standard_normal(1 << bits)).astype(np.float32)
    codes = rng.integers(0, 1 << bits, (19, 18))
    w = pack_matrix(codes, np.full((1, 18), 2, np.float32), bits=bits, signed=False, codebook=book)
    x = rng.standard_normal((3, 19)).astype(np.float32)
    expected = x.astype(np.float64) @ (book[codes].astype(np.float64) * 2)
    for packed in (w, prepare(w)):
        np.testing.assert_allclose(quant_matmul(jnp.asarray(x), packed, implementation="cpu"), expected, atol=1e-4)
    short = prepare(w)
    short = type(short)(**{**vars(short), "codebook": short.codebook[:-1]})
    with pytest.raises(ValueError, match="codebook must be float32"):
        quant_matmul(jnp.asarray(x), short, implementation="cpu")


@pytest.mark.parametrize("activation", [None, "int8", "fp8", GRID])
def test_no_rows_give_no_rows(activation):
    w = prepare(pack_matrix(np.ones((8, 5), int), np.ones((1, 5), np.float32), bits=4))
    for shape in ((0, 8), (0, 3, 8), (3, 0, 8)):
        x = jnp.zeros(shape, jnp.float32)
        assert quant_matmul(x, w, activation=activation, implementation="cpu").shape == (*shape[:-1], 5)
        mapped = jax.vmap(lambda x: quant_matmul(x, w, activation=activation, implementation="cpu"))(x)
        assert mapped.shape == (*shape[:-1], 5)


def test_empty_convolutions_and_fused_calls():
    w = pack_conv(np.ones((3, 3, 4, 5), int), np.ones(5, np.float32), bits=4)
    for packed, name in ((w, "reference"), (prepare_conv(w), "cpu")):
        for batch, height in ((0, 6), (2, 0)):
            x = jnp.zeros((batch, height, 6, 4), jnp.float32)
            y = quant_conv(x, packed, activation=GRID, padding=((1, 1), (1, 1)), implementation=name)
            assert y.shape == (batch, height, 6, 5)
            assert not y.any()
    x = jnp.zeros((0, 6, 6, 4), jnp.float32)
    got = fused_conv(x, prepare_conv(w), activation=GRID, emit=GRID)
    assert [a.shape for a in got] == [(0, 6, 6, 5), (0, 6, 6, 5), (0, 6, 6)]
    matrix = prepare(pack_matrix(np.ones((8, 5), int), np.ones((1, 5), np.float32), bits=4))
    steps = prepare_steps([("max", 0.0)], 5)
    got = fused_matmul(jnp.zeros((0, 8), jnp.float32), matrix, activation=GRID, steps=steps, emit=GRID)
    assert [a.shape for a in got] == [(0, 5), (0, 5), (0,)]
    nothing = prepare(pack_matrix(np.ones((8, 0), int), np.ones((1, 0), np.float32), bits=4))
    got = fused_matmul(jnp.zeros((3, 8), jnp.float32), nothing, activation=GRID, emit=GRID)
    assert got.value.shape == (3, 0)
    np.testing.assert_array_equal(got.marks, np.full(3, np.float32(0.05)))
