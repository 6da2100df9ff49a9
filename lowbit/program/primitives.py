"""What every primitive of jax means, in one table: what it does to its operands, never how lowbit quantizes it.

A name has one meaning. A primitive without one is *unknown*: it is evaluated as it is, never looked into, and said so where
it touches parameters. The names are those of jax 0.10 and of jax 0.12.
"""

from collections.abc import Iterable

SAME = frozenset(
    (
        "copy", "dce_sink", "device_put", "layout_constraint", "name", "optimization_barrier", "relayout",
        "remat_opt", "reshard", "sharding_constraint", "stop_gradient", "with_memory_space_constraint",
        "xla_metadata_value",
    )
)  # fmt: skip
"""The operand, unchanged: where it is kept, or how it is differentiated, is all that they say."""

COPIES = frozenset(("copy", "stop_gradient"))
"""Those of `SAME` that say nothing of where the operand is kept."""

EACH = frozenset(("optimization_barrier",))
"""Those of `SAME` that take several operands and return every one of them."""

VARYING = frozenset(
    (
        "pbroadcast", "pbroadcast_done", "pbroadcast_dynamic", "pbroadcast_start", "preduced", "pvary", "reduced_vary_cast", "reduced_vary_cast_p",
        "vary_unreduced_cast", "vary_unreduced_cast_p",
    )
)  # fmt: skip
"""Inside ``shard_map``: the operand, unchanged, said to differ between devices."""

CASTS = frozenset(("convert_element_type",))
"""The operand in another dtype."""

SHAPED = frozenset(("broadcast_in_dim", "reshape", "rev", "squeeze", "transpose"))
"""Every element of the operand, elsewhere."""

PARTS = frozenset(
    (
        "broadcast_to", "concatenate", "dynamic_slice", "dynamic_update_slice", "pad", "slice", "split", "stack",
        "tile", "unstack",
    )
)  # fmt: skip
"""Some elements of the operands, elsewhere."""

MOVES = SAME | VARYING | CASTS | SHAPED | PARTS
"""Change where elements are, not what they are."""

ROOTS = frozenset(("cbrt", "pow", "rsqrt", "sqrt"))
"""Elementwise, and may take a root: what tells a normalisation from other products."""

ELEMENTWISE = ROOTS | frozenset(
    (
        "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e",
        "bessel_i1e", "ceil", "clamp", "clz", "complex", "conj", "cos", "cosh", "digamma", "div", "eq", "eq_to", "erf",
        "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma", "igamma_grad_a", "igammac", "imag",
        "integer_pow", "is_finite", "le", "le_to", "lgamma", "log", "log1p", "log2", "logistic", "lt", "lt_to", "max",
        "min", "mul", "mulhi", "ne", "neg", "nextafter", "not", "one_minus_square", "or", "polygamma", "polynomial",
        "population_count", "real", "reciprocal", "reduce_precision", "regularized_incomplete_beta", "rem", "round",
        "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "square",
        "sub", "tan", "tanh", "xor", "zeta",
    )
)  # fmt: skip
"""Every element of the result from the elements at its place."""

COMPLEX = frozenset(("complex", "conj", "imag", "real"))
"""Make complex numbers of real ones, or the other way round."""

ADDITIONS = frozenset(("add", "add_any", "sub"))
"""Add or subtract two operands: what a compiler may fuse a product before it with."""

ARITHMETIC = ADDITIONS | {"div", "max", "min", "mul"}
"""Of two operands, elementwise."""

COMPARISONS = frozenset(("eq", "ge", "gt", "le", "lt", "ne"))
"""Compare two operands, elementwise."""

WINDOWED = frozenset(
    ("conv_general_dilated", "reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum")
)
"""Slide a window over an operand."""

EXTREMES = frozenset(
    ("cummax", "cummin", "reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min")
)  # fmt: skip
"""The largest or smallest elements along axes, or in windows, of one operand."""

CHOICES = EXTREMES | {"select_and_gather_add", "sort"}
"""Some elements of the operand, chosen by their size."""

