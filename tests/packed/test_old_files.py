"""Files of older versions: they load, and execute what their version executed, to the last bit.

``old_files.json`` has, for a commit each, the bytes that `lowbit.save` wrote and the results that `lowbit.execute` gave then.
"""

import base64
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.plan.serial import from_json, to_json
from lowbit.quantizers.rtn import rtn

OLD = json.loads((Path(__file__).parent / "old_files.json").read_text())


def _drawn():
    """The arguments, drawn in the order in which they were drawn then."""
    rng = np.random.default_rng(0)
    shapes = {"e": (5, 8), "w": (8, 6), "b": (6,), "v": (6, 2), "x": (3, 8)}
    return {name: rng.standard_normal(shape).astype(np.float32).round(3) for name, shape in shapes.items()}


def _groups(p, t, x):
    return jax.nn.relu((p["e"][t] + x) @ p["w"] + p["b"]) @ (p["v"] * 2.0)


def _integer(p, x):
    return jax.nn.relu(x @ p["w"] + p["b"]) @ p["v"]


@pytest.mark.parametrize("name", OLD)
def test_a_file_of_an_older_version_executes_what_it_did(name, tmp_path):
    path = tmp_path / "model.lowbit"
    path.write_bytes(base64.b64decode(OLD[name]["file"]))
    plan, qparams = lb.load(path)
    x = jnp.asarray(_drawn()["x"])
    fn, args = (_groups, (jnp.array([1, 4, 0]), x)) if name.startswith("groups") else (_integer, (x,))
    want = np.asarray(OLD[name]["y"], np.float32)
    for implementation in (None, "reference"):
        got = lb.execute(fn, plan, implementation=implementation)(qparams, *args)
        np.testing.assert_array_equal(np.asarray(got), want)
    lb.save(path, plan, qparams)
    again, qparams = lb.load(path)
    assert (again, again.fingerprint) == (plan, plan.fingerprint)
    np.testing.assert_array_equal(np.asarray(lb.execute(fn, again)(qparams, *args)), want)
    assert to_json(from_json(to_json(plan))) == to_json(plan)


@pytest.mark.parametrize("name", OLD)
def test_an_older_plan_packs_with_its_function(name, tmp_path):
    """What a plan of a file lacks comes from ``fn`` and ``args``, its quantizers from ``quantizers=``: the same codes again."""
    content = base64.b64decode(OLD[name]["file"])
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    text = json.loads(header["__metadata__"]["lowbit"])["plan"]
    known = [lb.lsq("w4/g4,a8")] if "lsq" in text else []
    plan = from_json(text, quantizers=[*known, *_round_to_nearest(text)])
    drawn = {k: jnp.asarray(v) for k, v in _drawn().items()}
    x = drawn.pop("x")
    fn, args = (_groups, (jnp.array([1, 4, 0]), x)) if name.startswith("groups") else (_integer, (x,))
    params = drawn if name.startswith("groups") else {k: drawn[k] for k in "wbv"}
    qstate = lb.init(fn, plan, params, *args)
    packed = lb.pack(plan, params, qstate, fn=fn, args=args)
    got, want = lb.execute(fn, plan)(packed, *args), np.asarray(OLD[name]["y"], np.float32)
    # The first step size is a mean, whose last bits go with the width of the processor's vectors; the codes do not.
    np.testing.assert_allclose(np.asarray(got), want, rtol=1e-6, atol=1e-6 * np.abs(want).max())
    path = tmp_path / "model.lowbit"
    path.write_bytes(content)
    kept = lb.load(path)[1].weights()
    for key, weight in packed.weights().items():
        np.testing.assert_array_equal(weight.unpacked_codes(), kept[key].unpacked_codes())


def _round_to_nearest(text):
    texts = {site["quantizer"] for row in json.loads(text)["rows"] for site in row["sites"] if site["quantizer"]}
    candidates = [rtn("w8,a8"), rtn("w8")]
    return [q for each in candidates for q in (each.weight, each.input) if q is not None and q.text in texts]
