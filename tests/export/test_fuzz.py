"""Random networks, exported and run everywhere: XLA, StableHLO's interpreter (dots), IREE, and C (full-integer plans).

`make test` takes 5 of each kind; `make fuzz` takes 100: set by ``LOWBIT_FUZZ``.
"""

import os
import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import lowbit as lb
from lowbit.core.clipping import Octav, Percentile
from lowbit.core.quantizer import Quantizers
from lowbit.core.ranges import MSE, MovingAverage
from lowbit.export.verify import verify
from lowbit.quantizers.rtn import rtn
from tests.values import normal

from .graphs import Network, dense_graphs, image_graphs, turned_graphs

COUNT = int(os.environ.get("LOWBIT_FUZZ", "5"))
# A failing graph is printed whole; shrinking it would export and compile for minutes.
FUZZ = settings(
    max_examples=COUNT,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
WEIGHTS = st.sampled_from(["w8,a8", "w4,a8", "w2,a8", "w3/tensor,a8", "w8,a4"])
INPUTS = st.sampled_from(["a8", "a8/sym", "a4", "a8/dynamic", "a8/dynamic/affine", "a4/dynamic", "aint16"])
RANGES = st.sampled_from([None, MovingAverage(0.9), Percentile(99.0), MSE(), Octav()])


def _exported(graph: Network, rule: str, seed: int, folder, *, integer: bool):
    params, args = graph.params(seed), graph.args(normal(seed, *graph.shape))
    plan = lb.bind(graph, {"**": rule}, params, *args, integer=integer)
    qparams = lb.pack(plan, params, lb.init(graph, plan, params, *args))
    targets = ["xla", "iree", "c"] if integer else ["xla", "iree"]
    return lb.export(graph, plan, qparams, args, folder, integer_io=integer, targets=targets)


def any_dense():
    return dense_graphs() | turned_graphs()


# Some networks draw an addend that 4 bits lose, and are told so: that every target loses it alike is what is asked here.
@pytest.mark.filterwarnings("ignore:integer=True.*lost in it:UserWarning")
@pytest.mark.filterwarnings("ignore:integer=True.*acts as 0:UserWarning")
@pytest.mark.parametrize(
    ("graphs", "integer", "first"),
    [
        (any_dense, False, 0),
        (image_graphs, False, 0),
        (any_dense, True, 0),
        (image_graphs, True, 0),
        (image_graphs, True, 1000),
    ],
)
def test_every_target_agrees(graphs, integer, first, tmp_path):
    @FUZZ
    @given(graph=graphs(), rule=WEIGHTS, seed=st.integers(first, first + 999))
    def check(graph, rule, seed):
        bundle = _exported(graph, rule, seed, tmp_path / "model", integer=integer)
        rows = verify(bundle.path, run_code=True).rows
        assert [row.target for row in rows if row.status == "not run"] in ([], ["interpreter"])
        for row in rows:
            allowed = ("exact", "not run") if integer else ("exact", "close", "not run")
            assert row.status in allowed, (graph, rule, seed, row)

    check()


@FUZZ
@given(
    graph=turned_graphs() | image_graphs(),
    weights=st.sampled_from(["w8", "w4", "w4/g2", "w8/tensor"]),
    inputs=INPUTS,
    range_=RANGES,
    bad=st.sampled_from([None, jnp.nan, jnp.inf]),
    seed=st.integers(0, 999),
)
def test_every_route_agrees(graph, weights, inputs, range_, bad, seed):
    """Simulated, packed and run by kernels, carried and by the reference, of no example too: one result.

    In 8 bits it is near the float model's; where all of an example is NaN, so are its results.
    """
    params, args = graph.params(seed), graph.args(normal(seed, *graph.shape))
    chosen = rtn(f"w8,{inputs}") if range_ is None else rtn(f"w8,{inputs}", range=range_)
    try:
        plan = lb.bind(graph, {"**": Quantizers(rtn(weights).weight, chosen.input)}, params, *args)
    except ValueError as error:  # a group that would begin elsewhere when its axis is reversed
        group, length = re.search(
            r"groups of (\d+) do not line up with a reversal of an axis of (\d+)", str(error)
        ).groups()
        assert int(length) % int(group)
        return
    qstate = lb.init(graph, plan, params, *args)
    qparams = lb.pack(plan, params, qstate)
    moved = args[0] if graph.rows or bad is None else args[0].at[0].set(bad)
    results = []
    for batch in (args[0], moved, args[0][:0]):
        given_args = batch, *args[1:]
        results.append(np.asarray(lb.simulate(graph, plan)(params, qstate, *given_args)))
        for implementation in (None, "carried", "reference"):
            got = lb.execute(graph, plan, implementation=implementation)(qparams, *given_args)
            np.testing.assert_array_equal(np.asarray(got), results[-1], str((graph, weights, chosen, implementation)))
    want, at_bad, of_none = results
    if weights == "w8" and inputs != "a4" and inputs != "a4/dynamic" and range_ is None:
        near = np.asarray(graph(params, *args), np.float64)
        assert np.abs(want - near).max() <= 0.2 * np.abs(near).max() + 1e-6, (graph, weights, chosen)
    if (
        bad is jnp.nan
        and not graph.rows
        and all(layer.activation in ("none", "tanh", "gelu") for layer in graph.layers)
    ):
        assert np.isnan(at_bad[0]).all()
    assert of_none.shape == (0, graph.head)
