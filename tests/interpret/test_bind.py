"""What bind finds, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.plan.serial import from_json, to_json
from tests.interpret.zoo import CASES
from tests.values import normal


def _plan(name, rules):
    case = CASES[name]()
    return lb.bind(case.fn, rules, case.params, *case.args)


def test_paths_are_leaf_paths():
    paths = [row.path for row in _plan("attention", {})]
    assert paths == ["query/kernel", "key/kernel", "value/kernel", "dot_0", "dot_1", "out/kernel"]


def test_products_take_the_common_prefix_of_their_weights():
    paths = [row.path for row in _plan("scanned_remat", {})]
    assert "layers/MultiHeadDotProductAttention_0/dot_0" in paths
    assert paths[-1] == "head/kernel"


def test_repeats_are_numbered_and_share_the_weight():
    case = CASES["tied_embedding"]()
    plan = lb.bind(case.fn, {"**": "w8,a8"}, case.params, *case.args)
    assert [row.path for row in plan] == ["embedding@0", "proj/kernel", "embedding@1"]
    assert {row.weight.key for row in plan if row.base == "embedding"} == {"embedding"}
    qstate = lb.init(case.fn, plan, case.params, *case.args)
    assert set(qstate["fixed"]) == {"embedding", "embedding@1", "proj/kernel"}


def test_scanned_layers_have_a_scale_each():
    case = CASES["scanned_remat"]()
    plan = lb.bind(case.fn, {"**": "w4,a8"}, case.params, *case.args)
    qstate = lb.init(case.fn, plan, case.params, *case.args)
    assert qstate["fixed"]["layers/up/kernel"]["weight"]["scale"].shape == (3, 1, 16)
    assert qstate["fixed"]["layers/up/kernel"]["input"]["scale"].shape == (3, 1, 1, 1)
    assert len(set(np.asarray(qstate["fixed"]["layers/up/kernel"]["input"]["scale"]).ravel().tolist())) == 3


def test_derived_weights_are_named_and_dropped():
    lstm, norm, lora = (_plan(name, {"**": "w8,a8"}) for name in ("lstm", "weight_norm", "lora"))
    assert [row.weight.kind for row in (*lstm, *norm, *lora)] == ["derived"] * 4
    assert lora.dropped == ("a", "b", "kernel")
    assert [row.path for row in lora] == ["kernel"]
    assert all("+" in row.path for row in lstm)


def test_paths_agree_between_training_and_evaluation_and_batch_sizes():
    case = CASES["linen_conv_eval"]()
    state, x = case.args
    small = lb.bind(case.fn, {"**": "w8,a8"}, case.params, state, x[:1])
    assert small == lb.bind(case.fn, {"**": "w8,a8"}, case.params, *case.args)
    train = CASES["linen_conv_train"]()
    assert small == lb.bind(train.fn, {"**": "w8,a8"}, train.params, *train.args)


def test_table_names_everything():
    text = str(_plan("linen_conv_eval", {"head/*": "w8,a8", "depthwise/*": "keep", "**": "w4,a8"}))
    for word in (
        "head/kernel",
        "int8/channel/sym",
        "int4/channel/sym",
        "keep",
        "MACs",
        "bits/w",
        "left in float: depthwise",
    ):
        assert word in text


def test_json_round_trip_keeps_specs_and_serves():
    case = CASES["linen_conv_eval"]()
    plan = lb.bind(case.fn, {"**": lb.lsq("w4/g2,a8")}, case.params, *case.args)
    qstate = lb.init(case.fn, plan, case.params, *case.args)
    qparams = lb.pack(plan, case.params, qstate)
    back = from_json(to_json(plan))
    assert to_json(back) == to_json(plan)
    assert [row.path for row in back] == [row.path for row in plan]
    assert [site.spec for row in back for site in row.sites] == [site.spec for row in plan for site in row.sites]
    want, got = (lb.execute(case.fn, p)(qparams, *case.args) for p in (plan, back))
    np.testing.assert_array_equal(want, got)
    with pytest.raises(ValueError, match="bind again"):
        lb.simulate(case.fn, back)(case.params, qstate, *case.args)


def test_a_rule_that_matches_nothing_raises_with_the_nearest_paths():
    with pytest.raises(ValueError, match=r"'heat/\*' matches no operation.*head/kernel"):
        _plan("linen_conv_eval", {"heat/*": "w8,a8", "**": "w4"})


def test_a_rule_that_is_shadowed_raises():
    with pytest.raises(ValueError, match=r"never applies.*before it"):
        _plan("linen_conv_eval", {"**": "w4", "head/*": "w8,a8"})


@pytest.mark.parametrize("rules", [["w8"], {"**": 8}, {3: "w8"}, {"**": lb.rtn("w8").weight}])
def test_rules_of_a_wrong_type_raise(rules):
    with pytest.raises(TypeError):
        _plan("mlp", rules)


def test_disagreeing_shared_weight_names_both():
    params = {"w": normal(0, 6, 6)}
    with pytest.raises(ValueError, match=r"w@0 .* and w@1 .* share the weight w but contract different axes"):
        lb.bind(lambda p, x: (x @ p["w"]) @ p["w"].T, {"**": "w8,a8"}, params, normal(1, 3, 6))
    lb.bind(lambda p, x: (x @ p["w"]) @ p["w"].T, {"**": "w8/tensor,a8"}, params, normal(1, 3, 6))


def test_shared_weight_with_two_rules_raises():
    with pytest.raises(ValueError, match=r"embedding@0 .* and embedding@1 .* share the weight"):
        _plan("tied_embedding", {"embedding@1": "w8,a8", "**": "w4,a8"})


def test_a_mixed_operand_needs_its_own_rule():
    def fn(p, x):
        gate = jax.nn.sigmoid(x.mean(0))
        return x @ (p["w"] * gate[:, None])

    params, x = {"w": normal(0, 6, 5)}, normal(1, 3, 6)
    with pytest.raises(ValueError, match="mixes parameters with data"):
        lb.bind(fn, {"**": "w8,a8"}, params, x)
    (row,) = lb.bind(fn, {"dot_0": "w8,a8"}, params, x)
    assert row.sites[1].kind == "mixed"


def test_a_constant_weight_warns():
    w = normal(0, 6, 5)
    with pytest.warns(UserWarning, match="closed over"):
        plan = lb.bind(lambda p, x: (x + p["b"]) @ w, {"**": "w8,a8"}, {"b": normal(1, 6)}, normal(2, 3, 6))
    assert plan.rows[0].weight.kind == "constant"


def test_an_unseen_matmul_is_named():
    from jax import lax

    def fn(p, x):
        return lax.custom_linear_solve(lambda y: p["w"] @ y, x, lambda mv, b: jnp.linalg.inv(p["w"]) @ b)

    plan = lb.bind(fn, {}, {"w": normal(0, 6, 6)}, normal(1, 6))
    assert plan.unseen[0][0] == "custom_linear_solve"
    assert "test_bind.py" in plan.unseen[0][1]
    assert "unseen" in str(plan)


def test_groups_that_do_not_line_up_raise_at_bind():
    params = {"w": normal(0, 6, 4, 5)}
    with pytest.raises(ValueError, match="line up"):
        lb.bind(lambda p, x: x @ p["w"].reshape(24, 5), {"**": "w4/g3,a8"}, params, normal(1, 3, 24))


def test_static_inputs_are_per_tensor():
    with pytest.raises(ValueError, match="use /tensor, or /dynamic"):
        _plan("mlp", {"**": "w8,a8/channel"})


def test_sums_that_may_overflow_raise():
    params = {"w": jax.ShapeDtypeStruct((70_000, 2), jnp.float32)}
    with pytest.raises(ValueError, match="may pass int32"):
        lb.bind(lambda p, x: x @ p["w"], {"**": "w8,a8"}, params, jax.ShapeDtypeStruct((1, 70_000), jnp.float32))


def test_another_function_than_the_plan_lists_both():
    case = CASES["mlp"]()
    plan = lb.bind(case.fn, {"**": "w8,a8"}, case.params, *case.args)
    qstate = lb.init(case.fn, plan, case.params, *case.args)
    with pytest.raises(ValueError, match=r"lacks \['b/kernel'\]"):
        lb.simulate(lambda p, x: x @ p["a"]["kernel"], plan)(case.params, qstate, *case.args)


def test_custom_gradients_are_never_lost_in_silence():
    case = CASES["own_gradient"]()
    plan = lb.bind(case.fn, {"**": "w8,a8"}, case.params, *case.args)
    qstate = lb.init(case.fn, plan, case.params, *case.args)
    with pytest.raises(ValueError, match="with its own gradient"):
        lb.simulate(case.fn, plan)(case.params, qstate, *case.args)
    lb.simulate(case.fn, plan, custom_vjp="body")(case.params, qstate, *case.args)
