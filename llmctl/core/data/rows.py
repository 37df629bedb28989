"""Rows of every objective: places in a stream of tokens become batches, each row's noise keyed by its place alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmctl.core.data.batch import IGNORE, Batch, Build, Place, Source, pack
from llmctl.core.data.corrupt import (
    choose_places,
    denoised,
    fill_in_middle,
    hide,
    noise_spans,
    sentence_ends,
    take_spans,
)
from llmctl.core.data.pieces import borders, document_of, pieces
from llmctl.core.data.vocabulary import Vocabulary
from llmctl.core.model.memory import EncoderInput
from llmctl.errors import Exit, UserError
from llmctl.spec.model import Kind
from llmctl.spec.noise import NoiseConfig, Objective, suited

MULTIPLE = 8  # rows of an encoder-decoder are padded to the longest, rounded up to this, or to a block if that is less
NOISE = 0x6E6F6973  # tells the noise of a row from other draws of the same seed


def builder(
    objective: Objective,
    kind: Kind,
    noise: NoiseConfig,
    vocabulary: Vocabulary,
    seed: int,
    start: int | None = None,
) -> Build:
    """What makes the batches of an objective; the noise of a row is a pure function of (seed, epoch, index).

    A row is cut from `block` tokens of the stream and is no longer than that, marks put in included: what these push
    out at the end is left out of the row. Documents of a row are segments of their own, each with its own noise.

    Args:
        kind: of the model.
        vocabulary: that of the tokens.
        seed: of the noise, 0 or more.
        start: id that a decoder beside an encoder begins with; None: pad, or without one the end of a text.

    Raises:
        UserError: the objective does not suit the kind, or the tokenizer lacks a special token.
    """
    suited(objective, kind)
    vocabulary.need(objective)
    if vocabulary.eos is None:
        hint = 'Name one as "eos_token" in its tokenizer_config.json.'
        raise UserError("The tokenizer of the tokens has no end-of-text token.", hint, Exit.MISMATCH)
    if start is None:
        start = vocabulary.eos if vocabulary.pad is None else vocabulary.pad
    return partial(_BUILDERS[objective], Rule(kind, noise, vocabulary, seed, start))


@dataclass(frozen=True, eq=False)
class Rule:
    """What decides the rows besides the tokens; see `builder`."""

    kind: Kind
    noise: NoiseConfig
    vocabulary: Vocabulary
    seed: int
    start: int

    def generator(self, place: Place) -> np.random.Generator:
        """The draws of one row."""
        return np.random.Generator(np.random.PCG64([NOISE, self.seed, place.epoch + 1, place.index]))

    def framed(self, ids: np.ndarray) -> np.ndarray:
        """A text as an encoder meets it: [CLS] text [SEP], <s> text </s>, or with T5's tokenizer, text </s>."""
        framed = np.empty(len(ids) + self.frame, np.int64)
        framed[self.frame - 1 : -1] = ids
        if self.vocabulary.opening is not None:
            framed[0] = self.vocabulary.opening
        framed[-1] = self.vocabulary.closing
        return framed

    def answered(self, ids: np.ndarray) -> np.ndarray:
        """A text as a decoder beside an encoder says it: framed, but not begun with the token that ends it.

        Where one token opens and closes texts, as GPT's does, every answer would else end where it begins.
        """
        framed = self.framed(ids)
        return framed[1:] if self.vocabulary.opening == self.vocabulary.closing else framed

    @property
    def frame(self) -> int:
        """Tokens that `framed` adds."""
        return 1 if self.vocabulary.opening is None else 2

    @property
    def pad(self) -> int:
        """What fills the end of a row; it is in no segment."""
        return self.vocabulary.pad or 0


def _clm(rule: Rule, source: Source, places: list[Place], block: int) -> Batch:
    """Each token from those before it."""
    return pack(source, places, block)


def _mlm(rule: Rule, source: Source, places: list[Place], block: int) -> Batch:
    """BERT's masked tokens: every segment is framed, and the row is full but for what is left at the end."""
    rows = []
    for place in places:
        texts = [rule.framed(ids) for ids in _fitting(source, place, block, rule.frame)]
        rows.append(_masked(rule, _joined(texts), rule.generator(place)))
    return _batch(rows, block, rule.pad)


