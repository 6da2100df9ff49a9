"""Statistics: in any order, in parts, sharded; what they look at beside an operand; against float64 written out."""

import importlib
import inspect
import itertools
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import lowbit as lb
import lowbit.core
from lowbit.core.histogram import Histogram
from lowbit.core.moments import Cross, Gram, GuidedGram
from lowbit.core.rows import Observed, RowView
from lowbit.core.spec import Tensor
from lowbit.core.statistics import MinMax, Statistic
from lowbit.interpret.state import marked
from tests.values import heavy_tailed, normal

ROWS = RowView((), (1,), ((6,),), (), (0,))
OPERAND = Observed((5, 6), contract=(1,), is_weight=False, rows=ROWS)
BATCHES = [heavy_tailed(i, 5, 6) for i in range(4)]


def found():
    """One of every final statistic of `lowbit.core` that needs nothing beside its operand."""
    made = []
    for info in pkgutil.iter_modules(lowbit.core.__path__):
        module = importlib.import_module(f"lowbit.core.{info.name}")
        for cls in vars(module).values():
            is_own = isinstance(cls, type) and issubclass(cls, Statistic) and cls.__module__ == module.__name__
            if is_own and not inspect.isabstract(cls):
                takes = inspect.signature(cls).parameters
                made.append(cls(granularity=Tensor()) if "granularity" in takes else cls())
    return tuple(s for s in made if not s.beside)


def folded(statistic, batches):
    state = statistic.init(OPERAND)
    for x in batches:
        state = statistic.update(state, x, OPERAND)
    return state


@pytest.mark.parametrize("statistic", found(), ids=lambda s: s.name)
def test_batches_in_any_order_and_in_parts(statistic):
    """Exact ones to the last bit; sums within ``n`` roundoffs of the sum of magnitudes; others say that they are not."""
    whole = folded(statistic, BATCHES)
    orders = [[BATCHES[i] for i in order] for order in ((3, 1, 0, 2), (2, 3, 1, 0))]
    others = [folded(statistic, order) for order in orders]
    others.append(statistic.merge(folded(statistic, BATCHES[:1]), folded(statistic, BATCHES[1:])))
    others.append(statistic.merge(folded(statistic, BATCHES), statistic.init(OPERAND)))
    for other in others:
        assert jax.tree.structure(other) == jax.tree.structure(whole)
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(other), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            if statistic.is_exact or jnp.issubdtype(a.dtype, jnp.integer):
                np.testing.assert_array_equal(a, b)
            elif isinstance(whole, tuple) and len(whole) == 2:  # a sum and a count
                magnitude = np.sum([np.abs(np.asarray(x, np.float64)) for x in BATCHES]) ** 2
                assert np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max() <= 20 * 2.0**-24 * magnitude