SUMS = frozenset(("add_any", "cumsum", "reduce_sum", "reduce_window_sum"))
"""Add elements of one operand, or (``add_any``) of two."""

REDUCTIONS = CHOICES | frozenset(
    (
        "approx_top_k", "argmax", "argmin", "cumlogsumexp", "cumprod", "cumsum", "reduce", "reduce_and", "reduce_or",
        "reduce_prod", "reduce_sum", "reduce_window", "reduce_window_sum", "reduce_xor", "select_and_scatter",
        "select_and_scatter_add", "top_k",
    )
)  # fmt: skip
"""Combine the elements along axes, or in windows, of one operand."""

PRODUCTS = frozenset(("conv_general_dilated", "dot_general"))
"""Multiply two operands and add over axes of both: what lowbit quantizes."""

HIDDEN = frozenset(
    (
        "bcoo_dot_general", "bcoo_dot_general_sampled", "bcoo_spdot_general", "bcsr_dot_general", "coo_matmat",
        "coo_matvec", "coo_spmm", "coo_spmv", "core_map", "csr_matmat", "csr_matvec", "csr_spmm", "csr_spmv",
        "cudnn_fusion", "custom_partitioning", "dot_product_attention_bwd", "dot_product_attention_bwd_wrapper",
        "dot_product_attention_fp8_bwd", "dot_product_attention_fp8_bwd_wrapper", "dot_product_attention_fp8_fwd",
        "dot_product_attention_fp8_fwd_wrapper", "dot_product_attention_fwd", "dot_product_attention_fwd_wrapper",
        "ffi_call", "mpmd_map", "pallas_call", "scaled_dot", "scaled_matmul",
        "scaled_matmul_wrapper", "symmetric_product",
    )
)  # fmt: skip
"""May hold a product of matrices that cannot be read."""

RAGGED = frozenset(("ragged_dot_general",))
"""Multiply rows with the matrix of their group: read as a loop over groups (`lowbit.program.ragged`), other forms hidden."""

LINEAR_ALGEBRA = frozenset(
    (
        "cholesky", "cholesky_update", "eig", "eigh", "fft", "geqp3", "geqrf", "hessenberg", "householder_product", "lu",
        "lu_pivots_to_permutation", "ormqr", "qr", "schur", "spsolve", "svd", "triangular_solve", "tridiagonal",
        "tridiagonal_solve",
    )
)  # fmt: skip
"""Factorizations, solutions of systems and transforms of whole arrays."""

INDEXED = frozenset(
    (
        "gather", "masked_load", "masked_swap", "scatter", "scatter-add", "scatter-max", "scatter-min", "scatter-mul",
        "scatter-sub",
    )
)  # fmt: skip
"""Read or write the places that an array of indices names."""

LOOKUPS = frozenset(("dynamic_slice", "gather"))
"""Pick parts of their first operand by the integers in the others."""

CONSTANTS = frozenset(
    (
        "create_token", "dim_as_value", "dimension_size", "empty", "empty2", "get_global", "iota", "iota_2x32_shape",
        "num_programs", "platform_index", "program_id", "shape_assertion", "zeros_like",
    )
)  # fmt: skip
"""Made from parameters of the equation, or from shapes, alone."""

RANDOM = frozenset(
    (
        "philox2x32", "philox4x32", "random_bits", "random_clone", "random_fold_in", "random_gamma", "random_seed",
        "random_split", "random_unwrap", "random_wrap", "rng_bit_generator", "rng_uniform", "threefry2x32",
        "threefry4x32",
    )
)  # fmt: skip
"""Random numbers and their keys."""

BITS = frozenset(("bitcast_convert_type", "from_edtype", "to_edtype"))
"""The same bits, read as another dtype."""

SPARSE = frozenset(
    (
        "bcoo_extract", "bcoo_fromdense", "bcoo_sort_indices", "bcoo_sum_duplicates", "bcoo_todense", "bcoo_transpose",
        "bcsr_extract", "bcsr_fromdense", "bcsr_todense", "coo_fromdense", "coo_todense", "csr_fromdense", "csr_todense",
        "todense",
    )
)  # fmt: skip
"""From and to arrays that keep only what is not zero."""

