"""answers_loss: the loss of answers, and while evaluating how often they are foretold right."""

import torch
import torch.nn.functional as F

from llmctl.core.data.batch import IGNORE, Batch
from llmctl.core.model.transformer import Transformer
from llmctl.core.train.cross_entropy import chunk_rows, linear_cross_entropy
from llmctl.core.train.measures import Measure
from llmctl.core.train.objectives import Loss, tokens_loss


def answers_loss(model: Transformer, batch: Batch) -> Loss:
    """The loss of the tokens that are asked for, each document of a row apart.

    Args:
        model: a decoder, or an encoder with one.
        batch: (B, T) rows on the model's device.

    Returns:
        While evaluating also, of the tokens that are asked for, the share that is the likeliest given those before
        it, and of the answers, the share of which that is true of every token: what greedy decoding would write.
    """
    if torch.is_grad_enabled():
        return tokens_loss(model, batch)
    hidden = model(batch.tokens, batch.positions, batch.segments, prefix=batch.prefix, encoder=batch.encoder)
    asked = batch.targets != IGNORE
    features, targets = model.head.features(hidden[asked]), batch.targets[asked]  # (N, width), (N,)
    weight, bias, softcap = model.head.projection
    total = linear_cross_entropy(features, weight, targets, bias, softcap)
    likeliest = [F.linear(part, weight, bias).argmax(-1) for part in features.split(chunk_rows(len(weight)))]
    right = torch.cat(likeliest) == targets if likeliest else asked.new_zeros(0)
    rows = torch.arange(len(asked), device=asked.device)[:, None] * (asked.shape[1] + 1)
    answers, sizes = torch.unique_consecutive((batch.segments + rows)[asked], return_counts=True)
    of = torch.repeat_interleave(torch.arange(len(answers), device=asked.device), sizes)
    whole = torch.zeros_like(sizes).index_add(0, of, right.long()) == sizes
    measures = {"accuracy": Measure(right.sum(), len(right)), "exact_match": Measure(whole.sum(), len(whole))}
    return Loss(total, batch.scored, measures)
