"""QuantPlan: which matrices are quantized, groups that fit them, and sizes that the files then have."""

import pytest

from llmctl.errors import Exit, UserError
from llmctl.spec.quant import QuantConfig
from llmctl.spec.quant_plan import QuantPlan
from llmctl.spec.sizes import shapes
from tests.core.conftest import written  # noqa: F401 - a fixture


def test_the_matrices_of_layers_are_quantized_and_all_else_stays(written):  # noqa: F811
    plan = QuantPlan.of(written("llama"), QuantConfig(scheme="int8"))
    assert {name.split(".", 3)[-1] for name in plan.matrices} == {
        "attention.q", "attention.k", "attention.v", "attention.out", "mlp.gate", "mlp.up", "mlp.down"
    }  # fmt: skip
    assert len(plan.matrices) == 14
    groups = plan.groups
    assert list(groups) == ["embedding", "layers", "head", "other"]
    assert sum(part["parameters"] for part in groups.values()) == sum(
        shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes(plan.config).values()
    )
    assert groups["head"]["bytes"] == groups["head"]["bytes_before"]
    assert sum(part["bytes"] for part in groups.values()) == plan.bytes


def test_the_head_is_quantized_on_request_unless_it_is_the_embedding(written):  # noqa: F811
    assert "head" in QuantPlan.of(written("llama"), QuantConfig(scheme="int8", head=True)).matrices
    tied = QuantPlan.of(written("llama3"), QuantConfig(scheme="int8", head=True))
    assert "head" not in tied.matrices
    assert any("--head" in note for note in tied.notes)


def test_groups_shrink_until_all_columns_divide_by_them_and_rows_are_the_last_resort(written):  # noqa: F811
    plan = QuantPlan.of(written("llama"), QuantConfig(scheme="int4"))  # columns: 24 and 40
    assert plan.quant.grid.group == 8
    assert any("groups are of 8" in note for note in plan.notes)
    with pytest.raises(UserError, match=r"do not divide by it: decoder.layers.0.attention.q has 24") as told:
        QuantPlan.of(written("qwen2"), QuantConfig(scheme="int4", group_size=16))
    assert told.value.code == Exit.MISMATCH
    assert "--group-size 8" in told.value.hint


def test_what_is_kept_is_named_by_parts_of_names_and_a_fused_matrix_is_kept_whole(written):  # noqa: F811
    plan = QuantPlan.of(written("llama"), QuantConfig(scheme="int8", keep=("mlp.down", "layers.1")))
    assert set(plan.matrices) == {
        f"decoder.layers.0.{name}"
        for name in ("attention.q", "attention.k", "attention.v", "attention.out", "mlp.gate", "mlp.up")
    }
    fused = QuantPlan.of(written("gpt2"), QuantConfig(scheme="int8", keep=("attention.q",)))
    assert not any(name.endswith((".q", ".k", ".v")) for name in fused.matrices)
    assert any("stored as one matrix" in note for note in fused.notes)
    with pytest.raises(UserError, match="--keep nothing"):
        QuantPlan.of(written("qwen3"), QuantConfig(scheme="int8", keep=("nothing",)))
    with pytest.raises(UserError, match="is left to quantize"):
        QuantPlan.of(written("neox"), QuantConfig(scheme="int8", keep=("layers",)))


def test_hqq_alone_has_zero_points_by_itself():
    assert not QuantConfig(method="hqq").grid.symmetric
    assert QuantConfig(method="hqq", symmetric=True).grid.symmetric
    assert QuantConfig(method="hqq", scheme="w8a8").grid.symmetric
    assert QuantConfig(method="rtn").grid.symmetric
    assert not QuantConfig(method="rtn", symmetric=False).grid.symmetric


@pytest.mark.parametrize(
    "options",
    [
        {"scheme": "fp16", "method": "hqq"},
        {"scheme": "fp8", "method": "hqq"},
        {"scheme": "nf4", "symmetric": False},
        {"scheme": "nf4", "clip": "mse"},
        {"scheme": "mxfp4", "group_size": 64},
        {"scheme": "int3", "layout": "gptq"},
        {"scheme": "nf4", "layout": "compressed-tensors"},
        {"scheme": "int8", "group_size": -1},
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(UserError) as told:
        QuantConfig(**options)
    assert told.value.code == Exit.USAGE


def test_matrices_that_bitsandbytes_fails_on_are_named_beforehand(written):  # noqa: F811
    notes = QuantPlan.of(written("llama"), QuantConfig(scheme="nf4")).notes  # columns: 24 and 40
    assert any("bitsandbytes ends with an error on CPUs" in note and "attention.q" in note for note in notes)
