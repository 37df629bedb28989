"""Scoring: how likely each token of a prompt is, part by part, so that completions are not kept waiting."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from llmctl.core.decode.choose import Picked
from llmctl.core.decode.rows import rows_of
from llmctl.core.model.transformer import Transformer

PART = 256  # tokens


def scored(
    model: Transformer, ids: Sequence[int], top: int, known: int, kv_bits: int = 0
) -> Iterator[Callable[[], list[Picked]]]:
    """What gives the log-probabilities of a prompt's tokens, one part after another; that of the first is None.

    Args:
        top: how many of the likeliest tokens are told beside each.
        known: ids from this on have no token and no probability.
    """
    rows = rows_of(model, kv_bits)

    def begun() -> list[Picked]:
        last[:] = [rows.add([ids[:1]])]
        return [Picked(ids[0])]

    def read(part: Sequence[int]) -> list[Picked]:
        scores = rows.read([part])[0, : len(part)]  # (T, V)
        before = torch.cat((last[0], scores[:-1]))
        before[:, known:] = float("-inf")  # also of a prompt's ids, which may have no token
        last[:] = [scores[-1:]]
        return _picked(before, part, top)

    last: list[Tensor] = []  # (1, V), the scores of what comes next
    yield begun
    for start in range(1, len(ids), PART):
        yield lambda part=list(ids[start : start + PART]): read(part)


@torch.inference_mode()
def _picked(scores: Tensor, ids: Sequence[int], top: int) -> list[Picked]:
    """Tokens by the scores (T, V) before each."""
    chances = scores.log_softmax(dim=-1)
    chosen = chances.gather(1, torch.tensor(ids, device=scores.device)[:, None])[:, 0].tolist()
    best = chances.topk(min(top, chances.shape[1]), dim=-1)
    tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    rows = zip(ids, chosen, tops, strict=True)
    return [Picked(id, value, tuple(zip(*pair, strict=True))) for id, value, pair in rows]
