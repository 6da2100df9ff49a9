"""Faults of weights on their way to an operation and of derivatives, which make one route another; and of what is found by its place."""

from tests.faults.fault import Fault

FAULTS = (
    Fault(
        "what was picked is looked up before a scan over it",
        "lowbit/interpret/kinds.py",
        "if is_leading or is_counted else None",
        "if is_leading else None",
        ("tests/interpret/test_picked.py::test_what_is_picked_and_then_scanned_over_is_quantized_once[index]",),
    ),
    Fault(
        "what was picked and computed with is rounded again at its product",
        "lowbit/interpret/bind.py",
        "if op.weight is None and picked and rule.quantizers.input is not None:",
        "if op.weight is None and not picked and rule.quantizers.input is None:",
        (
            "tests/interpret/test_picked.py::test_what_is_picked_and_computed_with_is_rounded_in_its_table_alone[scaled after]",
        ),
    ),
    Fault(
        "what rounding puts beyond a grid has no gradient",
        "lowbit/interpret/integer/interpretations.py",
        "forward(site, state, _within(placed, site.spec, *grids[path]), layer_operand(site))",
        "forward(site, state, placed, layer_operand(site))",
        ("tests/interpret/test_integer_gradient.py::test_the_gradient_is_that_of_the_function[log_softmax]",),
    ),
    Fault(
        "a packed model has the derivative of its integers, which is zero",
        "lowbit/interpret/ordinary.py",
        "if not how.has_derivative or op.is_lookup:",
        "if True:",
        (
            "tests/interpret/test_derivative.py::test_to_the_input_it_is_that_of_the_product_where_nothing_clips[dot-w8,a8]",
        ),
    ),
    Fault(
        "a weight comes out of a convolution's order transposed",
        "lowbit/packed/restored.py",
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
    Fault(
        "a sum of codes is not one of what they stand for",
        "lowbit/interpret/integer/ops/sum.py",
        "x = taken.codes[0].astype(jnp.int32) - taken.zeros[0]",
        "x = taken.codes[0].astype(jnp.int32)",
        ("tests/contract/test_kinds.py::test_what_it_computes_is_its_definition[sum]",),
    ),
    Fault(
        "what is selected comes in the other order",
        "lowbit/interpret/integer/ops/select.py",
        "[predicate, *values[: len(rest)]]",
        "[predicate, *values[: len(rest)][::-1]]",
        ("tests/contract/test_kinds.py::test_what_it_computes_is_its_definition[select]",),
    ),
    Fault(
        "the best of several choices may be over the budget",
        "lowbit/allocate/baselines.py",
        "if choice is not None and problem.is_within(choice)]",
        "if choice is not None]",
        ("tests/contract/test_rooms.py::test_an_allocator_stays_within_its_budget[baselines.best_uniform]",),
    ),
    Fault(
        "an eval writes a number where nothing was measured",
        "lowbit/run/evals/column.py",
        'return f"{max(values):.2g}" if values else "-"',
        'return f"{max(values, default=0.0):.2g}"',
        ("tests/contract/test_rooms.py::test_an_eval_fills_its_columns[iree.iree]",),
    ),
    Fault(
        "a target names a step that there is none of",
        "lowbit/targets/table.py",
        '"select": "TFLite-Micro has no kernel that selects integers"',
        '"selection": "TFLite-Micro has no kernel that selects integers"',
        ("tests/contract/test_rooms.py::test_a_target_speaks_of_what_there_is[tflm]",),
    ),
)
