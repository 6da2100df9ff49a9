"""Random networks, exported and run everywhere: XLA, StableHLO's interpreter (dots), IREE, and C (full-integer plans).

`make test` takes 5 of each kind; `make fuzz` takes 100: set by ``LOWBIT_FUZZ``.
"""

import os

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import lowbit as lb
from lowbit.export.verify import verify
from tests.values import normal

from .graphs import Graph, dense_graphs, image_graphs

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


def _exported(graph: Graph, rule: str, seed: int, folder, *, integer: bool):
    params, x = graph.params(seed), normal(seed, *graph.shape)
    plan = lb.bind(graph, {"**": rule}, params, x, integer=integer)
    qparams = lb.pack(plan, params, lb.init(graph, plan, params, x))
    targets = ["xla", "iree", "c"] if integer else ["xla", "iree"]
    return lb.export(graph, plan, qparams, (x,), folder, integer_io=integer, targets=targets)


@pytest.mark.parametrize(
    ("graphs", "integer", "first"),
    [
        (dense_graphs, False, 0),
        (image_graphs, False, 0),
        (dense_graphs, True, 0),
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
