"""How many test vectors there are, what they are, and how many copies of its program a bundle holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.export import reading, runners, vectors, verify
from lowbit.export.runners import Ran

from . import cases


def _one_image(targets=("xla", "iree"), **options):
    params = {"k": cases.normal(4, 3, 3, 4, 8), "d": cases.normal(5, 128, 10)}
    x = cases.normal(6, 1, 8, 8, 4)
    plan, qparams = cases.packed(cases.convolution, {"**": "w8,a8"}, params, x)
    folder = cases.folder(f"one_{'_'.join(targets)}_{len(options)}")
    return plan, qparams, x, lb.export(cases.convolution, plan, qparams, (x,), folder, targets=targets, **options)


def test_a_batch_of_one_is_tested_on_64_vectors(monkeypatch):
    plan, qparams, x, bundle = _one_image()
    found = reading.read_bundle(bundle.path).cases()
    assert len(found) == bundle.manifest["vectors"] == 64
    np.testing.assert_array_equal(found[0][0][0], x)
    assert len({inputs[0].tobytes() for inputs, _ in found}) == 64
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    run = lb.execute(cases.convolution, plan)
    for inputs, outputs in found:  # what lowbit serves for each, and nothing outside the range that was calibrated
        assert low <= inputs[0].min() <= inputs[0].max() <= high
        np.testing.assert_array_equal(outputs[0], run(qparams, inputs[0]))
    assert [row.status for row in verify.verify(bundle.path, ["xla", "iree"]).rows] == ["exact", "exact"]

    outputs = [[y.copy() for y in case[1]] for case in found]
    outputs[41][0][0, 3] += 1.0  # one of 64 images, one of ten results
    monkeypatch.setitem(runners.runners(), "iree", lambda bundle, inputs: Ran(outputs))
    (row,) = verify.verify(bundle.path, ["iree"]).rows
    assert (row.status, row.share) == ("differs", 1 / 640)
    monkeypatch.setitem(runners.runners(), "iree", lambda bundle, inputs: Ran(outputs[:8]))
    (row,) = verify.verify(bundle.path, ["iree"]).rows
    assert (row.status, row.detail) == ("exact", "8 of 64 test vectors")
    outputs[5] = [np.zeros((1, 9), np.float32)]
    (row,) = verify.verify(bundle.path, ["iree"]).rows
    assert (row.status, "wanted float32[1, 10]" in row.detail) == ("differs", True)


def test_made_vectors_stay_what_the_example_is():
    class Call:
        leaves = (
            jnp.array([[3, 1, 3, 7]]),
            jnp.array([[0.0, -jnp.inf]]),
            jax.ShapeDtypeStruct((1, 2), jnp.bfloat16),
            jnp.array([[True, False]]),
        )

        @staticmethod
        def vectors():
            return [*Call.leaves[:2], jnp.zeros((1, 2), jnp.bfloat16), Call.leaves[3]]

    made = vectors.of_call(Call(), ())  # pyright: ignore[reportArgumentType]
    assert len(made) == 64
    for ids, mask, x, flag in made:
        assert sorted(ids[0].tolist()) == [1, 3, 3, 7]
        np.testing.assert_array_equal(mask, Call.leaves[1])
        assert x.dtype == jnp.bfloat16
        assert int(flag.sum()) == 1


def test_vectors_of_ones_own():
    more = [(cases.normal(70 + i, 1, 8, 8, 4),) for i in range(3)]
    _, _, x, bundle = _one_image(vectors=more)
    found = bundle.cases()
    assert len(found) == 64
    for (inputs, _), wanted in zip(found[:4], [x, *(y for (y,) in more)], strict=True):
        np.testing.assert_array_equal(inputs[0], wanted)
    for odd in ([(x, x)], [x], [(x[0],)], [(np.asarray(x, np.float64),)]):
        with pytest.raises(ValueError, match=r"vectors\[0\] must"):
            _one_image(targets=("xla",), vectors=odd)


def test_a_larger_batch_is_one_call():
    assert cases.mlp("w4,a8").bundle.manifest["vectors"] == 1


@pytest.mark.parametrize("text", [None, True, False])
def test_a_program_is_stored_once(text, tmp_path):
    """A weight of 4 bits: a byte in the artifact, and at most a fifth of one for all else; text and archive when asked for."""
    params, x = (
        {"a": cases.normal(0, 512, 384), "b": cases.normal(1, 384, 64), "c": cases.normal(2, 384)},
        cases.normal(3, 4, 512),
    )
    plan, qparams = cases.packed(cases.two_layers, {"**": "w4,a8"}, params, x)
    bundle = lb.export(cases.two_layers, plan, qparams, (x,), tmp_path / "m", targets=["xla", "iree"], text=text)
    weights = 512 * 384 + 384 * 64
    size = sum(file.stat().st_size for file in bundle.path.rglob("*"))
    assert (size < 1.2 * weights) == (text is not True)
    copies = {"model.mlir", "model.zip"} if text else set()
    assert set(bundle.manifest["files"]) == {"model.mlirbc", "vectors.safetensors"} | copies
    assert 0.3 * weights < bundle.stored_bytes < 0.65 * weights  # heavy tails: few of the 16 codes are frequent
    assert verify.verify(bundle.path, ["xla"]).rows[0].status == "exact"


def test_what_is_small_is_readable(tmp_path):
    assert {"model.mlir", "model.zip"} <= set(cases.mlp("w4,a8").bundle.manifest["files"])
    case = cases.mlp("w4,a8")
    bundle = lb.export(case.fn, case.plan, case.qparams, case.args, tmp_path / "m", text=False)
    assert set(bundle.manifest["files"]) == {"model.mlirbc", "vectors.safetensors"}
