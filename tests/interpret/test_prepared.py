"""`execute` prepares a weight once, and never serves one that was exchanged."""

import dataclasses
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.interpret import served
from lowbit.packed import native

R = np.random.default_rng(3)


def _array(*shape):
    return jnp.asarray(R.normal(size=shape), jnp.float32)


def model(p, x):
    return jnp.tanh(x @ p["a"]) @ p["b"] + p["c"]


PARAMS = {"a": _array(64, 32), "b": _array(32, 8), "c": _array(8)}
X = _array(4, 64)


def _packed():
    plan = lb.bind(model, {"**": "w8,a8"}, PARAMS, X)
    # A function of its own, so that no other test's memo is met.
    fn = lambda p, x: model(p, x)  # noqa: E731 (a new function for every test)
    return fn, plan, lb.pack(plan, PARAMS, lb.init(model, plan, PARAMS, X))


@pytest.fixture
def packed():
    return _packed()


@pytest.fixture
def builds(monkeypatch):
    """The weights put into the kernels' order, in order."""
    found, real = [], native.order_of
    monkeypatch.setattr(native, "order_of", lambda q, row, site, *on: found.append(site.key) or real(q, row, site, *on))
    return found


def _changes(qparams):
    """Every way in which an entry is exchanged in place: ``(name, change)``."""
    b = qparams.params["b"]
    return {
        "a bias": lambda: qparams.params.update(c=qparams.params["c"] + 100.0),
        "a weight": lambda: qparams.params.update(b=dataclasses.replace(b, codes=jnp.flip(b.codes, 0))),
        "a scale": lambda: qparams.params.update(b=dataclasses.replace(b, scale=b.scale * np.float32(2.0))),
        "an input's scale": lambda: qparams.sites["b"]["input"].update(
            scale=qparams.sites["b"]["input"]["scale"] * np.float32(4.0)
        ),
        "an input's zero": lambda: qparams.sites["b"]["input"].update(
            zero=qparams.sites["b"]["input"]["zero"] + np.float32(5.0)
        ),
    }


@pytest.mark.parametrize("name", ["a bias", "a weight", "a scale", "an input's scale", "an input's zero"])
def test_what_is_exchanged_in_the_container_is_served(packed, name):
    fn, plan, qparams = packed
    run, slow = lb.execute(fn, plan), lb.execute(fn, plan, implementation="reference")
    before = run(qparams, X)
    _changes(qparams)[name]()
    after = run(qparams, X)
    np.testing.assert_array_equal(after, slow(qparams, X))
    assert bool(jnp.any(after != before))
    if name == "a bias":
        np.testing.assert_allclose(after - before, 100.0, rtol=2.0**-16)


def test_an_array_changed_in_place_is_served(packed):
    fn, plan, qparams = packed
    host = jax.tree.map(lambda x: np.array(x), qparams)
    run, slow = lb.execute(fn, plan), lb.execute(fn, plan, implementation="reference")
    before = run(host, X)
    host.params["b"].codes[:] = host.params["b"].codes[::-1].copy()
    np.testing.assert_array_equal(run(host, X), slow(host, X))
    assert bool(jnp.any(run(host, X) != before))


def test_a_second_call_prepares_nothing_and_an_exchange_only_what_it_changed(packed, builds):
    fn, plan, qparams = packed
    run = lb.execute(fn, plan)
    run(qparams, X)
    assert sorted(builds) == ["a", "b"]
    for again in (qparams, jax.tree.map(lambda x: x, qparams), dataclasses.replace(qparams)):
        run(again, X)
        run(again, X[:2])
    assert len(builds) == 2
    qparams.params["c"] = qparams.params["c"] * np.float32(2.0)
    run(qparams, X)
    assert len(builds) == 2
    qparams.params["b"] = dataclasses.replace(qparams.params["b"], scale=qparams.params["b"].scale + np.float32(1.0))
    run(qparams, X)
    assert builds[2:] == ["b"]
    run(lb.prepare(plan, qparams), X)
    assert builds[3:] == ["a", "b"]  # by the call of prepare alone


