"""Objectives: a model and a batch to a loss, kept as sum and count."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llmctl.core.data.batch import IGNORE, Batch
from llmctl.core.decode.rules import delayed
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.transformer import Transformer
from llmctl.core.train.cross_entropy import linear_cross_entropy
from llmctl.core.train.measures import Measure, text_figures, word_figures
from llmctl.spec.noise import Objective

SPARSE = 0.7  # share of places scored, below which they are gathered first


class Loss(NamedTuple):
    """A loss not yet divided, so that micro-batches and processes of unequal counts add up right.

    Attributes:
        total: scalar float32, nats, summed over scored tokens.
        count: how many were scored.
        measures: what else an evaluation reports, by name; {} while training.
    """

    total: Tensor
    count: int
    measures: dict[str, Measure]


def tokens_loss(model: Transformer, batch: Batch, cross_document: bool = False) -> Loss:
    """The loss of the tokens that the batch asks for, whatever the objective that made it.

    Args:
        model: of the kind that the batch is made for.
        batch: (B, T) rows on the model's device.
        cross_document: let tokens see earlier documents of their row, and count positions through the row.
    """
    features, targets = _asked(model, batch, hidden_of(model, batch, cross_document))
    weight, bias, softcap = model.head.projection
    return Loss(linear_cross_entropy(features, weight, targets, bias, softcap), batch.scored, {})


def masked_loss(model: Transformer, batch: Batch, cross_document: bool = False, pair_weight: float = 0.0) -> Loss:
    """The loss of masked tokens, and with `pair_weight` that of telling whether the second text of a row follows.

    BERT adds the means of the two. Sums of both over a whole step stay exact, however it is cut into micro-batches,
    with a weight that does not depend on the batch: the number of tokens that a row is asked for on average.

    Args:
        model: an encoder.
        batch: (B, T) rows on the model's device.
        cross_document: as for `tokens_loss`.
        pair_weight: what each row's answer counts, in tokens.

    Returns:
        While evaluating, the tokens' loss alone, and how often tokens and pairs are answered right.

    Source: Devlin et al., arXiv:1810.04805, section 3.1 and appendix A.
    """
    hidden = hidden_of(model, batch, cross_document)
    features, targets = _asked(model, batch, hidden)
    weight, bias, softcap = model.head.projection
    total, measures = linear_cross_entropy(features, weight, targets, bias, softcap), {}
    pairs = model.next_sentence_scores(hidden) if pair_weight else None
    if not torch.is_grad_enabled():
        chosen = F.linear(features, weight.to(features.dtype), None if bias is None else bias.to(features.dtype))
        right = (chosen.argmax(-1) == targets).sum()
        measures["accuracy"] = Measure(right, batch.scored)
        if pairs is not None:
            right, told = (pairs.argmax(-1) == batch.pairs).sum(), int((batch.pairs != IGNORE).sum())
            measures["next_sentence_accuracy"] = Measure(right, told)
    elif pairs is not None:
        wrong = F.cross_entropy(pairs.float(), batch.pairs, ignore_index=IGNORE, reduction="sum")
        total = total + pair_weight * wrong
    return Loss(total, batch.scored, measures)


def labels_loss(model: Transformer, batch: Batch) -> Loss:
    """The loss of the labels of texts, a row each.

    Of labels that exclude each other, cross-entropy; of others, binary cross-entropy, the mean over the labels; of
    quantities, the squared error, the mean over those of a text. So the mean over texts is what transformers' classes
    compute by their problem_type.

    Args:
        model: with a classifier of sequences. One with an encoder and a decoder reads the text with both.
        batch: (B, T) rows on the model's device, with labels.

    Returns:
        Sums over texts. While evaluating also accuracy, F1 and Matthews' correlation, or Pearson's and the root mean
        square error; see core/metrics/labels.
    """
    if batch.encoder is None and model.config.kind == "encoder-decoder":
        source = EncoderInput(batch.tokens, batch.positions, batch.segments)
        batch = batch._replace(tokens=delayed(batch.tokens, model.config), encoder=source)
    scores = model.classify(hidden_of(model, batch, False), batch.segments, batch.tokens).float()  # (B, L)
    problem, count = model.config.problem, len(model.config.labels)
    if problem == "multi_label":
        wrong = F.binary_cross_entropy_with_logits(scores, batch.labels, reduction="sum") / count
    elif (
        problem == "regression" or count == 1
    ):  # single_label of a single score is trained as a quantity, as in transformers
        wrong = F.mse_loss(scores, batch.labels.view_as(scores), reduction="sum") / count
    else:
        wrong = F.cross_entropy(scores, batch.labels, reduction="sum")
    return Loss(wrong, batch.scored, {} if torch.is_grad_enabled() else text_figures(scores, batch.labels, problem))


def tags_loss(model: Transformer, batch: Batch) -> Loss:
    """The loss of the tags of words, each asked of the first token of its word.

    Args:
        model: with a classifier of tokens.
        batch: (B, T) rows on the model's device; targets are the tags, IGNORE where none is asked for.

    Returns:
        Sums over words. While evaluating also the accuracy of words, and where tags mark spans the precision, recall
        and F1 of spans.
    """
    hidden = hidden_of(model, batch, False)
    asked = batch.targets != IGNORE
    scores, targets = model.classify(hidden[asked]).float(), batch.targets[asked]  # (N, L), (N,)
    wrong = F.cross_entropy(scores, targets, reduction="sum")
    if torch.is_grad_enabled():
        return Loss(wrong, batch.scored, {})
    places = batch.segments + torch.arange(len(batch.targets), device=asked.device)[:, None] * (asked.shape[1] + 1)
    return Loss(wrong, batch.scored, word_figures(scores, targets, places[asked], model.config.labels))


OBJECTIVES: dict[Objective, Callable[..., Loss]] = {
    "clm": tokens_loss,
    "mlm": masked_loss,
    "mlm+nsp": masked_loss,
    "span": tokens_loss,
    "denoise": tokens_loss,
    "prefix": tokens_loss,
    "fim": tokens_loss,
}


def _asked(model: Transformer, batch: Batch, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The features that meet the head's matrix, (N, width), and their targets, (N,).

    Where few places are scored, only theirs: the head is the largest matrix of a small model.
    """
    hidden, targets = hidden.flatten(0, 1), batch.targets.flatten()
    if batch.scored < SPARSE * len(targets):
        scored = (targets != IGNORE).nonzero().squeeze(1)
        hidden, targets = hidden[scored], targets[scored]
    return model.head.features(hidden), targets


def hidden_of(model: Transformer, batch: Batch, cross_document: bool = False) -> Tensor:
    """(B, T, width) of the places that the targets are about."""
    encoder, apart = batch.encoder, {"positions": batch.positions, "segments": batch.segments}
    if cross_document and model.config.kind == "decoder":
        apart = {}
    elif cross_document:  # both ways, padding would be seen
        apart = {"segments": batch.segments.clamp(max=1)}
        encoder = None if encoder is None else EncoderInput(encoder.tokens, None, encoder.segments.clamp(max=1))
    return model(batch.tokens, types=batch.types, prefix=batch.prefix, encoder=encoder, **apart)