def _mlm_nsp(rule: Rule, source: Source, places: list[Place], block: int) -> Batch:
    """BERT's pairs with masked tokens: [CLS] A [SEP] B [SEP], a row each, from the longest document in reach.

    A ends where a sentence does, if one does. In one half of the rows B is what follows A, in the other a run of as
    many tokens, as far as there are so many, of another document, each as likely as it is long; of a source of one
    document, B follows always. A row without two tokens of one document is empty, and its pair is IGNORE.

    Source: Devlin et al., arXiv:1810.04805, section 3.1 and appendix A.2; all rows here are as long as they can be.
    """
    rows, types, pairs = [], np.zeros((len(places), block), np.int64), []
    for number, place in enumerate(places):
        generator = rule.generator(place)
        document, piece = max(enumerate(pieces(source, place.start, block)), key=lambda found: len(found[1].ids))
        text = piece.ids[: max(0, block - rule.frame - 1)]
        if len(text) < 2:
            rows.append(_joined([]))
            pairs.append(IGNORE)
            continue
        stops = sentence_ends(text, rule.vocabulary)
        cut = int(generator.choice(stops)) if len(stops) else 1 + int(generator.integers(len(text) - 1))
        other = generator.random() < 0.5
        document += document_of(source, place.start)
        strange = _elsewhere(source, document, len(text) - cut, generator) if other else None
        pairs.append(0 if strange is None else 1)
        first, second = rule.framed(text[:cut]), text[cut:] if strange is None else strange
        whole = np.concatenate((first, second, first[-1:]))
        types[number, len(first) : len(whole)] = 1
        rows.append(_masked(rule, _joined([whole]), generator))
    return _batch(rows, block, rule.pad)._replace(types=torch.from_numpy(types), pairs=torch.tensor(pairs))