def test_nothing_outlives_the_parameters():
    fn, plan, qparams = _packed()
    run = lb.execute(fn, plan)
    run(qparams, X)
    leaves = [weakref.ref(leaf) for leaf in jax.tree.leaves(qparams)]
    del qparams
    gc.collect()
    assert [ref() for ref in leaves if ref() is not None and ref() is not PARAMS["c"]] == []
    assert run is lb.execute(fn, plan)


def test_small_arrays_are_one_argument_of_the_compiled_call(monkeypatch):
    """Of sixteen layers, each with arrays of its weight, of its kernel's order and of its grid, the call has two arguments."""
    found, real = [], served.arranged
    monkeypatch.setattr(served, "arranged", lambda *given: found.append(real(*given)[0]) or real(*given))
    params = {"first": {f"l{i:02}": _array(32, 32) for i in range(8)}, "then": [_array(32, 32) for _ in range(8)]}

    def fn(p, x):
        for w in (*(p["first"][name] for name in sorted(p["first"])), *p["then"]):
            x = jax.nn.relu(x @ w)
        return x

    x = _array(1, 32)
    plan = lb.bind(fn, {"**": "w8,a8"}, params, x)
    qparams = lb.pack(plan, params, lb.init(fn, plan, params, x))
    run, slow = lb.execute(fn, plan), lb.execute(fn, plan, implementation="reference")
    np.testing.assert_array_equal(run(qparams, x), slow(qparams, x))
    (layout,) = found
    assert layout.count == len(layout.places) == 16 * (2 + 3 + 2)
    # Exchanged in a dictionary and in a list, and under another name.
    before = run(qparams, x)
    qparams.params["then"][3] = dataclasses.replace(
        qparams.params["then"][3], scale=qparams.params["then"][3].scale * 2
    )
    np.testing.assert_array_equal(run(qparams, x), slow(qparams, x))
    assert bool(jnp.any(run(qparams, x) != before))
    first = qparams.params["first"]
    first["l06"], first["l07"] = first["l07"], first["l06"]
    np.testing.assert_array_equal(run(qparams, x), slow(qparams, x))
    first["l08"] = first.pop("l07")
    with pytest.raises(ValueError, match="l07"):
        run(qparams, x)


def test_loops_read_constant_weights_where_they_lie_and_stacked_ones_are_arguments(monkeypatch):
    """Weights of a scan over time and of a branch are in the arena, those of a scan over layers are not."""
    found, real = [], served.arranged
    monkeypatch.setattr(served, "arranged", lambda *given: found.append(real(*given)[0]) or real(*given))
    params = {"a": _array(16, 16), "b": _array(16, 16), "c": _array(3, 16, 16)}

    def fn(p, x, flag):
        x, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h @ p["a"]), None), x, None, length=3)
        x = jax.lax.cond(flag, lambda x: jax.nn.relu(x @ p["b"]), lambda x: x, x)
        return jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x, p["c"])[0]

    x, flags = _array(2, 16), (jnp.asarray(True), jnp.asarray(False))
    plan = lb.bind(fn, {"**": "w8,a8"}, params, x, flags[0])
    qstate = lb.calibrate(fn, plan, params, [(x, flag) for flag in flags])
    qparams = lb.pack(plan, params, qstate)
    run, slow = lb.execute(fn, plan), lb.execute(fn, plan, implementation="reference")
    results = [np.asarray(run(qparams, x, flag)) for flag in flags]
    for result, flag in zip(results, flags, strict=True):
        np.testing.assert_array_equal(result, slow(qparams, x, flag))
    assert (results[0] != results[1]).any()
    (layout,) = found
    assert (layout.count, len(layout.places)) == (3 * (2 + 3 + 2), 2 * (2 + 3 + 2))
