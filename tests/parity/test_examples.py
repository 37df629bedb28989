"""The loss of examples against transformers': its own labels, -100 where nothing is asked, in padded rows."""

import numpy as np
import pytest
import torch

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.data.examples import Example
from llmctl.core.data.packing import laid_out
from llmctl.core.train.objectives import tokens_loss
from tests.parity import oracle, oracle_encoders

SIZES = [12, 5, 9, 2, 7]


def examples(sources: bool) -> list[Example]:
    draw = np.random.default_rng(0)
    made = []
    for size in SIZES:
        scored = np.arange(size) >= (0 if sources else draw.integers(1, size))
        source = draw.integers(3, 60, draw.integers(1, 12)) if sources else None
        made.append(Example(draw.integers(3, 60, size), scored, source))
    return made


def padded(rows: list[np.ndarray], fill: int) -> torch.Tensor:
    return torch.tensor([[*row.tolist(), *[fill] * (max(map(len, rows)) - len(row))] for row in rows])


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "t5", "bart"])
@torch.inference_mode()
def test_the_mean_loss_of_packed_micro_batches_is_that_of_one_padded_batch_in_transformers(tmp_path, name):
    both = name in oracle_encoders.CASES
    theirs = (oracle_encoders if both else oracle).saved(name, tmp_path).eval()
    made = examples(both)
    ids = padded([one.ids for one in made], 0)
    labels = padded([np.where(one.scored, one.ids, -100) for one in made], -100)
    if both:
        read = {
            "input_ids": padded([one.source for one in made], 0),
            "attention_mask": padded([np.ones(len(one.source), int) for one in made], 0),
        }
    else:
        read = {"input_ids": ids, "attention_mask": padded([np.ones(len(one.ids), int) for one in made], 0)}
    wanted = theirs(**read, labels=labels).loss
    checkpoint = Checkpoint.open(tmp_path)
    model, task = checkpoint.model(), "seq2seq" if both else "lm"
    batches = list(laid_out(task, made, 30, start=checkpoint.config.opens))
    assert len(batches) > 1
    found = sum(tokens_loss(model, batch).total for batch in batches) / sum(batch.scored for batch in batches)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
