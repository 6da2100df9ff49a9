"""No keyword of a model is hidden behind one of lowbit's own: every public function, every keyword."""

import functools
import inspect
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lowbit as lb
from lowbit.core.keywords import takes_keyword
from lowbit.rewrites import batch_norm

R = np.random.default_rng(0)
P = {"w": jnp.asarray(R.normal(size=(16, 4)), jnp.float32)}
X = jnp.asarray(R.normal(size=(8, 16)), jnp.float32)
SHIFT = jnp.float32(1000.0)  # nobody misses it in a result, or in the range of an input

NAMES = ("key", "step", "train", "kwargs", "implementation", "integer", "rounding", "params", "qstate", "qparams", "plan",
         "args", "fn", "progress", "frozen", "name")  # fmt: skip


def _model(name):
    """``fn(p, x, *, <name>=None)``: ``x`` is moved by the keyword."""
    space = {}
    exec(f"def fn(p, x, *, {name}=None):\n    return (x if {name} is None else x + {name}) @ p['w']", space)
    return space["fn"]


@functools.lru_cache
def _made(name):
    """The model, and what is right: that of the same model with the keyword's value fixed inside."""
    fn, fixed = _model(name), lambda p, x: (x + SHIFT) @ p["w"]
    plan = lb.bind(fixed, {"**": "w8,a8"}, P, X)
    qstate = lb.init(fixed, plan, P, X)
    return fn, plan, qstate, lb.pack(plan, P, qstate), lb.simulate(fixed, plan)(P, qstate, X)


def _same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", NAMES)
def test_kwargs_always_go_to_the_model(name, tmp_path):
    fn, plan, qstate, qparams, want = _made(name)
    given = {name: SHIFT}
    assert lb.bind(fn, {"**": "w8,a8"}, P, X, kwargs=given) == plan
    _same(lb.init(fn, plan, P, X, kwargs=given), qstate)
    _same(lb.init(fn, plan, P, X, key=jax.random.key(1), kwargs=given), qstate)
    _same(lb.calibrate(fn, plan, P, [(X,)], kwargs=given), qstate)
    _same(lb.simulate(fn, plan)(P, qstate, X, kwargs=given), want)
    _same(lb.simulate(fn, plan, train=True)(P, qstate, X, kwargs=given)[0], want)
    _same(lb.simulate(fn, plan, train=True)(P, qstate, X, key=jax.random.key(1), step=3, kwargs=given)[0], want)
    _same(lb.execute(fn, plan)(qparams, X, kwargs=given), want)
    assert lb.explain(fn, plan, qparams, X, kwargs=given, implementation="reference").split() == ["w", "reference", "asked", "for", "reference"]  # fmt: skip


def test_export_gives_its_kwargs_to_the_model(tmp_path):
    for name in ("name", "kwargs", "key"):
        fn, plan, _, qparams, want = _made(name)
        bundle = lb.export(fn, plan, qparams, (X,), tmp_path / name, kwargs={name: SHIFT}, targets=["xla"])
        _same(bundle.vectors()[1][0], want)
        assert len(json.loads((bundle.path / "manifest.json").read_text())["inputs"]) == 1


OWN = {
    "lowbit.bind": (("integer", "rounding"), lambda fn, *_: functools.partial(lb.bind, fn, {"**": "w8,a8"}, P, X)),
    "lowbit.init": (("key",), lambda fn, plan, *_: functools.partial(lb.init, fn, plan, P, X)),
    "lowbit.simulate(train=True)": (
        ("key", "step"),
        lambda fn, plan, qstate, _: functools.partial(lb.simulate(fn, plan, train=True), P, qstate, X),
    ),
    "lowbit.explain": (
        ("implementation", "platform"),
        lambda fn, plan, _, qparams: functools.partial(lb.explain, fn, plan, qparams, X),
    ),
}


def test_every_keyword_of_its_own_is_among_these():
    for function, (own, _) in (("bind", OWN["lowbit.bind"]), ("init", OWN["lowbit.init"]), ("explain", OWN["lowbit.explain"])):  # fmt: skip
        parameters = inspect.signature(getattr(lb, function)).parameters.values()
        assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} == {*own, "kwargs"}
    others = [
        name
        for name in dir(lb)
        if inspect.isfunction(getattr(lb, name))
        and any(p.kind is p.VAR_KEYWORD for p in inspect.signature(getattr(lb, name)).parameters.values())
    ]
    assert sorted(others) == ["bind", "explain", "init", "linen", "nnx", "rebind"]  # rebind has none of its own


@pytest.mark.parametrize("function", OWN)
def test_a_keyword_that_may_be_eithers_is_refused(function):
    own, call = OWN[function]
    for name in own:
        fn, *rest = _made(name)[:4]
        anything = lambda p, x, **rest: (x + sum(rest.values())) @ p["w"]  # noqa: E731 (takes every keyword)
        for model in (fn, jax.jit(fn), functools.partial(fn), anything):
            for value in (SHIFT, None):
                with pytest.raises(TypeError, match=rf"both take {name}=: pass the model's as kwargs="):
                    call(model, *rest)(**{name: value})


