"""The Hopper kernel in the GPU interpreter, which raises on a data race: equal to the reference, integers to the last bit.

On jax older than 0.11 there is no such kernel; there each case asserts that the call is refused and says so.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit_kernels import StaticActivation, explain, quant_matmul, quant_sums, quantize_static, reference
from lowbit_kernels.aot import cuda, report
from lowbit_kernels.api import matmul_spec
from lowbit_kernels.bench import gpu as bench
from lowbit_kernels.pallas import gpu
from lowbit_kernels.pallas.gpu import GpuConfig
from lowbit_kernels.shapes import MatmulShape
from tests.kernels.cases import ACTIVATIONS, float_bound, inputs, matrix

HAS_KERNEL = jax.__version_info__[:2] >= gpu.FIRST_JAX
CONFIG = GpuConfig(interpret=True)


class Case(NamedTuple):
    shape: MatmulShape
    bits: int
    activation: str | None
    x_dtype: str
    config: GpuConfig = CONFIG


CASES = {
    "w4a16": Case(MatmulShape(5, 256, 128, 128), 4, None, "bfloat16"),
    "w4a16, one row": Case(MatmulShape(1, 192, 64, 64), 4, None, "float32"),
    "w4a16, split": Case(MatmulShape(2, 256, 64, 64), 4, None, "bfloat16", dataclasses.replace(CONFIG, split=2, length=64)),
    "w8a16": Case(MatmulShape(9, 128, 64, 64), 8, None, "float16"),
    "w8a16, per channel": Case(MatmulShape(3, 256, 64, 256), 8, None, "bfloat16"),
    "w4a8": Case(MatmulShape(17, 256, 64, 32), 4, "int8", "float32"),
    "w8a8": Case(MatmulShape(8, 256, 64, 256), 8, "int8", "bfloat16"),
    "w4a-fp8": Case(MatmulShape(3, 128, 64, 64), 4, "fp8", "float32"),
}  # fmt: skip


@functools.partial(jax.jit, static_argnames=("activation", "config"))
def run(x, packed, activation, config):
    if activation == "fp8":  # not an activation of `quant_matmul`
        return gpu.matmul(x, gpu.prepare(packed), activation=activation, config=config)
    return quant_matmul(
        x, packed, activation=activation, out_dtype="float32", implementation="mosaic_gpu", config=config
    )


@pytest.mark.parametrize("name", list(CASES))
def test_the_kernel_is_the_reference(name):
    case = CASES[name]
    packed = matrix(len(name), case.shape, case.bits, signed=True, affine=False)
    x = inputs(len(name), case.shape, case.x_dtype)
    if not HAS_KERNEL:
        with pytest.raises(NotImplementedError, match=r"needs jax 0\.11"):
            quant_matmul(x, packed, implementation="mosaic_gpu", config=case.config)
        return
    got = np.asarray(run(x, packed, case.activation, case.config))
    if case.activation == "int8":
        want = quant_matmul(x, packed, activation="int8", implementation="reference", out_dtype="float32")
        np.testing.assert_array_equal(got, want)
        return
    if case.activation == "fp8":
        x, scale = gpu.quantize_fp8(x)
        got = got / np.asarray(scale)[:, None]
    x = np.asarray(x.astype(jnp.float32))
    weights = np.asarray(reference.dequantize_matrix(packed))
    exact = x.astype(np.float64) @ weights.astype(np.float64)
    # A row scaled and divided again is two more roundings of the result.
    assert (np.abs(got - exact) <= float_bound(x, weights) + 2 * np.finfo(np.float32).eps * np.abs(exact)).all()
    assert np.abs(got - exact).max() > 0  # the data fills float32: a sum in float64 or of integers would be exact


@pytest.mark.parametrize(
    ("shape", "bits", "kind"),
    [(MatmulShape(5, 128, 64, 128), 8, "signed"), (MatmulShape(3, 128, 64, 64), 4, "unsigned")],
)
def test_static_inputs_and_sums_have_their_zero_point_taken_out(shape, bits, kind):
    packed, x = matrix(bits, shape, bits, signed=True, affine=False), inputs(bits, shape)
    if not HAS_KERNEL:
        assert "needs jax 0.11" in str(gpu.supports(spec(platform="cuda-interpreter", activation="static")))
        return
    grid = ACTIVATIONS[kind]
    want = quant_matmul(x, packed, activation=grid, implementation="reference")
    for weight in (packed, gpu.prepare(packed)):
        got = jax.jit(lambda x, w: quant_matmul(x, w, activation=grid, platform="cuda-interpreter"))(x, weight)
        np.testing.assert_array_equal(got, want)
    if packed.groups == 1:
        codes = quantize_static(x, grid)
        got = jax.jit(lambda x, w: quant_sums(x, w, zero=9, platform="cuda-interpreter"))(codes, packed)
        levels = np.asarray(reference.levels_matrix(packed), np.int64)
        np.testing.assert_array_equal(got, (np.asarray(codes, np.int64) - 9) @ levels)


def test_vmap_over_stacked_weights():
    if not HAS_KERNEL:
        assert "needs jax 0.11" in str(gpu.supports(spec(platform="interpret")))
        return
    shape = MatmulShape(2, 128, 64, 64)
    packed = [matrix(seed, shape, 3, signed=True, affine=False) for seed in range(2)]
    x = jnp.stack([inputs(seed, shape) for seed in range(2)])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *packed)
    got = jax.vmap(lambda x, w: run(x, w, "int8", CONFIG))(x, stacked)
    for index in range(2):
        want = quant_matmul(x[index], packed[index], activation="int8", implementation="reference")
        np.testing.assert_array_equal(got[index], want)


def test_the_interpreter_finds_a_race():
    """The race detector that the tests above rely on: two blocks that write the same place."""
    if not HAS_KERNEL:
        assert "needs jax 0.11" in str(gpu.supports(spec(platform="interpret")))
        return
    from jax.experimental.pallas import mosaic_gpu as plgpu
    from jax.sharding import use_abstract_mesh

    from lowbit_kernels.pallas import gpu_kernel

    def body(x, out, smem, barrier):
        plgpu.copy_gmem_to_smem(x, smem, barrier)
        out[...] = smem[...]  # without waiting for the copy
        plgpu.barrier_wait(barrier)

    params = plgpu.InterpretGPUParams(detect_races=True)
    with use_abstract_mesh(gpu_kernel.abstract_hopper()), plgpu.force_gpu_interpret_mode(params):
        kernel = plgpu.kernel(
            body,
            out_type=jax.ShapeDtypeStruct((128,), jnp.float32),
            scratch_types=[plgpu.SMEM((128,), jnp.float32), plgpu.Barrier()],
        )
        with pytest.raises(Exception, match=r"[Rr]ace"):
            jax.block_until_ready(jax.jit(kernel)(jnp.ones(128)))


def spec(**changes):
    packed = matrix(0, MatmulShape(4, 256, 64, 128), 4, signed=True, affine=False)
    return dataclasses.replace(matmul_spec(jnp.ones((4, 256)), packed, None, None), **changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"platform": "cpu"}, "not on cpu"),
        ({"affine": True}, "without zero points"),
        ({"signed": False}, "reads signed codes"),
        ({"codebook": 16}, "codebook"),
        ({"out": 72}, "N = 72"),
        ({"rows": 0}, "M = 0"),
        ({"length": 96, "groups": 3, "group": 32}, "K = 96, group 32"),
        ({"length": 288, "groups": 3, "group": 128}, "K = 288, group 128"),
        ({"group": 16, "groups": 16}, "group 16"),
    ],
)
def test_refusals_have_a_reason(changes, reason):
    found = gpu.supports(spec(**{"platform": "interpret", **changes}))
    assert found is not None
    assert (reason if HAS_KERNEL or "cpu" in reason else f"this is jax {jax.__version__}") in found


def test_a_cpu_never_picks_it_and_says_why():
    packed, x = matrix(0, MatmulShape(4, 256, 64, 128), 4, signed=True, affine=False), jnp.ones((4, 256))
    text = explain(x, packed)
    assert "mosaic_gpu cannot run runs on Hopper GPUs, not on cpu" in text
    with pytest.raises(NotImplementedError, match="'mosaic_gpu' cannot run this matmul: runs on Hopper GPUs"):
        quant_matmul(x, packed, implementation="mosaic_gpu")


def test_bad_options_raise():
    packed = matrix(0, MatmulShape(4, 256, 64, 128), 4, signed=True, affine=False)
    prepared, x = gpu.prepare(packed), jnp.ones((4, 256))
    calls = [
        (lambda: gpu.matmul(x[:, :64], prepared), "K = 256"),
        (lambda: gpu.matmul(x, prepared, activation="int4"), '"int8" or "fp8"'),
        (
            lambda: gpu.matmul(x, gpu.prepare(matrix(0, MatmulShape(1, 64, 64, 64), 8, signed=True, affine=False))),
            "K = 64",
        ),
        (lambda: gpu.run(x, packed, None, "float32", StaticActivation(1.0)), "takes config=GpuConfig"),
        (lambda: gpu.prepare(dataclasses.replace(packed, signed=False)), "signed codes"),
    ]
    if HAS_KERNEL:
        calls += [
            (lambda: gpu.matmul(x, prepared, config=GpuConfig(rows=12)), "multiple of 8"),
            (lambda: gpu.matmul(x, prepared, config=GpuConfig(length=64)), r"one of \(256, 128\)"),
            (lambda: gpu.matmul(x, prepared, activation="int8", config=GpuConfig(split=2)), "one order of sums"),
        ]
    for call, match in calls:
        with pytest.raises(ValueError, match=match):
            call()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_prepare_keeps_every_code(bits):
    packed = matrix(bits, MatmulShape(1, 64, 64, 32), bits, signed=True, affine=False)
    prepared = gpu.prepare(packed)
    assert prepared.weight.dtype == (jnp.int8 if bits == 8 else jnp.int4)
    np.testing.assert_array_equal(prepared.weight.astype(jnp.int32).T, reference.levels_matrix(packed))


def test_a_row_that_is_not_finite_stays_alone():
    x = inputs(0, MatmulShape(4, 64, 1, 1))
    codes, scale = gpu.quantize_fp8(x.at[0, 3].set(jnp.nan).at[1, 3].set(jnp.inf).at[2].set(0.0))
    assert np.isnan(np.asarray(scale[:2])).all()
    assert float(scale[2]) == 1.0
    assert np.isfinite(np.asarray(codes.astype(jnp.float32))).all()
    terms = gpu._terms(x.at[0, 3].set(jnp.inf)).astype(jnp.float32).reshape(3, 4, 64)
    np.testing.assert_array_equal(terms[:, 1:].sum(0), x[1:])  # float32 is three bfloat16s
    assert float(terms[:, 0, 3].sum()) == float("inf")


def test_every_golden_report_has_what_the_kernel_promises():
    _, golden = report.read_golden(cuda.BACKEND)
    for case in cuda._CASES:
        one = golden["sm_90a"][case.name]
        assert one.ok, case.name
        assert not cuda.complaint(case, one.metrics), case.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wgmma": ["f32.f16.f16"]}, "wgmma is"),
        ({"spill_bytes": 4}, "4 bytes are spilled"),
        ({"smem_bytes": 232449}, "232449 bytes of shared memory"),
        ({"fma": 1}, "1 fma instructions"),
    ],
)
def test_a_broken_promise_is_a_failure_whatever_golden_says(change, message):
    case = next(each for each in cuda._CASES if each.activation == "int8")
    good = {"registers": 80, "spill_bytes": 0, "smem_bytes": 1024, "wgmma": [case.wgmma], "fma": 0, "temp_bytes": 0}
    assert not cuda.complaint(case, good)
    assert message in cuda.complaint(case, {**good, **change})
    plain = next(each for each in cuda._CASES if not each.wgmma)
    assert "copies the weight" in cuda.complaint(plain, {"temp_bytes": 1 << 24})


def test_a_dump_is_read(tmp_path):
    wgmma = "wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 {%r1}, %rd1, %rd2, p;"
    (tmp_path / "kernel_0.ptx").write_text(
        f"{wgmma}\n{wgmma}\nmul.f32 %f1, %f2, %f3;\nfma.rn.f32 %f1, %f2, %f3, %f4;\n"
    )
    (tmp_path / "kernel_0.ptxas").write_text("4 bytes spill stores, 8 bytes spill loads\nptxas info: Used 50 registers")
    (tmp_path / "kernel_0.resources.txt").write_text("Resources(smem_scratch_bytes=66560, tmem_scratch_cols=0)")
    assert cuda.read_dump(tmp_path) == {
        "registers": 50,
        "spill_bytes": 12,
        "smem_bytes": 66560,
        "wgmma": ["s32.s8.s8"],
        "fma": 1,
    }


def test_the_benchmark_refuses_without_a_gpu(capsys):
    assert bench.main([]) == 2
    assert "nothing to measure: the kernel runs on Hopper GPUs" in capsys.readouterr().err
    for arguments, message in ((["--megabytes", "50"], "must be 200 or more"), (["--rows", "a"], "got 'a'")):
        with pytest.raises(SystemExit):
            bench.main(arguments)
        assert message in capsys.readouterr().err


def test_the_benchmark_checks_and_compares_the_same_product():
    """Its data, small integers and powers of two, leaves nothing to round: a wrong product, group or row shows."""
    if not HAS_KERNEL:
        assert "needs jax 0.11" in str(gpu.supports(spec(platform="interpret")))
        return
    lines = bench.exactness(CONFIG, ((9, 4, None), (2, 4, "fp8")))
    assert [line["equal"] for line in lines] == [True] * 2
    x, (weight,) = bench.operands(3, 256, 64, 1)
    ours = np.asarray(jax.jit(functools.partial(gpu.matmul, config=CONFIG))(x, weight))
    rows, peer = np.asarray(x, np.float64), np.asarray(bench.dequantized(weight).T, np.float64)
    # The peer rounds every scaled weight to bfloat16: half an ulp, 2**-9 of it. 1.01: the float32 sums.
    assert (np.abs(ours - rows @ peer) <= 1.01 * 2.0**-9 * (np.abs(rows) @ np.abs(peer))).all()