@pytest.mark.parametrize("statistic", [s for s in found() if s.is_exact], ids=lambda s: s.name)
def test_shards_are_one(statistic):
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jnp.concatenate(BATCHES)

    def local(x):
        return statistic.across(statistic.update(statistic.init(OPERAND), x, OPERAND), ("batch",))

    sharded = jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=PartitionSpec("batch"), out_specs=PartitionSpec(), check_vma=False)
    )(x)
    whole = statistic.update(statistic.init(OPERAND), x, OPERAND)
    finished, wanted = (jax.tree.leaves(statistic.finish(s)) for s in (sharded, whole))
    for a, b in zip(finished, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_histogram_counts_what_falls_where():
    x = np.concatenate([np.asarray(b).reshape(-1) for b in BATCHES])
    made = Histogram().finish(folded(Histogram(), BATCHES))
    low, counts = np.asarray(made["low"]), np.asarray(made["counts"])
    magnitudes = np.abs(low[np.isfinite(low) & (low > 0)])
    for edge, following in itertools.pairwise(np.sort(magnitudes)[1000:1400:7]):
        between = counts[(low >= edge) & (low < following)].sum()
        assert between == ((x >= edge) & (x < following)).sum()
        assert counts[(low <= -edge) & (low > -following)].sum() == ((-x >= edge) & (-x < following)).sum()
    assert counts.sum() == x.size


def two_layers(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


PARAMS = {"a": normal(1, 6, 5), "b": normal(2, 5, 3)}
DATA = [(normal(3, 7, 6),), (normal(4, 4, 6),)]


def close(got, want, terms, count):
    assert np.abs(np.asarray(got, np.float64) - want).max() <= 16 * 2.0**-24 * np.sqrt(count) * np.max(terms)


def test_moments_of_a_quantized_model_beside_the_float_one():
    plan = lb.bind(two_layers, {"**": "w4,a6"}, PARAMS, *DATA[0])
    qstate = lb.calibrate(two_layers, plan, PARAMS, DATA)
    found = lb.observe(two_layers, plan, PARAMS, DATA, {"b": {"input": (Gram(), Cross())}}, qstate=qstate)["b"]["input"]
    qparams = lb.pack(plan, PARAMS, qstate)
    site = qparams.sites["b"]["input"]
    scale, zero = (np.asarray(site[name], np.float64).reshape(()) for name in ("scale", "zero"))
    exact = [np.tanh(np.asarray(x @ PARAMS["a"], np.float64)) for (x,) in DATA]
    state = {"learn": {"a": qstate["learn"]["a"]}, "fixed": {"a": qstate["fixed"]["a"]}}
    first = lambda p, x: jnp.tanh(x @ p["a"])  # noqa: E731
    front = lb.bind(first, {"**": "w4,a6"}, {"a": PARAMS["a"]}, *DATA[0])
    hidden = [
        np.asarray(lb.simulate(first, front)({"a": PARAMS["a"]}, marked(front, state), x), np.float64) for (x,) in DATA
    ]
    low, high = plan["b"].sites[0].spec.format.low, plan["b"].sites[0].spec.format.high
    served = [(np.clip(np.round(h / scale) + zero, low, high) - zero) * scale for h in hidden]
    q, f = np.concatenate(served), np.concatenate(exact)
    close(found["gram"][0], q.T @ q / len(q), np.abs(q).T @ np.abs(q) / len(q), len(q))
    close(found["cross"][0], q.T @ f / len(q), np.abs(q).T @ np.abs(f) / len(q), len(q))
    assert np.abs(np.asarray(found["cross"] - found["gram"])).max() > 1e-3


def test_rows_weighted_by_the_gradient_of_the_loss():
    def loss(y):
        return 0.5 * jnp.sum(y**2)

    plan = lb.bind(two_layers, {}, PARAMS, *DATA[0])
    found = lb.observe(two_layers, plan, PARAMS, DATA, {"a": {"input": (GuidedGram(),)}}, loss=loss)["a"]["input"]
    a, b = (np.asarray(PARAMS[k], np.float64) for k in "ab")
    total, terms, count = 0.0, 0.0, 0
    for (x,) in DATA:
        x = np.asarray(x, np.float64)
        hidden = np.tanh(x @ a)
        slope = ((hidden @ b) @ b.T) * (1 - hidden**2)
        weight = (slope**2).mean(1)
        total, terms, count = (
            total + (x * weight[:, None]).T @ x,
            terms + (np.abs(x) * weight[:, None]).T @ np.abs(x),
            count + len(x),
        )
    close(found["guided_gram"][0], total / count, terms / count, count)
    with pytest.raises(ValueError, match="scalar"):
        lb.observe(two_layers, plan, PARAMS, DATA, {"a": {"input": (GuidedGram(),)}})


def test_nan_is_named_by_batch_and_site():
    plan = lb.bind(two_layers, {}, PARAMS, *DATA[0])
    bad = [DATA[0], (DATA[1][0].at[0, 0].set(jnp.nan),)]
    with pytest.raises(ValueError, match=r"the input of 'b' held NaN .* batch 1"):
        lb.observe(two_layers, plan, PARAMS, bad, {"b": {"input": (MinMax(Tensor()),)}})


def test_memory_does_not_grow_and_nothing_compiles_twice():
    traces = 0

    def counted(params, x):
        nonlocal traces
        traces += 1
        return two_layers(params, x)

    plan = lb.bind(counted, {}, PARAMS, *DATA[0])
    batches = ((normal(i, 7, 6),) for i in range(6))
    traces = 0
    lb.observe(counted, plan, PARAMS, batches, {"**": {"input": (Gram(),)}})
    assert traces <= 2  # for shapes, and once compiled


def test_batches_split_over_eight_devices_say_the_same():
    """Exact statistics to the last bit; a second moment within float32's bound of the float64 one."""
    plan = lb.bind(two_layers, {}, PARAMS, *DATA[0])
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    x = heavy_tailed(9, 16, 6)
    split = jax.device_put(x, jax.NamedSharding(mesh, PartitionSpec("batch")))
    wanted = {"a": {"input": (MinMax(Tensor()), Histogram(), Gram())}}
    whole, parts = (lb.observe(two_layers, plan, PARAMS, [(each,)], wanted)["a"]["input"] for each in (x, split))
    assert len(split.sharding.device_set) == 8
    for name in ("minmax", "histogram"):
        jax.tree.map(np.testing.assert_array_equal, whole[name], parts[name])
    wide = np.asarray(x, np.float64)
    close(parts["gram"][0], wide.T @ wide / 16, np.abs(wide).T @ np.abs(wide) / 16, 16)
