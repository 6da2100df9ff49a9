"""Float weights out of a ``.tflite`` file, through the schema package ``tflite``."""

from pathlib import Path
from typing import Any

import numpy as np


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Returns the float constants of the main subgraph by tensor name, as float32 in the file's own layout.

    Args:
        path: a TensorFlow Lite flatbuffer whose weights are stored in float16 or float32.

    Raises:
        ImportError: if the schema package is missing.
        ValueError: if the file is no such flatbuffer.
    """
    try:
        import tflite
    except ImportError as error:
        raise ImportError(
            "reading .tflite files needs the schema package: pip install 'lowbit[experiments]'"
        ) from error
    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise ValueError(f"{path} is not a TensorFlow Lite file: it holds {content[4:8]!r} where b'TFL3' should be")
    model: Any = tflite.Model.GetRootAsModel(content, 0)  # generated code, every accessor typed as optional
    graph = model.Subgraphs(0)
    dtypes = {tflite.TensorType.FLOAT16: np.float16, tflite.TensorType.FLOAT32: np.float32}
    weights = {}
    for i in range(graph.TensorsLength()):
        tensor = graph.Tensors(i)
        buffer = model.Buffers(tensor.Buffer())
        if tensor.Type() in dtypes and buffer.DataLength():
            values = buffer.DataAsNumpy().view(dtypes[tensor.Type()]).reshape(tensor.ShapeAsNumpy())
            weights[tensor.Name().decode()] = values.astype(np.float32)
    return weights
