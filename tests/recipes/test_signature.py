"""A recipe that rewrites a model leaves it to be called as it was: with a state where it had one, without where it had none."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import lowbit as lb
from lowbit.core.marks import takes_state
from lowbit.recipes.lookup import named, names

REWRITING = [name for name in names() if named(name).rewrite is not None or named(name).pick is not None]
X = np.random.default_rng(1).normal(size=(32, 12)).astype(np.float32)


class Dense(linen.Module):
    has_norm: bool = False

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(16)(x)
        x = linen.BatchNorm(use_running_average=True)(x) if self.has_norm else x
        return linen.Dense(5)(linen.relu(x))


class Both(nnx.Module):
    def __init__(self, rngs):
        self.a, self.b = nnx.Linear(12, 16, rngs=rngs), nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        return self.b(nnx.relu(self.a(x)))


def pure(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


def variables(has_norm):
    made = Dense(has_norm).init(jax.random.key(0), X)
    return {**made, "batch_stats": jax.tree.map(lambda v: v + 0.5, made["batch_stats"])} if has_norm else made


def applied(params, x):
    return Dense().apply({"params": params}, x)


MODELS = {
    "pure": lambda: (pure, {"a": jnp.asarray(X[:12].T @ X[:12, :1] + X[:12, :12]), "b": jnp.asarray(X[12:24, :5])}, None),
    "linen without a state": lambda: (applied, variables(False)["params"], None),
    "linen with an empty state": lambda: lb.linen(Dense(), variables(False)),
    "linen with statistics": lambda: lb.linen(Dense(True), variables(True)),
    "nnx": lambda: lb.nnx(Both(nnx.Rngs(0))),
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "recipe"), [*(("pure", name) for name in REWRITING), *((model, "sinq") for model in MODELS)]
)
def test_a_rewritten_model_is_called_as_it_was(model, recipe):
    fn, params, state = MODELS[model]()
    lead = () if state is None else (state,)
    rules = {"**": "w8,a8" if recipe == "auto" else "w4"}  # what `auto` smooths
    qparams, plan, report = lb.quantize(fn, params, rules, state=state, batches=[(X,)], recipe=recipe)
    want = np.asarray(fn(params, *lead, X), np.float64)
    assert report.fn != fn
    lead = () if state is None else (report.state,)
    assert jax.tree.structure(report.state) == jax.tree.structure(state)
    off = np.asarray(lb.execute(report.fn, plan)(qparams, *lead, X), np.float64) - want
    assert np.linalg.norm(off) < 0.3 * np.linalg.norm(want)
    assert takes_state(report.fn) == takes_state(fn)
    assert inspect.signature(report.fn) == inspect.signature(fn)


def test_an_export_of_it_has_no_other_inputs_than_the_model(tmp_path):
    fn, params, _ = MODELS["pure"]()
    qparams, plan, report = lb.quantize(fn, params, {"**": "w4"}, batches=[(X,)], recipe="lqer")
    bundle = lb.export(report.fn, plan, qparams, (X,), tmp_path / "e", targets=["xla"])
    assert [entry["name"] for entry in bundle.manifest["inputs"]] == ["x"]


def test_a_state_out_of_nothing_is_refused():
    def counted(fn, params, state):
        return fn, params, {"count": jnp.zeros(())}

    with pytest.raises(
        ValueError, match=r"counted.* made a state of a function without one: give the function a state"
    ):
        lb.chain(counted)(pure, MODELS["pure"]()[1], None)
    fn, params, state = lb.chain()(pure, 3.0, None)
    assert state is None
    assert params == 3.0
    assert str(fn) == str(pure)
