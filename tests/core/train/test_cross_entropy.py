"""Cross-entropy without the logits of all tokens at once."""

import pytest
import torch
import torch.nn.functional as F

from llmctl.core.data.batch import IGNORE
from llmctl.core.train import cross_entropy
from llmctl.core.train.cross_entropy import chunk_rows, linear_cross_entropy


def made(rows=300, width=24, vocab=130):
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(vocab, width, requires_grad=True)
    targets = torch.randint(0, vocab, (rows,))
    targets[::7] = IGNORE
    return hidden, weight, targets


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 4 * 130 * 100)  # 64 rows: five chunks, the last one short


def test_loss_and_gradients_are_those_of_the_plain_formula():
    hidden, weight, targets = made()
    ours = linear_cross_entropy(hidden, weight, targets)
    plain = F.cross_entropy(hidden @ weight.t(), targets, ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=0)
    for got, wanted in zip(
        torch.autograd.grad(ours / 3, (hidden, weight)), torch.autograd.grad(plain / 3, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_without_gradients_it_is_the_same_number():
    hidden, weight, targets = made()
    with torch.no_grad():
        quiet = linear_cross_entropy(hidden, weight, targets)
    assert quiet.item() == linear_cross_entropy(hidden, weight, targets).item()


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_still_do():
    hidden, weight, targets = made()
    linear_cross_entropy(hidden, weight.detach(), targets).backward()
    assert hidden.grad is not None and weight.grad is None


def test_under_autocast_the_softmax_stays_exact():
    hidden, weight, targets = made()
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight, targets)
    logits = (hidden.bfloat16() @ weight.bfloat16().t()).float()
    plain = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=0)


def test_nothing_scored_is_a_loss_of_zero():
    hidden, weight, targets = made()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(targets, IGNORE))
    loss.backward()
    assert loss.item() == 0 and hidden.grad.abs().max() == 0 and weight.grad.abs().max() == 0


def test_a_chunk_is_a_power_of_two_within_its_bytes():
    for vocab in (2, 100, 130, 32000, 10**7):
        rows = chunk_rows(vocab)
        assert rows & (rows - 1) == 0
        assert rows == 64 or rows * vocab * 4 <= cross_entropy.CHUNK_BYTES < 2 * rows * vocab * 4
