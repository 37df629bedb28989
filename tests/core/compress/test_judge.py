"""What a smaller model is worth: the figures are those of the formulas, and of eval-ppl."""

import pytest
import torch

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.compress.judge import Judge, scores, texts
from llmctl.core.device import Place
from llmctl.errors import Exit, UserError
from llmctl.spec.judging import Judging, ratios

CPU = Place(torch.device("cpu"), torch.float32)


def test_a_model_beside_itself_has_moved_nowhere_and_a_changed_one_has(learned):
    checkpoint = Checkpoint.open(learned.path)
    judging = Judging(eval=str(learned.tokens), eval_tokens=4000, speed_tokens=4)
    judge = Judge(judging, checkpoint.config, checkpoint.tokenizer(), CPU)
    model, other = learned.model(), learned.model()
    before, after = judge.compare(model, model)
    assert after["kl"] == pytest.approx(0, abs=1e-6) and before["loss"] == after["loss"]
    assert before["tokens_per_second"] > 0
    with torch.no_grad():
        other.layers[1].mlp.down.weight.mul_(0.5)
    before, after = judge.compare(model, other)
    assert after["kl"] > 1e-4
    found = ratios({"bytes": 2, **before}, {"bytes": 1, **after})
    assert found["smaller"] == 2 and found["kept"] == pytest.approx(before["perplexity"] / after["perplexity"])


def test_divergence_and_loss_equal_the_formulas(learned):
    checkpoint = Checkpoint.open(learned.path)
    model, other = learned.model(), learned.model()
    with torch.no_grad():
        other.layers[0].attention.out.weight.add_(0.01)
    rows = texts(str(learned.tokens), checkpoint.config, checkpoint.tokenizer(), 500)
    before, after = scores(model, other, rows(), CPU)
    logs, targets = [], []
    with torch.no_grad():
        for batch in rows():
            hidden = [one(batch.tokens, positions=batch.positions, segments=batch.segments) for one in (model, other)]
            logs.append(
                [torch.log_softmax(one.head(h).double(), -1) for one, h in zip((model, other), hidden, strict=True)]
            )
            targets.append(batch.targets)
    p, q = (torch.cat([pair[i].flatten(0, 1) for pair in logs]) for i in (0, 1))
    told = torch.cat([one.flatten() for one in targets])
    asked = told >= 0
    p, q, told = p[asked], q[asked], told[asked, None]
    assert before["loss"] == pytest.approx(float(-p.gather(1, told).mean()), rel=1e-5)
    assert after["loss"] == pytest.approx(float(-q.gather(1, told).mean()), rel=1e-5)
    assert after["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-3)


@pytest.mark.parametrize("given", ["", "kept", "kept=", "size=2", "x", "kept=-1"])
def test_a_limit_that_says_nothing_is_refused(given):
    with pytest.raises(UserError) as refused:
        Judging(eval="text", fail_under=(given,))
    assert refused.value.code == Exit.USAGE


def test_a_missed_limit_ends_with_its_code():
    judging = Judging(eval="text", fail_under=("0.9", "smaller=2"))
    judging.check({"kept": 0.95, "smaller": 2})
    with pytest.raises(UserError) as missed:
        judging.check({"kept": 0.85, "smaller": 2})
    assert missed.value.code == Exit.THRESHOLD and "kept is 0.85, under 0.9" in missed.value.problem
    with pytest.raises(UserError):
        judging.check({"kept": float("nan"), "smaller": 2})
