"""Divergences of distributions of tokens: by hand, by autograd's plain formula, and their identities."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from llmctl.core.data.batch import IGNORE
from llmctl.core.train import cross_entropy
from llmctl.core.train.divergence import Aim, Scores, compared, divergence, linear_divergence, taught, top

VOCAB = 53
ALL = [("forward-kl", None), ("reverse-kl", None), ("jsd", 0.1), ("jsd", 0.7)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 4 * VOCAB * 100)  # 64 rows: two chunks


def made(rows=90, width=12, vocab=VOCAB, softcap=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(*size, generator=generator) for size in ((rows, width), (vocab, width), (vocab,)))
    return Scores(x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), softcap)


def logits(scores):
    z = scores.features @ scores.weight.t() + scores.bias
    return z if scores.softcap is None else scores.softcap * torch.tanh(z / scores.softcap)


def plain(z, said, loss, beta):
    """The definitions, as TRL and the GKD paper write them: log distributions to a divergence of each row."""
    logp, logq = said, F.log_softmax(z, -1)
    if loss == "forward-kl":
        return F.kl_div(logq, logp, reduction="none", log_target=True).sum(-1)
    if loss == "reverse-kl":
        return F.kl_div(logp, logq, reduction="none", log_target=True).sum(-1)
    mixture = torch.logsumexp(torch.stack([logq + math.log(1 - beta), logp + math.log(beta)]), dim=0)
    teacher = F.kl_div(mixture, logp, reduction="none", log_target=True).sum(-1)
    student = F.kl_div(mixture, logq, reduction="none", log_target=True).sum(-1)
    return beta * teacher + (1 - beta) * student


def sides(student):
    return [part for part in student[:3] if part is not None]


def test_three_outcomes_by_hand_tell_forward_from_reverse():
    p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.2, 0.3, 0.5]])
    forward, _ = divergence(p.log(), q.log(), "forward-kl")
    reverse, _ = divergence(p.log(), q.log(), "reverse-kl")
    assert forward.item() == pytest.approx(0.7 * math.log(3.5) + 0.2 * math.log(2 / 3) + 0.1 * math.log(0.2), abs=1e-6)
    assert reverse.item() == pytest.approx(0.2 * math.log(2 / 7) + 0.3 * math.log(1.5) + 0.5 * math.log(5), abs=1e-6)
    half, _ = divergence(p.log(), q.log(), "jsd", 0.5)
    m = (p + q) / 2
    assert half.item() == pytest.approx(float((p * (p / m).log() + q * (q / m).log()).sum() / 2), abs=1e-6)


@pytest.mark.parametrize(("loss", "beta"), ALL)
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_loss_and_gradients_are_those_of_the_plain_formula(loss, beta, softcap):
    student, teacher, tau = made(softcap=softcap), made(width=20, seed=1), 2.0
    targets = torch.arange(90) % VOCAB
    targets[::7] = IGNORE
    soft, hard = torch.linspace(0, 1, 90), torch.linspace(1, -0.5, 90)
    ours = linear_divergence(student, teacher, targets, Aim(loss, beta, tau, "rest", VOCAB), soft, hard)
    said = F.log_softmax(logits(teacher).detach() / tau, -1)
    z = logits(student)
    each = F.cross_entropy(z, targets, ignore_index=IGNORE, reduction="none")
    wanted = (soft * tau**2 * plain(z / tau, said, loss, beta) + hard * each).sum()
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    for got, should in zip(
        torch.autograd.grad(ours / 3, sides(student)), torch.autograd.grad(wanted / 3, sides(student)), strict=True
    ):
        torch.testing.assert_close(got, should, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("loss", "beta"), ALL)
def test_a_student_that_is_its_teacher_has_neither_loss_nor_gradient(loss, beta):
    student = made()
    teacher = Scores(*(part.detach() for part in student[:3]), None)
    targets, one = torch.zeros(90, dtype=torch.int64), torch.ones(90)
    loss = linear_divergence(student, teacher, targets, Aim(loss, beta, 2.0, "rest", VOCAB), one, 0 * one)
    assert abs(loss.item()) < 1e-4  # 90 sums of 53 roundings
    assert all(grad.abs().max() < 1e-5 for grad in torch.autograd.grad(loss, sides(student)))


@pytest.mark.parametrize(("loss", "beta"), ALL)
def test_the_likeliest_of_all_tokens_are_all_tokens(loss, beta):
    student, teacher = made(), made(seed=1)
    targets, one = torch.zeros(90, dtype=torch.int64), torch.ones(90)
    aim = Aim(loss, beta, 1.0, "rest", VOCAB)
    dense, listed = (linear_divergence(student, teacher, targets, aim, one, 0 * one, k) for k in (0, VOCAB))
    stored = top(taught(teacher, aim, slice(None)), VOCAB)
    assert listed.item() == pytest.approx(dense.item(), rel=1e-6)
    assert linear_divergence(student, stored, targets, aim, one, 0 * one).item() == pytest.approx(
        dense.item(), rel=1e-6
    )


@pytest.mark.parametrize(("loss", "beta"), ALL)
@pytest.mark.parametrize("theirs", [VOCAB - 6, VOCAB, VOCAB + 9])
def test_few_tokens_and_the_rest_are_a_coarser_distribution_whatever_pads_the_vocabulary(loss, beta, theirs):
    student, teacher = made(), made(vocab=theirs, seed=1)
    common = min(theirs, VOCAB)
    aim, one = Aim(loss, beta, 1.0, "rest", common), torch.ones(90)
    targets = torch.zeros(90, dtype=torch.int64)
    ours = linear_divergence(student, teacher, targets, aim, one, 0 * one, 5)
    logq = F.log_softmax(logits(student), -1)
    kept = logq[:, :common].logsumexp(-1)  # -log of it pushes what is given to ids that the teacher has not to zero
    logp, logq = F.log_softmax(logits(teacher)[:, :common], -1), logq[:, :common] - kept[:, None]
    ids = logp.topk(5).indices
    coarse = [torch.cat((x.gather(1, ids), torch.log1p(-x.gather(1, ids).exp().sum(1, True))), 1) for x in (logp, logq)]
    wanted = (plain(coarse[1], coarse[0].detach(), loss, beta) - kept).sum()
    assert ours.item() == pytest.approx(wanted.item(), rel=1e-4)
    for got, should in zip(
        torch.autograd.grad(ours, sides(student)), torch.autograd.grad(wanted, sides(student)), strict=True
    ):
        torch.testing.assert_close(got, should, rtol=1e-3, atol=1e-3)


def test_a_renormalised_top_k_is_biased_and_the_rest_bucket_is_not():
    """The student that is its teacher is at the minimum with the bucket; renormalised, it is pushed away from it."""
    student = made()
    teacher = Scores(*(part.detach() for part in student[:3]), None)
    targets, one = torch.zeros(90, dtype=torch.int64), torch.ones(90)
    norms = {}
    for tail in ("rest", "renormalise"):
        loss = linear_divergence(student, teacher, targets, Aim("forward-kl", None, 1.0, tail, VOCAB), one, 0 * one, 4)
        norms[tail] = torch.autograd.grad(loss, student.features)[0].norm().item()
    assert norms["rest"] < 1e-4 and norms["renormalise"] > 1


def test_gradients_keep_their_size_whatever_the_temperature():
    student, teacher = made(), made(seed=1)
    targets, one = torch.zeros(90, dtype=torch.int64), torch.ones(90)
    small = Scores(student.features, 0.1 * student.weight, None, None)
    other = Scores(teacher.features, 0.1 * teacher.weight, None, None)
    norms = [
        torch.autograd.grad(
            linear_divergence(small, other, targets, Aim("forward-kl", None, tau, "rest", VOCAB), one, 0 * one),
            student.features, retain_graph=True,
        )[0].norm()
        for tau in (1.0, 4.0)
    ]  # fmt: skip
    assert 0.5 < norms[1] / norms[0] < 2


def test_what_is_measured_beside_is_the_nll_and_the_kl():
    student, teacher = made(), made(seed=1)
    targets = torch.arange(90) % VOCAB
    targets[::5] = IGNORE
    nll, kl = compared(student, teacher, targets, VOCAB)
    z, said = logits(student), F.log_softmax(logits(teacher), -1)
    assert nll.item() == pytest.approx(
        F.cross_entropy(z, targets, ignore_index=IGNORE, reduction="sum").item(), rel=1e-5
    )
    assert kl.item() == pytest.approx(plain(z, said, "forward-kl", None).sum().item(), rel=1e-5)


def test_no_more_than_a_chunk_of_distributions_is_ever_there():
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            for one in made if isinstance(made, tuple) else (made,):
                largest = max(largest, one.numel() if isinstance(one, torch.Tensor) else 0)
            return made

    student, teacher, one = made(rows=640), made(rows=640, seed=1), torch.ones(640)
    targets = torch.zeros(640, dtype=torch.int64)
    with Sizes():
        for k in (0, 5):
            aim = Aim("jsd", 0.5, 2.0, "rest", VOCAB)
            linear_divergence(student, teacher, targets, aim, one, one, k).backward()
    assert largest == max(64 * VOCAB, 640 * 12)  # a chunk, or the features themselves
