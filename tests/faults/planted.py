"""Small faults, one per room or so, and the tests that must find each.

A fault is a replacement: its old text stands once in its file. `make test-faults` plants one after the other in a copy of the
tree. To add one, write what a tired programmer would, name the quickest test that must fail, and run `make test-faults FAULTS=name`.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: what went wrong.
        file: from the root of the tree.
        old: text that stands in it once.
        new: what stands there instead.
        tests: node ids, one of which must fail at least; files and doctests count.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        "ties are rounded away from zero",
        "lowbit/core/rounding.py",
        "return lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)",
        "return lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO)",
        ("tests/formats/test_formats.py::test_half_away_differs_at_ties_only",),
    ),
    Fault(
        "a product is fused with the sum after it",
        "lowbit/core/rounding.py",
        "return unfused(a * b)",
        "return a * b",
        ("tests/core/test_numbers.py::test_products_are_rounded_before_a_sum",),
    ),
    Fault(
        "the last, short group has no scale",
        "lowbit/core/blocks.py",
        "math.ceil(n / block) for n, block in zip(shape, blocks, strict=True))",
        "n // block for n, block in zip(shape, blocks, strict=True))",
        ("tests/core/test_blocks.py::test_against_a_loop",),
    ),
    Fault(
        "the gradient passes on the bound of a range",
        "lowbit/core/rounding.py",
        "jnp.where(x >= high, high, x))",
        "jnp.where(x > high, high, x))",
        ("tests/core/test_numbers.py::test_a_clip_passes_the_gradient_strictly_inside",),
    ),
    Fault(
        "the range of an affine grid leaves out zero",
        "lowbit/core/ranges.py",
        "low, high = at_least(at_most(low, 0.0), -_LARGEST),",
        "low, high = at_least(low, -_LARGEST),",
        ("tests/core/test_numbers.py::test_a_range_includes_zero",),
    ),
    Fault(
        "of several batches, the range of the last one counts",
        "lowbit/core/statistics.py",
        "return smaller(low, now_low), larger(high, now_high), seen + 1",
        "return now_low, now_high, seen + 1",
        ("tests/interpret/test_promises.py::test_the_range_is_that_of_all_batches",),
    ),
    Fault(
        "a step is learned at full speed",
        "lowbit/quantizers/lsq.py",
        "1.0 / math.sqrt(count * steps)",
        "1.0 / math.sqrt(steps)",
        ("tests/quantizers/test_methods.py::test_lsq_golden",),
    ),
    Fault(
        "levels are not clipped to the format",
        "lowbit/formats/integer.py",
        "return round(clip_between(x, low, high))",
        "return round(x)",
        ("tests/formats/test_formats.py::test_every_format",),
    ),
    Fault(
        "NaN becomes a number in fp8",
        "lowbit/formats/minifloat.py",
        "code = jnp.where(magnitude > 0x7F800000, self.nan_code or 0, code)",
        "code = jnp.where(magnitude > 0x7F800000, 0, code)",
        ("tests/formats/test_formats.py::test_floats_are_those_of_ml_dtypes",),
    ),
    Fault(
        "half way, a value takes the upper level of a codebook",
        "lowbit/formats/codebook.py",
        "value = jnp.where(x > bound, jnp.float32(level), value)",
        "value = jnp.where(x >= bound, jnp.float32(level), value)",
        ("tests/formats/test_formats.py::test_codebooks",),
    ),
    Fault(
        "the last rule that matches wins",
        "lowbit/plan/match.py",
        "next((rule for rule in rules if rule.is_for(path)), None)",
        "next((rule for rule in reversed(rules) if rule.is_for(path)), None)",
        ("tests/interpret/test_bind.py::test_a_rule_that_is_shadowed_raises",),
    ),
    Fault(
        "codes share bytes along an axis that is not contracted",
        "lowbit/packed/bits.py",
        "return packed_length(shape[axis], bits) * rest, axis not in contract, -axis",
        "return packed_length(shape[axis], bits) * rest, axis in contract, -axis",
        ("tests/packed/test_native.py::test_levels_that_are_no_integers_run_natively",),
    ),
    Fault(
        "bfloat16 scales are stored in float32",
        "lowbit/core/scales/floats.py",
        "    def dtype(self) -> str | None:\n        return self.word",
        '    def dtype(self) -> str | None:\n        return "float32" if self.word == "bfloat16" else self.word',
        (
            "tests/packed/test_files.py::test_bfloat16_stays_two_bytes",
            "tests/packed/test_arrays.py::test_bits_are_real",
        ),
    ),
    Fault(
        "an altered file is read",
        "lowbit/packed/files.py",
        "if content.count(mark) != 1 or hashlib",
        "if content.count(mark) > 1 and hashlib",
        ("tests/packed/test_files.py::test_an_altered_byte_or_a_truncation_is_refused",),
    ),
    Fault(
        "new weights are served from the order prepared for old ones",
        "lowbit/interpret/prepared.py",
        "if len(sources) != len(arrays) or any(ref() is not x for ref, x in zip(sources, arrays, strict=True)):",
        "if len(sources) != len(arrays):",
        ("tests/interpret/test_promises.py::test_other_weights_are_not_served_from_a_cache",),
    ),
    Fault(
        "source lines are lost in folders of some names",
        "lowbit/program/compat.py",
        "        if not _is_between(frame.file_name):",
        '        if "/jax/" not in frame.file_name and not _is_between(frame.file_name):',
        ("tests/interpret/test_source_lines.py::test_rows_and_errors_have_the_users_line",),
    ),
    Fault(
        "the product of both zero points is dropped",
        "lowbit/interpret/integer/compute.py",
        "- zero * of_left + count * zeros[0] * zero",
        "- zero * of_left",
        ("tests/interpret/test_integer_grouped.py::test_the_grid_of_the_weights_is_kept",),
    ),
    Fault(
        "what lies below a half is not looked at",
        "lowbit/interpret/integer/fixed.py",
        "(bit(words, s - 1) & (has_below(words, s - 1) | (floor & 1)))",
        "(bit(words, s - 1) & (floor & 1))",
        ("tests/interpret/test_integer_fixed.py::test_roundings_are_what_they_are_called",),
    ),
    Fault(
        "the input's scale is multiplied before the weight's",
        "lowbit/interpret/epilogue.py",
        "rounded_product(rounded_product(value, first), second)",
        "rounded_product(rounded_product(value, second), first)",
        ("tests/interpret/test_promises.py::test_other_weights_are_not_served_from_a_cache",),
    ),
    Fault(
        "the sign of a folded mean is lost",
        "lowbit/rewrites/batch_norm.py",
        'elif step.kind == "rsub":\n                scale, shift = -scale, factor - shift',
        'elif step.kind == "rsub":\n                scale, shift = -scale, shift - factor',
        ("tests/rewrites/test_batch_norm.py::test_plain_functions_fold",),
    ),
    Fault(
        "a weight is frozen where it is, not on its mean",
        "lowbit/learn/oscillation.py",
        "jnp.round(state.mean), state.held)",
        "levels, state.held)",
        ("tests/learn/test_learn.py::test_a_weight_is_held_at_its_mean_not_where_it_is",),
    ),
    Fault(
        "a transposed weight keeps the blocks of its old axes",
        "lowbit/interpret/moves.py",
        "[q.blocks[i] for i in order]",
        "list(q.blocks)",
        ("tests/interpret/test_layouts.py::test_a_transposed_weight_takes_its_groups_along",),
    ),
    Fault(
        "the ONNX form drops the bias of a convolution",
        "lowbit/export/onnx_graph/finish.py",
        'return Node("Conv", [x, weight, g.constant(bias) if written is None else written], product.node.attributes)',
        'return Node("Conv", [x, weight], product.node.attributes)',
        ("tests/export/test_onnx.py::test_a_bias_is_the_sum_of_its_steps",),
    ),
    Fault(
        "C clamps at one end only",
        "lowbit/export/c/elementwise.py",
        'return Expr(emitter.call("min", value.dtype, [inner, high]), max(inner.level, high.level))',
        "return inner",
        ("tests/export/test_c_primitives.py::test_arithmetic_is_that_of_xla",),
    ),
    Fault(
        "a NaN among the results counts as equal",
        "lowbit/export/verify.py",
        "is_same = (wide[0] == wide[1]) | (np.isnan(wide[0]) & np.isnan(wide[1]))",
        "is_same = (wide[0] == wide[1]) | np.isnan(wide[0]) | np.isnan(wide[1])",
        ("tests/export/test_verify.py::test_inexact_operations_have_a_measured_limit",),
    ),
    Fault(
        "codes of a byte are in the other order",
        "kernels/lowbit_kernels/layout.py",
        "            shift = k * bits - byte * 8  # where bit 0 of code k lies, counted from bit 0 of this byte",
        "            shift = (count - 1 - k) * bits - byte * 8",
        ("tests/kernels/test_layout.py::test_golden_bytes",),
    ),
    Fault(
        "a row that holds NaN is quantized as if it did not",
        "kernels/lowbit_kernels/numerics.py",
        "return jnp.where(jnp.isfinite(absmax), scale, absmax - absmax)",
        "return jnp.where(jnp.isfinite(absmax), scale, jnp.ones_like(scale))",
        ("tests/kernels/test_matmul.py::test_special_values_are_decided",),
    ),
    Fault(
        "a key of the command line is not checked",
        "lowbit/cli/changes.py",
        "        _check_known(name, known, key, names)\n        now =",
        "        now =",
        ("tests/cli/test_cli.py::test_wrong_words",),
    ),
    Fault(
        "a maximum forgets NaN",
        "lowbit/core/extremes.py",
        "bits = lax.bitcast_convert_type(x, jnp.int32) & _MAGNITUDE",
        "bits = lax.bitcast_convert_type(jnp.nan_to_num(x), jnp.int32) & _MAGNITUDE",
        ("tests/interpret/test_nan.py::test_extremes_keep_nan",),
    ),
    Fault(
        "NaN at an integer input is a number when served",
        "lowbit/interpret/execute.py",
        "if keeps_nan and is_integer_pair(left, right)",
        "if not keeps_nan and is_integer_pair(left, right)",
        ("tests/interpret/test_nan.py::test_both_operands_of_a_product_of_activations",),
    ),
    Fault(
        "a dynamic input is served on the full range, whatever its rule",
        "lowbit/interpret/inputs.py",
        "    if site.own_code:\n        if site.quantizer is None:",
        "    if site.own_code and not spec.dynamic:\n        if site.quantizer is None:",
        ("tests/contract/test_inputs.py::test_execute_is_simulate",),
    ),
    Fault(
        "the first batch keeps the sample",
        "lowbit/core/statistics.py",
        "takes * total < flat.size",
        "takes * total < 0.5 * flat.size",
        ("tests/core/test_sample.py::test_every_value_is_as_likely_as_any_other",),
    ),
    Fault(
        "a threshold's gradient stops at the outer level",
        "lowbit/quantizers/tqt.py",
        "jnp.where((whole < low) | (whole > high), bound, x)",
        "jnp.where((x < low) | (x > high), bound, x)",
        ("tests/quantizers/test_gradients.py::test_tqt_of_inputs",),
    ),
    Fault(
        "zeros are plus and minus one in a format without zero",
        "lowbit/core/scales/bounds.py",
        "spec.scale.spec is None and spec.format.has_zero",
        "spec.scale.spec is None",
        ("tests/core/test_extreme_blocks.py::test_zeros_have_no_sign_without_a_zero",),
    ),
    Fault(
        "nobody is told of the training switch",
        "lowbit/interpret/simulate.py",
        "y if train else watched(plan, y)",
        "y",
        ("tests/interpret/test_switch.py",),
    ),
    Fault(
        "the part of a writer that lives is taken for a stale one",
        "lowbit/core/atomic.py",
        "            if is_ours:\n                if os.path.lexists(part / _OLD)",
        "            if part:\n                if os.path.lexists(part / _OLD)",
        ("tests/core/test_atomic.py::test_a_writer_that_lives_keeps_its_part",),
    ),
    Fault(
        "a weight of integers is read as one of floats",
        "lowbit/packed/valid.py",
        "must(hold=_is_float(q.dtype)",
        "must(hold=isinstance(q.dtype, str)",
        ("tests/packed/test_resigned.py::test_each_static_field_is_checked_against_the_arrays",),
    ),
    Fault(
        "GPTQ feeds on the error of the moved value, not of the weight",
        "lowbit/solvers/gptq.py",
        "return own.at[i].set(rows[i] - value), levels.at[i].set(level)",
        "return own.at[i].set(target - value), levels.at[i].set(level)",
        ("tests/solvers/test_laws.py::test_gptq_is_the_papers",),
    ),
    Fault(
        "a state that was cast to integers is a state",
        "lowbit/core/qtensor.py",
        "if not is_there or not jnp.issubdtype(table.dtype, jnp.floating):",
        "if not is_there:",
        ("tests/interpret/test_belongs.py::test_scales_that_were_cast_are_none",),
    ),
    Fault(
        "a custom operator of a LiteRT file is run",
        "lowbit/export/runners/litert.py",
        "(max(c.BuiltinCode(), c.DeprecatedBuiltinCode()), c.CustomCode())",
        "(c.DeprecatedBuiltinCode(), c.CustomCode())",
        ("tests/export/test_untrusted_litert.py::test_custom_operators_of_litert_are_refused",),
    ),
    Fault(
        "what a killed writer of a tuning table left stays",
        "kernels/lowbit_kernels/tuning.py",
        "if name.startswith(start) and name.endswith(end):",
        "if name.startswith(start) and name.startswith(end):",
        ("tests/kernels/test_tuning.py::test_a_writer_that_is_stopped_anywhere_leaves_a_whole_table",),
    ),
    Fault(
        "an infinite scale is served",
        "lowbit/packed/belongs.py",
        "return (wide >= SMALLEST_SCALE) & numpy.isfinite(wide)",
        "return wide >= SMALLEST_SCALE",
        ("tests/interpret/test_belongs.py",),
    ),
    Fault(
        "a reversed scan that is written out stacks its turns as they come",
        "lowbit/program/evaluate.py",
        "made = made[::-1] if loop.is_reversed else made",
        "made = list(made)",
        ("tests/program/test_read.py::test_scans_are_written_out_turn_by_turn",),
    ),
    Fault(
        "channels that a loop carries may differ after a turn",
        "lowbit/program/commuting.py",
        "            flow.channels.unify(flow.of(carry, lead + 1), flow.of(after, lead + 1), why)",
        "            flow.of(after, lead + 1)",
        ("tests/program/test_pairs.py::test_networks_scaled_are_the_same",),
    ),
    Fault(
        "ranges are exchanged, not equalized",
        "lowbit/rewrites/equalize.py",
        "np.sqrt(np.where(is_live, second, 1.0) / np.where(is_live, first, 1.0))",
        "np.where(is_live, second, 1.0) / np.where(is_live, first, 1.0)",
        ("tests/rewrites/test_rewrites.py::test_the_closed_form_of_one_pair",),
    ),
    Fault(
        "a block takes in what follows the operation before it",
        "lowbit/program/segments.py",
        "before |= {equation, *_tail(equation, holds, readers, order)}",
        "before |= {equation}",
        ("tests/observe/test_segment.py::test_a_residual_block_is_what_numpy_says",),
    ),
    Fault(
        "operations that read one value are not tied",
        "lowbit/allocate/ties.py",
        "return id(_origin(row.operation.equation.ins[index]))",
        "return row.path",
        ("tests/allocate/test_allocate.py::test_what_reads_one_input_has_one_grid_for_it",),
    ),
    Fault(
        "every piece of stacked layers is the first",
        "lowbit/packed/pieces.py",
        "jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, i * size, size), q)",
        "jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, 0, size), q)",
        ("tests/packed/test_pieces.py::test_prepared_pieces_are_the_whole",),
    ),
    Fault(
        "a penalty is known by its name",
        "lowbit/run/identity.py",
        "parts.append(self.of(cell.cell_contents))",
        "parts.append(self.of(type(cell.cell_contents).__name__))",
        ("tests/run/test_identity.py::test_values_that_are_closed_over",),
    ),
    Fault(
        "a training state is read back unchecked",
        "lowbit/core/kept.py",
        "return (arrays, note) if metadata[_SEAL] == _hash(arrays, note) else None",
        "return arrays, note",
        ("tests/run/test_folder.py::test_every_flipped_bit_of_a_state_is_refused",),
    ),
    Fault(
        "what was picked is looked up before a scan over it",
        "lowbit/interpret/kinds.py",
        "if is_leading or is_counted else None",
        "if is_leading else None",
        ("tests/interpret/test_picked.py::test_what_is_picked_and_then_scanned_over_is_quantized_once[index]",),
    ),
    Fault(
        "a packed model has the derivative of its integers, which is zero",
        "lowbit/interpret/execute.py",
        "if not has_derivative or op.is_lookup:",
        "if True:",
        (
            "tests/interpret/test_derivative.py::test_to_the_input_it_is_that_of_the_product_where_nothing_clips[dot-w8,a8]",
        ),
    ),
    Fault(
        "a weight comes out of a convolution's order transposed",
        "lowbit/packed/native.py",
        "now = [order.index(axis) for atoms in weight.axes for axis, _ in atoms]",
        "now = [*range(len(order))]",
        (
            "tests/interpret/test_derivative.py::test_to_the_input_it_is_that_of_the_product_where_nothing_clips[left-w8,a8]",
        ),
    ),
    Fault(
        "a full-integer plan inlines what has a gradient of its own",
        "lowbit/interpret/integer/flat.py",
        '("jit", "remat", read.OF_DATA, read.LAYERS)',
        '("jit", "remat", "custom_jvp", read.LAYERS)',
        ("tests/interpret/test_own_gradients.py::test_it_is_a_factor_of_the_gradient_of_the_body[weight]",),
    ),
)
