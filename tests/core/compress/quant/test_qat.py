"""qat: products of rounded weights, gradients as if they were not, codes that reproduce them, and its worth."""

import pytest
import torch

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.compress.judge import scores, texts
from llmctl.core.compress.quant.grid import fake
from llmctl.core.compress.quant.qat import by_token, export, rounded, tuned
from llmctl.core.device import Place
from llmctl.core.model.layers import Linear
from llmctl.core.train.loop import train
from llmctl.core.train.objectives import tokens_loss
from llmctl.core.train.optim import optimizers
from llmctl.spec.qat import Tuning
from llmctl.spec.quant import GRIDS, Grid, QuantConfig
from llmctl.spec.quant_plan import QuantPlan

FP32 = Place(torch.device("cpu"), torch.float32)


def test_the_gradient_is_that_of_the_rounded_product_taken_at_the_weight():
    torch.manual_seed(0)
    linear, grid = Linear(64, 8), GRIDS["int2"]
    torch.nn.init.normal_(linear.weight)
    torch.nn.init.normal_(linear.bias)
    holder = torch.nn.ModuleDict({"one": linear})
    rounded(holder, ["one"], grid, torch.float32)
    x, seen = torch.randn(5, 64, requires_grad=True), torch.randn(5, 8)
    (holder["one"](x) * seen).sum().backward()
    values = fake(linear.weight.detach(), grid, torch.float32)
    assert torch.equal(holder["one"](x), torch.nn.functional.linear(x, values, linear.bias))
    torch.testing.assert_close(linear.weight.grad, seen.t() @ x.detach())
    torch.testing.assert_close(x.grad, seen @ values)


@pytest.mark.parametrize("grid", [GRIDS["w8a8"], Grid("fp8", 8, dynamic=True)], ids=str)
def test_inputs_have_a_scale_for_each_token(grid):
    x = torch.randn(3, 64) * torch.tensor([[1.0], [1000.0], [0.0]])
    made = by_token(x, grid)
    assert torch.equal(made[2], x[2])
    for row, other in zip(x[:2], made[:2], strict=True):
        assert 0 < (row - other).norm() / row.norm() < (0.01 if grid.kind == "int" else 0.05)


@pytest.mark.parametrize("variant", ["llama", "gpt2", "bert", "t5"])
@pytest.mark.parametrize("scheme", ["int4", "w8a8", "fp8"])
def test_what_is_exported_scores_as_it_did_in_training(variant, scheme, written, tmp_path):
    source = written(variant)
    plan = QuantPlan.of(source, QuantConfig(scheme=scheme, method="qat"))
    model = Checkpoint.open(source).model(writable=True)
    rounded(model, plan.matrices, plan.quant.grid, torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():  # norms, biases and tables are trained, too
            parameter.add_(0.01 * torch.randn_like(parameter))
    (tmp_path / "out").mkdir()
    export(model, plan, tmp_path / "out")
    other = Checkpoint.open(tmp_path / "out").model()
    batch = torch.randint(3, 60, (2, 9))
    given = {"memory": model.encode(batch)} if variant == "t5" else {}
    taken = {"memory": other.encode(batch)} if variant == "t5" else {}
    with torch.inference_mode():
        one, two = model(batch, **given), other(batch, **taken)
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-5)


def test_training_goes_on_where_it_stopped_and_is_worth_more_than_rounding_afterwards(learned, tmp_path):
    plan = QuantPlan.of(learned.path, QuantConfig(scheme="int2", group_size=32, method="qat"))
    place, tuning = Place(torch.device("cpu"), torch.bfloat16), Tuning(steps=20, batch_tokens=1024, lr=6e-4)

    def trained(name, sittings):
        (tmp_path / name).mkdir()
        for stop in sittings:
            run = tuned(tmp_path / name, plan, str(learned.tokens), tuning, place, 0)
            run.probes = {}
            run.resume()
            for _ in run.go():
                if run.done == stop:
                    run.save()
                    break
        run.finish()
        return run.model

    model = trained("at once", [20])
    interrupted = trained("in two", [7, 20])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), interrupted.parameters(), strict=True))

    control = learned.model().train()
    run = tuned(tmp_path / "at once", plan, str(learned.tokens), tuning, place, 0)
    for _ in train(control, run.batches, tokens_loss, run.config, optimizers(control, run.config), place, 20):
        pass
    with torch.no_grad():
        for name in plan.matrices:
            weight = control.get_submodule(name).weight
            weight.copy_(fake(weight, plan.quant.grid, torch.float32))

    checkpoint = Checkpoint.open(learned.path)
    rows = texts(str(learned.tokens), checkpoint.config, checkpoint.tokenizer(), 6000)
    exported = Checkpoint.open(tmp_path / "at once").model()
    teacher = checkpoint.model()
    one = scores(teacher, exported, rows(), FP32)[1]
    other = scores(teacher, control.eval(), rows(), FP32)[1]
    assert one["loss"] == pytest.approx(scores(teacher, model.eval(), rows(), FP32)[1]["loss"], abs=1e-5)
    assert one["loss"] < other["loss"] - 0.03
