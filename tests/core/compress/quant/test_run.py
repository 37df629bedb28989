"""run: what streams through opens again as the codes that were chosen, in families that lay matrices otherwise."""

import pytest
import torch

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.compress.quant.grid import dense, quantise
from llmctl.core.compress.quant.hqq import hqq
from llmctl.core.compress.quant.run import stream
from llmctl.spec.quant import QuantConfig
from llmctl.spec.quant_plan import QuantPlan

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("llama3", {"scheme": "int4", "method": "hqq"}),  # one head of keys: zero points are a column of one word
        ("neox", {"scheme": "fp8", "head": True}),  # the head is embed_out in files, lm_head in transformers
        ("gpt2", {"scheme": "int4", "layout": "awq"}),  # q, k and v in one matrix, stored the other way round
        ("bloom", {"scheme": "int8"}),  # q, k and v by turns, head by head
        ("t5", {"scheme": "int8", "layout": "gptq"}),
        ("bert", {"scheme": "w8a8"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_opens_as_the_codes_that_were_chosen(variant, options, written, tmp_path):
    source = written(variant)
    plan = QuantPlan.of(source, QuantConfig(**options))
    (tmp_path / "out").mkdir()
    stream(plan, tmp_path / "out", 1, CPU)
    before, after = Checkpoint.open(source).model(), Checkpoint.open(tmp_path / "out").model()
    choose = hqq if plan.quant.method == "hqq" else quantise
    scales = torch.float16 if plan.quant.layout else torch.float32
    for name in plan.matrices:
        codes = choose(before.get_submodule(name).weight.detach(), plan.quant.grid, scales)
        made = dense(codes._replace(scale=codes.scale.float()), plan.quant.grid, torch.float32)
        torch.testing.assert_close(after.get_submodule(name).dense().float(), made, atol=1e-6, rtol=1e-6)


def test_as_many_threads_as_there_are_change_nothing(written, tmp_path):
    source = written("llama")
    plan, told = QuantPlan.of(source, QuantConfig(scheme="int4")), []
    for threads in (1, 3):
        (tmp_path / str(threads)).mkdir()
        told.append(stream(plan, tmp_path / str(threads), threads, CPU))
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("1", "3"))
    assert one == other
    assert told[0] == told[1]
