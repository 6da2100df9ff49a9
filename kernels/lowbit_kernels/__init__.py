"""Packed low-bit matmuls in JAX: one layout, one call, an implementation for each machine.

w = pack_matrix(codes, scales, bits=4, group=32)     # canonical bytes (layout.py)
w = prepare(w)                                       # once: the CPU kernels' physical order
y = quant_matmul(x, w, activation="int8")            # runs the best implementation
print(explain(x, w, activation="int8"))              # says which, and why not the others
"""

from lowbit_kernels.api import explain as explain
from lowbit_kernels.api import largest_group as largest_group
from lowbit_kernels.api import quant_matmul as quant_matmul
from lowbit_kernels.api import quant_sums as quant_sums
from lowbit_kernels.conv import PackedConv as PackedConv
from lowbit_kernels.conv import dequantize_conv as dequantize_conv
from lowbit_kernels.conv import pack_conv as pack_conv
from lowbit_kernels.conv import prepare_conv as prepare_conv
from lowbit_kernels.conv import quant_conv as quant_conv
from lowbit_kernels.cpu.conv import MOST_TAPS as MOST_TAPS
from lowbit_kernels.cpu.conv import PreparedConv as PreparedConv
from lowbit_kernels.cpu.library import status as status
from lowbit_kernels.cpu.matmul import CpuConfig as CpuConfig
from lowbit_kernels.cpu.prepare import PreparedMatrix as PreparedMatrix
from lowbit_kernels.cpu.prepare import prepare as prepare
from lowbit_kernels.cpu.prepare import restore as restore
from lowbit_kernels.fused import Fused as Fused
from lowbit_kernels.fused import fused_conv as fused_conv
from lowbit_kernels.fused import fused_matmul as fused_matmul
from lowbit_kernels.gather import PackedTable as PackedTable
from lowbit_kernels.gather import gather_rows as gather_rows
from lowbit_kernels.gather import pack_table as pack_table
from lowbit_kernels.layout import code_range as code_range
from lowbit_kernels.layout import pack_codes as pack_codes
from lowbit_kernels.layout import packed_length as packed_length
from lowbit_kernels.layout import unpack_codes as unpack_codes
from lowbit_kernels.matrix import PackedMatrix as PackedMatrix
from lowbit_kernels.matrix import dequantize_matrix as dequantize_matrix
from lowbit_kernels.matrix import pack_matrix as pack_matrix
from lowbit_kernels.numerics import StaticActivation as StaticActivation
from lowbit_kernels.numerics import quantize_dynamic as quantize_dynamic
from lowbit_kernels.numerics import quantize_fp8 as quantize_fp8
from lowbit_kernels.numerics import quantize_static as quantize_static
from lowbit_kernels.numerics import rounded_product as rounded_product
from lowbit_kernels.numerics import scale_groups as scale_groups
from lowbit_kernels.steps import Steps as Steps
from lowbit_kernels.steps import prepare_steps as prepare_steps
