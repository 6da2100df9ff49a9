"""The eval that times other runtimes beside `lowbit.execute`: it gets the same numbers from them.

Needs onnx, onnxruntime and openvino: fails without them.
"""

import dataclasses
import json

from lowbit.run import Method, peers, run, timed
from tests.run import tiny


def test_peers_of_a_dense_network(tmp_path):
    config = dataclasses.replace(
        tiny.config,
        metric=None,
        methods=(Method("w8a8", {"**": "w8,a8"}), Method("whole", {"**": "w8,a8"}, integer=True)),
        evals=(peers("onnxruntime", "openvino", batches=(1, 4), seconds=0, rest=0),),
        report=timed,
    )
    results = run(config, tmp_path)
    assert results.failed == {}
    for row in results.rows[1:]:
        found = row.results[0]
        assert set(found["latency"]) == {"xla", "onnxruntime", "openvino"}
        for peer in ("onnxruntime", "openvino"):
            assert set(found["latency"][peer]) == {"b1", "b4"}
            assert all(value < 1e-5 for value in found["distance"][peer].values())
            assert all(value > 0 for value in found["peer_takes"][peer].values())
    lines = json.loads((tmp_path / "times.json").read_text())["rows"]
    assert [line["batch"] for line in lines] == [1, 4]
    assert set(lines[0]["times"]) == {
        "float", "w8a8", "whole", "onnxruntime w8a8", "openvino w8a8", "onnxruntime whole", "openvino whole",
    }  # fmt: skip