def _span(rule: Rule, source: Source, places: list[Place], block: int) -> Batch:
    """T5's span corruption: the encoder reads text with sentinels, the decoder says what they stand for."""
    sentinels = np.array(rule.vocabulary.sentinels)

    def one(ids: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return take_spans(ids, noise_spans(len(ids), rule.noise, len(sentinels), generator), sentinels)

    return _pairs(rule, source, places, block, one, least=2)


def _denoise(rule: Rule, source: Source, places: list[Place], block: int) -> Batch:
    """BART's denoising: the encoder reads the text with noise, the decoder says all of it."""

    def one(ids: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return denoised(ids, rule.vocabulary, rule.noise, generator), ids

    return _pairs(rule, source, places, block, one, least=1)


def _prefix(rule: Rule, source: Source, places: list[Place], block: int) -> Batch:
    """The rest of each document from its beginning, which ends anywhere.

    For a decoder, rows are those of `pack` with targets left out where both the token and the target belong to the
    beginning: its last token is asked for the first of the rest. Beside an encoder, the decoder has the rest alone.

    Source: Raffel et al., T5, arXiv:1910.10683, section 3.2.1 and table 3.
    """
    if rule.kind == "encoder-decoder":

        def one(ids: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
            cut = 1 + int(generator.integers(len(ids) - 1))
            return ids[:cut], ids[cut:]

        return _pairs(rule, source, places, block, one, least=2)
    batch = pack(source, places, block)
    targets, prefix = batch.targets.clone(), torch.zeros_like(batch.tokens, dtype=torch.bool)
    for row, place in enumerate(places):
        segments = batch.segments[row].numpy()
        lengths = np.bincount(segments)[1:]  # padding is 0, and comes last
        draws = rule.generator(place).random(len(lengths))
        begins = 1 + (draws * lengths).astype(np.int64)  # of each document, 1 to all of its tokens
        wide = np.concatenate((begins, [0]))[segments - 1]  # of each token's; 0 for padding
        slots = batch.positions[row].numpy()
        prefix[row] = torch.from_numpy(slots < wide)
        targets[row][torch.from_numpy(slots < wide - 1)] = IGNORE
    return batch._replace(targets=targets, prefix=prefix, scored=int((targets != IGNORE).sum()))


def _fim(rule: Rule, source: Source, places: list[Place], block: int) -> Batch:
    """Rows as `pack` has them, where some documents have their middle last; such a one ends, even if cut short.

    Source: Bavarian et al., arXiv:2207.14255, section 3: the noise is put on what lies in a row (their context-level).
    """
    noise, marks, eos = rule.noise, rule.vocabulary.fim, rule.vocabulary.eos
    rows = []
    for place in places:
        generator = rule.generator(place)
        texts, targets, room = [], [], block
        lead = np.zeros(0, np.int64)  # the end of the document before, which opens the next
        for ids, ended in pieces(source, place.start, block + 1):
            inside = ids[: room - len(lead) - len(marks)]
            if generator.random() < noise.fim_rate and room > len(lead) + len(marks) and len(inside):
                moved = fill_in_middle(inside, marks, noise.spm_rate, generator)
                text = np.concatenate((lead, moved, [eos]))
            else:
                text = np.concatenate((lead, ids, [eos] if ended else lead[:0]))[: room + 1]
            lead = np.array([eos])
            if len(text) > 1:
                texts.append(text[:-1])
                targets.append(text[1:])
                room -= len(text) - 1
            if not room:
                break
        row = _joined(texts)
        rows.append(row._replace(targets=np.concatenate([*targets, row.tokens[:0]])))
    return _batch(rows, block, rule.pad)


_BUILDERS: dict[Objective, Callable[[Rule, Source, list[Place], int], Batch]] = {
    "clm": _clm,
    "mlm": _mlm,
    "mlm+nsp": _mlm_nsp,
    "span": _span,
    "denoise": _denoise,
    "prefix": _prefix,
    "fim": _fim,
}


class _Row(NamedTuple):
    """The segments of a row, one after another: all (N,) int64."""

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    segments: np.ndarray


def _joined(texts: list[np.ndarray]) -> _Row:
    """A row of segments, asked for nothing yet."""
    lengths = np.array([len(text) for text in texts], np.int64)
    tokens = np.concatenate([np.zeros(0, np.int64), *texts])
    before = np.repeat(np.cumsum(lengths) - lengths, lengths)
    segments = np.repeat(np.arange(1, len(texts) + 1), lengths)
    return _Row(tokens, np.full(len(tokens), IGNORE), np.arange(len(tokens)) - before, segments)


def _masked(rule: Rule, row: _Row, generator: np.random.Generator) -> _Row:
    places = choose_places(row.tokens, rule.vocabulary, rule.noise, generator)
    row.targets[places] = row.tokens[places]
    return row._replace(tokens=hide(row.tokens, places, rule.vocabulary, rule.noise, generator))


def _fitting(source: Source, place: Place, block: int, frame: int, least: int = 1) -> list[np.ndarray]:
    """The texts of the documents from a place on that fill a row of `block`, each with `frame` tokens added."""
    texts, room = [], block
    for piece in pieces(source, place.start, block):
        ids = piece.ids[: max(0, room - frame)]
        if len(ids) >= least:
            texts.append(ids)
            room -= len(ids) + frame
    return texts


def _elsewhere(source: Source, document: int, length: int, generator: np.random.Generator) -> np.ndarray | None:
    """At most `length` tokens of a document other than that one; None where none has any."""
    begin, end = borders(source, document)
    outside = source.tokens - (end - begin)
    for _ in range(100 if outside > 0 else 0):  # those that are empty are drawn and left
        at = int(generator.integers(outside))
        first, last = borders(source, document_of(source, at if at < begin else at + end - begin))
        if (count := last - 1 - first) > 0:  # the last token ends the document
            first += int(generator.integers(max(1, count - length + 1)))
            return source.read(first, min(length, last - 1 - first))
    return None


def _pairs(
    rule: Rule,
    source: Source,
    places: list[Place],
    block: int,
    one: Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]],
    least: int,
) -> Batch:
    """Rows of an encoder and of a decoder: `one` makes both sides of a text, which has `least` tokens or more.

    Both sides are framed, so what the decoder says is whole, and its input is that after `start`.
    """
    read, said = [], []
    for place in places:
        generator = rule.generator(place)
        sides = [one(ids, generator) for ids in _fitting(source, place, block, rule.frame, least)]
        read.append(_joined([rule.framed(side[0]) for side in sides]))
        row = _joined([rule.answered(side[1]) for side in sides])
        tokens = np.roll(row.tokens, 1)
        tokens[row.positions == 0] = rule.start
        said.append(row._replace(tokens=tokens, targets=row.tokens))
    encoder, decoder = (_batch(rows, _width(rows, block), rule.pad) for rows in (read, said))
    inputs = EncoderInput(encoder.tokens, encoder.positions, encoder.segments)
    return decoder._replace(encoder=inputs, read=encoder.read + decoder.read)


def _width(rows: list[_Row], block: int) -> int:
    longest = max((len(row.tokens) for row in rows), default=1)
    return min(block, -(-max(1, longest) // MULTIPLE) * MULTIPLE)


def _batch(rows: list[_Row], length: int, pad: int) -> Batch:
    """The rows, padded to `length`."""
    tokens, targets, positions, segments = (
        _padded([row[part] for row in rows], length, fill) for part, fill in enumerate((pad, IGNORE, 0, 0))
    )
    scored = int((targets != IGNORE).sum())
    return Batch(tokens, targets, positions, segments, scored=scored, read=sum(len(row.tokens) for row in rows))


def _padded(rows: list[np.ndarray], length: int, fill: int) -> Tensor:
    """(B, length)."""
    filled = np.full((len(rows), length), fill, np.int64)
    for number, row in enumerate(rows):
        filled[number, : len(row)] = row
    return torch.from_numpy(filled)
