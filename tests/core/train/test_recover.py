"""Recovery: what was pruned stays so, broken off or not, and the model comes back to what it was."""

import torch

from llmctl.core.checkpoint.directory import Checkpoint, save_checkpoint
from llmctl.core.compress.prune.masks import matrices
from llmctl.core.device import pick
from llmctl.core.train.recover import recover, settle
from llmctl.core.train.run import BEST, Evaluation
from llmctl.spec.recovery import Recovery


def pruned(learned, directory, share=0.6):
    """The learned model with its smallest weights zero."""
    directory.mkdir()
    model = learned.model()
    with torch.no_grad():
        for linear in matrices(model).values():
            size = linear.weight.abs()
            linear.weight[size <= size.quantile(share)] = 0
    save_checkpoint(directory, model, model.config, tokenizer_from=learned.path)
    return directory


def test_recovery_keeps_zeros_comes_closer_to_the_teacher_and_resumes_bit_for_bit(learned, tmp_path):
    start = pruned(learned, tmp_path / "pruned")
    how = Recovery(recover_steps=4, recover_batch_tokens=512, recover_block=128)
    place = pick("cpu", "fp32", 1)
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()

    def begun(name):
        return recover(tmp_path / name, start, learned.path, how, str(learned.tokens), place, 0)

    run = begun("whole")
    evaluations = [event for event in run.go() if isinstance(event, Evaluation)]
    run.finish()
    settle(tmp_path / "whole")
    assert evaluations[-1].figures["heldout_kl"] < 0.9 * evaluations[0].figures["heldout_kl"]
    assert not (tmp_path / "whole" / BEST).exists()

    first = begun("broken")
    for _ in first.go():
        if first.done == 2:
            break
    first.save()
    second = begun("broken")
    for _ in second.go():
        pass
    second.finish()
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert files[0] == files[1]

    before, after = (matrices(Checkpoint.open(path).model()) for path in (start, tmp_path / "whole"))
    for path, linear in before.items():
        assert torch.equal(linear.weight == 0, after[path].weight == 0), path
        assert not torch.equal(linear.weight, after[path].weight)


def test_recovery_by_text_lowers_the_loss_of_text(learned, tmp_path):
    start = pruned(learned, tmp_path / "pruned")
    (tmp_path / "made").mkdir()
    how = Recovery(recover_steps=3, recover_batch_tokens=512, recover_block=128, recover_by="text")
    run = recover(tmp_path / "made", start, learned.path, how, str(learned.tokens), pick("cpu", "fp32", 1), 0)
    evaluations = [event for event in run.go() if isinstance(event, Evaluation)]
    run.finish()
    assert evaluations[-1].loss < evaluations[0].loss