@pytest.mark.parametrize("name", NAMES)
def test_other_keywords_go_to_the_model_as_they_are(name):
    fn, plan, qstate, qparams, want = _made(name)
    given = {"kwargs": {"kwargs": SHIFT}} if name == "kwargs" else {name: SHIFT}
    _same(lb.simulate(fn, plan)(P, qstate, X, **given), want)
    _same(lb.execute(fn, plan)(qparams, X, **given), want)


def test_lowbits_own_keywords_are_its_own_where_the_model_has_none():
    fn = lambda p, x: (x + SHIFT) @ p["w"]  # noqa: E731 (a model without keywords)
    _, plan, qstate, _, want = _made("key")
    _same(lb.init(fn, plan, P, X, key=jax.random.key(1)), qstate)
    _same(lb.simulate(fn, plan, train=True)(P, qstate, X, key=jax.random.key(1), step=2)[0], want)
    assert lb.bind(_model("integer"), {"**": "w8,a8"}, P, X, integer=True, kwargs={}).is_full_integer


def test_kwargs_that_cannot_be():
    fn, plan, qstate, _, _ = _made("kwargs")
    run = lb.simulate(fn, plan)
    for wrong, message in ((SHIFT, "mapping"), ({"a": 1}, "called kwargs itself"), (None, "called kwargs itself")):
        with pytest.raises(TypeError, match=message):
            run(P, qstate, X, kwargs=wrong)
    fn, plan, qstate, _, _ = _made("name")
    with pytest.raises(TypeError, match="name= twice"):
        lb.simulate(fn, plan)(P, qstate, X, name=SHIFT, kwargs={"name": SHIFT})
    with pytest.raises(TypeError, match="mapping"):
        lb.simulate(fn, plan)(P, qstate, X, kwargs={1: SHIFT})


def test_folded_functions_hide_nothing():
    def fn(p, s, x, *, frozen=None, unfolded=None):
        x = x if frozen is None else x + frozen
        x = x if unfolded is None else x + unfolded
        return (x @ p["w"] - s["mean"]) / jnp.sqrt(s["var"])

    state = {"mean": jnp.ones(4), "var": jnp.full(4, 4.0)}
    for name in ("frozen", "unfolded"):
        folded, params, _ = batch_norm.fold(X, kwargs={name: SHIFT})(fn, P, state)
        want = fn(P, state, X, **{name: SHIFT})
        np.testing.assert_allclose(folded(params, state, X, kwargs={name: SHIFT}), want, rtol=2.0**-16)
    with pytest.raises(TypeError, match="both take frozen="):
        folded(params, state, X, frozen=True)
    with pytest.raises(TypeError, match="both take unfolded="):
        batch_norm.fold(X, unfolded="keep")(fn, P, state)


def test_modules_keep_their_keywords():
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x, method=0.0, mutable=0.0, rngs=0.0, capture_intermediates=0.0, scale=1.0):
            return nn.Dense(3)(x) * scale + method + mutable + rngs + capture_intermediates

    module = Linen()
    variables = module.init(jax.random.key(0), X)
    plain = module.apply(variables, X)
    for name in ("method", "mutable", "rngs", "capture_intermediates"):
        fn, params, state = lb.linen(module, variables, kwargs={name: 5.0}, scale=2.0)
        np.testing.assert_array_equal(fn(params, state, X), plain * 2.0 + 5.0)
    with pytest.raises(TypeError, match="both take mutable="):
        lb.linen(module, variables, mutable=["batch_stats"])

    class Nnx(nnx.Module):
        def __init__(self):
            self.layer = nnx.Linear(16, 3, rngs=nnx.Rngs(0))

        def __call__(self, x, method=0.0, mutable=0.0):
            return self.layer(x) + method + mutable

    model = Nnx()
    for name in ("method", "mutable"):
        fn, params, state = lb.nnx(model, kwargs={name: 5.0})
        np.testing.assert_array_equal(fn(params, state, X), model(X) + 5.0)
    with pytest.raises(TypeError, match="both take mutable="):
        lb.nnx(model, mutable=True)


def test_what_takes_a_keyword():
    fn = lambda p, x, *, key=None: x  # noqa: E731
    assert all(takes_keyword(f, "key") for f in (fn, jax.jit(fn), functools.partial(fn), functools.partial(fn, key=1)))
    assert not any(takes_keyword(f, "step") for f in (fn, jax.jit(fn), None, 3, min))
    assert takes_keyword(lambda **rest: rest, "key")
    assert not takes_keyword(lambda **rest: rest, "key", is_named=True)
    assert not takes_keyword(lambda key, /: key, "key")
