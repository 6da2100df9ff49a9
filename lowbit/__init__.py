"""Low-bit quantization in JAX: what you train is what you serve."""

from .adapters.linen import linen as linen
from .adapters.nnx import nnx as nnx
from .calibrate.fold import calibrate as calibrate
from .calibrate.fold import init as init
from .calibrate.rebind import rebind as rebind
from .core.qtensor import QTensor as QTensor
from .core.quantizer import Quantizer as Quantizer
from .core.quantizer import Quantizers as Quantizers
from .export.bundle import export as export
from .interpret.bind import bind as bind
from .interpret.execute import execute as execute
from .interpret.execute import explain as explain
from .interpret.packing import pack as pack
from .interpret.simulate import simulate as simulate
from .interpret.with_quantizers import with_quantizers as with_quantizers
from .observe.observe import observe as observe
from .packed.arrays import quantize_array as quantize_array
from .packed.files import load as load
from .packed.files import save as save
from .packed.native import prepare as prepare
from .packed.trees import QParams as QParams
from .packed.trees import nbytes as nbytes
from .quantizers.lsq import lsq as lsq
from .quantizers.rtn import rtn as rtn
from .recipes.quantize import quantize as quantize
from .rewrites.chain import chain as chain
