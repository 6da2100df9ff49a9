"""A jaxpr as an ONNX graph: values and nodes (`graph`), one module per family of operations, then `finish` and `serialize`.

Operators are written as they are read, and put into the layout that ONNX kernels are made for at once: channels first, movement
(reshape, transpose) carried downwards through everything elementwise until two of them cancel, quantization outside of it.
"""
