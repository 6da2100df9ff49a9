"""What marks a model's state goes through every wrapper: the artifact takes the data alone."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lowbit as lb
from lowbit.core.marks import takes_state
from lowbit.rewrites import batch_norm
from lowbit.run.states import State

X = jax.random.normal(jax.random.key(0), (4, 16))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))))


class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.a, self.drop, self.b = (
            nnx.Linear(16, 8, rngs=rngs),
            nnx.Dropout(0.5, rngs=rngs),
            nnx.Linear(8, 3, rngs=rngs),
        )

    def __call__(self, x):
        return self.b(self.drop(nnx.relu(self.a(x))))


def normed():
    module = Normed()
    return lb.linen(module, module.init(jax.random.key(1), X))


def renamed(fn, params, state):  # a rewrite of one's own, without a mark
    return lambda p, s, x: fn(p, s, x), params, state


def moved(fn, params, state):
    @functools.wraps(fn)
    def call(p, s, x):
        return fn(p, s, x)

    return call, params, state


def dropped():
    model = Dropped(nnx.Rngs(0))
    model.eval()
    return lb.nnx(model)


MODELS = {
    "linen": normed,
    "nnx with keys": dropped,
    "folded": lambda: batch_norm.fold(X)(*normed()),
    "chained": lambda: lb.chain(batch_norm.fold(X))(*normed()),
    "a rewrite of one's own": lambda: lb.chain(renamed)(*normed()),
    "folded, then one's own": lambda: lb.chain(batch_norm.fold(X), renamed)(*normed()),
    "one's own, then folded": lambda: lb.chain(renamed, batch_norm.fold(X))(*normed()),
    "wraps": lambda: moved(*normed()),
    "jit": lambda: (lambda fn, *rest: (jax.jit(fn), *rest))(*normed()),
    "checkpoint": lambda: (lambda fn, *rest: (jax.checkpoint(fn), *rest))(*normed()),
    "partial": lambda: (lambda fn, *rest: (functools.partial(fn, rngs=None), *rest))(*normed()),
    "partial of jit of folded": lambda: (lambda fn, *rest: (functools.partial(jax.jit(fn)), *rest))(
        *batch_norm.fold(X)(*normed())
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_artifact_takes_the_data_alone(name, tmp_path):
    fn, params, state = MODELS[name]()
    assert takes_state(fn)
    plan = lb.bind(fn, {"**": "w8,a8"}, params, state, X)
    qparams = lb.pack(plan, params, lb.init(fn, plan, params, state, X))
    bundle = lb.export(fn, plan, qparams, (state, X[:1]), tmp_path / "m", targets=["xla"])
    manifest = json.loads((tmp_path / "m" / "manifest.json").read_text())
    assert [(entry["shape"], entry["dtype"]) for entry in manifest["inputs"]] == [([1, 16], "float32")]
    (x,), (y,) = bundle.vectors()
    np.testing.assert_array_equal(y, lb.execute(fn, plan)(qparams, state, jnp.asarray(x)))
    np.testing.assert_allclose(y, fn(params, state, X[:1]), atol=0.1)


def test_what_carries_no_mark():
    fn, params, state = normed()
    assert not takes_state(lambda p, s, x: fn(p, s, x))
    assert not takes_state(functools.partial(fn, params))  # what comes first now is the state
    assert not takes_state(None)
    assert lb.chain()(fn, params, state)[0] is fn
    assert str(lb.chain(batch_norm.fold(X))(fn, params, state)[0]) == "Dense_1/kernel: batch norm folded"


def test_a_folded_integer_plan_says_that_state_is_no_data():
    fn, params, state = normed()
    with pytest.raises(ValueError, match="fold batch norms"):
        lb.bind(jax.jit(fn), {"**": "w8,a8"}, params, state, X, integer=True)


def noisy(p, x):
    return x @ p["w"] + jax.random.normal(p["k"], (3,))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_among_parameters_are_constants_or_named(tmp_path, impl):
    params = {"w": jnp.linspace(-1.0, 1.0, 48).reshape(16, 3), "k": jax.random.key(2, impl=impl)}
    plan = lb.bind(noisy, {"**": "w8,a8"}, params, X)
    qparams = lb.pack(plan, params, lb.init(noisy, plan, params, X))
    np.testing.assert_allclose(lb.execute(noisy, plan)(qparams, X), noisy(params, X), atol=0.1)
    with pytest.raises(TypeError, match=r"params/k is a key<.*random key"):
        lb.save(tmp_path / "m", plan, qparams)
    bundle = lb.export(noisy, plan, qparams, (X,), tmp_path / "e", targets=["xla"])
    np.testing.assert_array_equal(bundle.vectors()[1][0], lb.execute(noisy, plan)(qparams, X))


def test_keys_among_arguments_are_named_or_fixed(tmp_path):
    def fn(p, x, key):
        return x @ p["w"] + jax.random.normal(key, (3,))

    params, key = {"w": jnp.linspace(-1.0, 1.0, 48).reshape(16, 3)}, jax.random.key(2)
    plan = lb.bind(fn, {"**": "w8,a8"}, params, X, key)
    qparams = lb.pack(plan, params, lb.init(fn, plan, params, X, key))
    with pytest.raises(TypeError, match="input 'key' is a random key"):
        lb.export(fn, plan, qparams, (X, key), tmp_path / "m")
    bundle = lb.export(fn, plan, qparams, (X, key), tmp_path / "m", constant_args=(1,), targets=["xla"])
    assert [entry["name"] for entry in bundle.manifest["inputs"]] == ["x"]


def test_a_key_among_dropped_parameters_stays():
    def fn(p, x):
        return x @ p["w"] + jnp.where(p["b"] > 0, p["b"], 0.0)

    params = {"w": jnp.ones((16, 3)), "b": jnp.ones(3), "k": jax.random.key(0)}
    plan = lb.bind(fn, {"**": "w8,a8"}, params, X, integer=True)
    qparams = lb.pack(plan, params, lb.init(fn, plan, params, X))
    np.testing.assert_allclose(lb.execute(fn, plan)(qparams, X), fn(params, X), atol=0.3)


def test_keys_of_a_job_come_back(tmp_path):
    for impl in ("threefry2x32", "rbg"):
        tree = {"keys": jax.random.split(jax.random.key(3, impl=impl), 2), "w": jnp.ones(2)}
        State(tmp_path / impl, "k").save(tree, 1)
        like = {"keys": jax.random.split(jax.random.key(0, impl=impl), 2), "w": jnp.zeros(2)}
        read, _ = State(tmp_path / impl, "k").load(like)
        assert read["keys"].dtype == tree["keys"].dtype
        np.testing.assert_array_equal(jax.random.key_data(read["keys"]), jax.random.key_data(tree["keys"]))
