"""classify: probabilities of labels, of whole texts or of the words in them."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from llmctl.core.decode.rules import delayed
from llmctl.core.infer.encode import Padded, Row, padded
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.model import ModelConfig

OUTSIDE = "O"  # the tag of words that are in no entity


@torch.inference_mode()
def classify(model: Transformer, rows: Sequence[Row]) -> list[Tensor]:
    """What a model scores its labels: for each row (L,), or of a classifier of tokens (T, L); float32 on the CPU.

    Probabilities: of labels that exclude each other they sum to 1, of others and of a single one each is its own;
    where the labels are quantities, the scores are what the model gives.

    Raises:
        UserError: the scores are not numbers, or nothing says what a decoder beside an encoder begins with.
    """
    config = model.config
    batch = padded(rows, config, next(model.parameters()).device)
    scores = model.classify(_hidden(model, batch), batch.segments, batch.tokens).float().cpu()
    if not bool(scores.isfinite().all()):
        raise UserError("The model's scores are not numbers (NaN).", "Try --dtype fp32, or llmctl verify.")
    if config.problem == "multi_label" or (config.problem == "single_label" and len(config.labels) == 1):
        scores = scores.sigmoid()
    elif config.problem == "single_label":
        scores = scores.softmax(dim=-1)
    if config.classifier == "token":
        return [one[: len(row)] for one, row in zip(scores, rows, strict=True)]
    return list(scores)


def _hidden(model: Transformer, batch: Padded) -> Tensor:
    """(B, T, D). With an encoder and a decoder both read the text, the decoder one place later.

    Source: Lewis et al., "BART", arXiv:1910.13461, section 3.1.
    """
    if model.config.kind != "encoder-decoder":
        return model(batch.tokens, segments=batch.segments, types=batch.types)
    source = EncoderInput(batch.tokens, segments=batch.segments)
    return model(delayed(batch.tokens, model.config), segments=batch.segments, encoder=source)


def labelled(scores: Tensor, config: ModelConfig, threshold: float) -> dict[str, Any]:
    """The fields of a record: `label` and `score` of the best, `scores` of all; with labels that do not exclude each
    other also `labels`, those of at least the threshold.

    Args:
        scores: (L,).
    """
    best = int(scores.argmax())
    named = dict(zip(config.labels, scores.tolist(), strict=True))
    made: dict[str, Any] = {"label": config.labels[best], "score": float(scores[best]), "scores": named}
    if config.problem == "multi_label":
        made["labels"] = [label for label, score in named.items() if score >= threshold]
    return made


Aggregation = Literal["first", "simple"]


class Part(NamedTuple):
    """A word or token of the text: which characters, and its tag with its score."""

    start: int
    end: int
    tag: str
    score: float


def entities(text: str, row: Row, scores: Tensor, labels: Sequence[str], words: bool = True) -> list[dict[str, Any]]:
    """The spans of a text that have a tag other than O: `{"entity", "text", "start", "end", "score"}`.

    A span is a run of words with the same tag. B-X begins a span of X, I-X goes on with it, as does X alone. Its
    score is the mean of its words'. Offsets count characters.

    Args:
        scores: (T, L), of each token.
        labels: names of the L labels.
        words: a word's tag is that of its first token; else each token has its own. Words are those of the tokenizer
            where it marks tokens that go on with one (BERT's ##), else what spaces part.

    Source: the scheme of Ramshaw and Marcus, arXiv:cmp-lg/9505040, read as transformers reads it with
    aggregation_strategy "first" or, without words, "simple". Where a space is a token by
    itself, it takes that, and what follows, for a word each; here the space belongs to the word after it.
    """
    made = []
    for tag, parts in _runs(_parts(text, row, scores, labels, words)):
        if tag == OUTSIDE:
            continue
        start, end = parts[0].start, parts[-1].end
        start += len(text[start:end]) - len(text[start:end].lstrip())  # some tokenizers count the space before a word
        if start == end:  # spaces alone
            continue
        score = sum(part.score for part in parts) / len(parts)
        made.append({"entity": tag, "text": text[start:end], "start": start, "end": end, "score": score})
    return made


def _parts(text: str, row: Row, scores: Tensor, labels: Sequence[str], words: bool) -> list[Part]:
    """The words of the (first) text, or its tokens, special ones left out."""
    ends = [word.end() for word in re.finditer(r"\S+", text)] if words and row.spaced else None
    best, tags = scores.max(dim=-1)
    values, names = best.tolist(), [labels[tag] for tag in tags.tolist()]
    encoding, parts, before = row.encoding, [], None
    for place, (start, end) in enumerate(encoding.offsets):
        word = encoding.word_ids[place] if ends is None else bisect_right(ends, start)
        if encoding.sequence_ids[place] != 0 or encoding.special_tokens_mask[place]:
            continue
        if words and word is not None and word == before:
            parts[-1] = parts[-1]._replace(end=end)
        else:
            parts.append(Part(start, end, names[place], values[place]))
        before = word
    return parts


def _runs(parts: list[Part]) -> list[tuple[str, list[Part]]]:
    """Neighbours with the same tag."""
    runs: list[tuple[str, list[Part]]] = []
    for part in parts:
        begins = part.tag.startswith("B-")
        tag = part.tag[2:] if begins or part.tag.startswith("I-") else part.tag
        if runs and runs[-1][0] == tag and not begins:
            runs[-1][1].append(part)
        else:
            runs.append((tag, [part]))
    return runs