COLLECTIVES = frozenset(
    (
        "after_all", "all_gather", "all_gather_done", "all_gather_invariant", "all_gather_reduced",
        "all_gather_reduced_start", "all_gather_start", "all_to_all", "all_to_all_done", "all_to_all_start",
        "axis_index", "pmax", "pmin", "ppermute", "ppermute_done", "ppermute_start", "precv", "psend", "psum",
        "psum_done", "psum_invariant", "psum_invariant_start", "psum_start", "ragged_all_to_all", "reduce_scatter",
        "reduce_scatter_done", "reduce_scatter_start", "semaphore_read", "semaphore_signal", "semaphore_wait",
        "unreduced_pmax", "unreduced_pmin", "unreduced_psum", "unreduced_psum_start", "unreduced_reduce_scatter",
        "unreduced_reduce_scatter_start",
    )
)  # fmt: skip
"""Combine values of several devices."""

EFFECTS = frozenset(
    (
        "accum_grad_in_ref", "addupdate", "box_get", "box_set", "check", "debug_callback", "debug_print", "delay",
        "empty_ref", "free_ref", "freeze", "get", "inspect_sharding", "io_callback", "log_extend", "log_read",
        "multiple_of", "new_box", "new_log", "new_ref", "pin", "pure_callback", "swap", "tie", "unpin", "unreachable",
    )
)  # fmt: skip
"""Read and write references, or call Python."""

JITTED = frozenset(("call", "closed_call", "jit", "xla_metadata_call"))
"""Calls of one body, with its operands and results."""

REMATTED = frozenset(("remat2",))
"""The same, computed again for gradients."""

CUSTOM_JVP = frozenset(("custom_jvp_call",))
"""The same, with its own derivative."""

CUSTOM_VJP = frozenset(("custom_vjp_call",))
"""The same, with its own gradient."""

CONTROL = frozenset(("cond", "scan", "shard_map", "while"))
"""Calls that choose, repeat or distribute their bodies."""

READ_INTO = JITTED | REMATTED | CUSTOM_JVP | CUSTOM_VJP | CONTROL
"""Calls whose bodies are part of the program."""

OPAQUE = frozenset(
    (
        "call_exported", "call_hi_primitive", "call_hi_primitive_linearized", "composite", "create_linear",
        "custom_jvp_call_jaxpr", "custom_lin", "custom_linear_solve", "custom_vmap_call", "eval_jaxpr", "jaxpr_call", "linear_call",
        "run_scoped", "run_state", "stage",
    )
)  # fmt: skip
"""Calls that are evaluated whole: their bodies may hold products, and are not part of the program."""

MEANINGS: dict[str, frozenset[str]] = {
    "move": MOVES,
    "elementwise": ELEMENTWISE,
    "reduction": REDUCTIONS,
    "product": PRODUCTS,
    "hidden": HIDDEN,
    "ragged": RAGGED,
    "linear algebra": LINEAR_ALGEBRA,
    "indexed": INDEXED,
    "constant": CONSTANTS,
    "random": RANDOM,
    "bits": BITS,
    "sparse": SPARSE,
    "collective": COLLECTIVES,
    "effect": EFFECTS,
    "call": JITTED | REMATTED | CUSTOM_JVP | CUSTOM_VJP,
    "control": CONTROL,
    "opaque": OPAQUE,
}
"""Which primitives have which meaning. They share none."""

_OF = {name: meaning for meaning, names in MEANINGS.items() for name in names}

UNKNOWN = "unknown"
"""The meaning of a primitive that is in no table."""


def meaning(name: str) -> str:
    """Returns what a primitive means, or `UNKNOWN`.

    Args:
        name: of the primitive.

    Example:
        >>> meaning("transpose"), meaning("dot_general"), meaning("a_primitive_of_next_year")
        ('move', 'product', 'unknown')
    """
    return _OF.get(name, UNKNOWN)


def unknown(names: Iterable[str]) -> list[str]:
    """Returns those of the names that have no meaning here, sorted."""
    return sorted({name for name in names if meaning(name) == UNKNOWN})
