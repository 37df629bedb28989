"""Rows of every objective: frames by hand, what was removed put back, and noise that depends on the place alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.core.data.batch import HELD_OUT, IGNORE, Batch, Place, TrainingOrder, in_order, pack
from llmctl.core.data.pieces import pieces
from llmctl.core.data.rows import MULTIPLE, builder
from llmctl.errors import UserError
from llmctl.spec.noise import SUITS, NoiseConfig
from tests.core.data.made import CLS, MASK, MID, PAD, PRE, SENTINELS, SEP, STOP, SUF, Memory, documents, vocabulary
from tests.core.data.test_corrupt import near, put_back, unscrambled

VOCABULARY = vocabulary()
T5 = vocabulary(cls=None, sep=None, mask=None)
START = 7
EVERY = [(objective, kind) for objective, kinds in SUITS.items() for kind in kinds]
QUIET = NoiseConfig(mask_rate=1.0, keep_share=1.0, random_share=0.0)  # asks for all, hides nothing
quick = settings(max_examples=60, deadline=None)


def build(objective, kind, noise=None, seed=0, words=VOCABULARY):
    return builder(objective, kind, noise or NoiseConfig(), words, seed, start=START)


def places(count, block, epoch=0):
    return [Place(index * block, epoch, index) for index in range(count)]


def rows_of(batch: Batch) -> list[tuple]:
    """Each row without its padding, as plain lists."""
    found = []
    for row in range(len(batch.tokens)):
        real = batch.segments[row] > 0
        sides = [batch.tokens, batch.targets, batch.positions, batch.segments, batch.types, batch.prefix]
        parts = [None if side is None else side[row][real].tolist() for side in sides]
        if batch.encoder is not None:
            real = batch.encoder.segments[row] > 0
            parts += [side[row][real].tolist() for side in batch.encoder]
        if batch.pairs is not None:
            parts.append(batch.pairs[row].item())
        found.append(tuple(map(str, parts)))
    return found


def segments_of(ids: torch.Tensor, segments: torch.Tensor) -> list[list[int]]:
    return [ids[segments == number].tolist() for number in range(1, int(segments.max()) + 1)]


# ---------------------------------------------------------------------------------------------- every objective


@pytest.mark.parametrize(("objective", "kind"), EVERY)
def test_a_row_is_the_same_whatever_the_batch_and_the_order(objective, kind):
    source = Memory(documents(40, 0, 90))
    one = build(objective, kind)
    together = places(12, 64)
    whole = rows_of(one(source, together, 64))
    assert [rows_of(one(source, [place], 64))[0] for place in together] == whole
    backwards = rows_of(one(source, together[::-1], 64))
    assert backwards[::-1] == whole
    assert rows_of(build(objective, kind)(source, together[5:9], 64)) == whole[5:9]


@pytest.mark.parametrize(("objective", "kind"), [pair for pair in EVERY if pair[0] != "clm"])
def test_noise_is_another_for_another_seed_epoch_or_index(objective, kind):
    source = Memory(documents(40, 30, 90))
    made = {
        str(rows_of(build(objective, kind, NoiseConfig(fim_rate=1.0), seed)(source, [Place(64, epoch, index)], 64)))
        for seed in (0, 1)
        for epoch in (HELD_OUT, 0, 1)
        for index in (0, 1, 2)
    }
    assert len(made) >= 15  # of 18: two rows of half a document may be cut alike


@pytest.mark.parametrize(("objective", "kind"), EVERY)
@quick
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12), block=st.integers(4, 40), seed=st.integers(0, 99))
def test_rows_of_any_documents_fit_and_are_counted(objective, kind, lengths, block, seed):
    draw = np.random.default_rng(seed)
    source = Memory([draw.integers(STOP, 170, length).tolist() for length in lengths])
    batches = list(in_order(source, block, 3, 10**9, build(objective, kind, seed=seed)))
    for batch in batches:
        sides = [batch.tokens, batch.targets, batch.positions, batch.segments]
        assert len({side.shape for side in sides}) == 1 and all(side.dtype == torch.int64 for side in sides)
        real = batch.segments > 0
        assert (real.sum(1) <= block).all() and batch.tokens[~real].eq(PAD).all() | (objective in ("clm", "prefix"))
        assert batch.targets[~real].eq(IGNORE).all() and batch.positions[~real].eq(0).all()
        assert batch.scored == (batch.targets != IGNORE).sum()
        read = int(real.sum())
        if kind == "encoder-decoder":
            encoder = batch.encoder
            for width in (encoder.tokens.shape[1], batch.tokens.shape[1]):
                assert width == block or (width < block and width % MULTIPLE == 0)
            assert torch.equal(encoder.segments.amax(1), batch.segments.amax(1))
            read += int((encoder.segments > 0).sum())
        else:
            assert batch.tokens.shape[1] == block
        assert batch.read == read
        for row in range(len(batch.tokens)):
            for part in segments_of(batch.positions[row], batch.segments[row]):
                assert part == list(range(len(part)))


@pytest.mark.parametrize(("objective", "kind"), EVERY)
@pytest.mark.parametrize("words", [VOCABULARY, vocabulary(cls=None, sep=None)], ids=["opened", "closed only"])
def test_the_least_row_asks_for_something_and_a_shorter_one_for_nothing(objective, kind, words):
    source, least = Memory(documents(4, 30, 40)), words.least(objective, kind)
    one, at = build(objective, kind, words=words), places(8, 4)
    assert one(source, at, least).scored > 0
    assert kind == "decoder" or one(source, at, least - 1).scored == 0


@pytest.mark.parametrize(("objective", "kind"), EVERY)
def test_a_resumed_order_meets_the_same_rows(objective, kind):
    source = Memory(documents(60, 5, 60))
    order = TrainingOrder(source, 32, 4, 3, build(objective, kind, seed=3))
    again = TrainingOrder(source, 32, 4, 3, build(objective, kind, seed=3))
    for step in (1, 7, 2 * source.tokens // 128):
        whole = [row for batch in order.batches(step, 4) for row in rows_of(batch)]
        assert whole == [row for batch in again.batches(step, 1) for row in rows_of(batch)]


@pytest.mark.parametrize(("objective", "kind"), EVERY)
def test_evaluation_is_the_same_every_time(objective, kind):
    source = Memory(documents(20, 5, 60))
    first = [rows_of(batch) for batch in in_order(source, 32, 3, 400, build(objective, kind))]
    assert first == [rows_of(batch) for batch in in_order(source, 32, 3, 400, build(objective, kind))]


def test_an_objective_that_does_not_suit_or_a_tokenizer_that_lacks_is_refused():
    with pytest.raises(UserError, match="--objective mlm trains an encoder, but the model is a decoder"):
        build("mlm", "decoder")
    with pytest.raises(UserError, match="needs a tokenizer with a mask token"):
        build("mlm", "encoder", words=T5)
    with pytest.raises(UserError, match="no end-of-text token"):
        build("clm", "decoder", words=vocabulary(sep=None, eos=None))


def test_documents_are_cut_at_the_borders_of_a_row():
    source = Memory([[11, 12, 13], [], [14, 15]])  # 11 12 13 E E 14 15 E
    found = [(piece.ids.tolist(), piece.ended) for piece in pieces(source, 1, 5)]
    assert found == [([12, 13], True), ([], True), ([14], False)]
    assert [piece.ids.tolist() for piece in pieces(source, 6, 99)] == [[15]]
    assert pieces(source, 8, 4) == []


# ---------------------------------------------------------------------------------------------- mlm


def test_documents_of_an_encoder_are_framed_and_the_row_is_full():
    source = Memory([[11, 12, 13], [], [14, 15], [16, 17, 18]])
    batch = build("mlm", "encoder", QUIET)(source, [Place(1, 0, 0)], 12)
    assert batch.tokens.tolist() == [[CLS, 12, 13, SEP, CLS, 14, 15, SEP, CLS, 16, 17, SEP]]
    assert batch.targets.tolist() == [[IGNORE, 12, 13, IGNORE, IGNORE, 14, 15, IGNORE, IGNORE, 16, 17, IGNORE]]
    assert batch.segments.tolist() == [[1] * 4 + [2] * 4 + [3] * 4]
    assert batch.positions.tolist() == [[0, 1, 2, 3] * 3]
    assert (batch.scored, batch.read, batch.types, batch.pairs) == (6, 12, None, None)


def test_a_row_s_last_slots_are_padding_where_no_text_fits_between_cls_and_sep():
    source = Memory([[11, 12, 13], [14, 15, 16]])
    batch = build("mlm", "encoder", QUIET)(source, [Place(0, 0, 0)], 7)
    assert batch.tokens.tolist() == [[CLS, 11, 12, 13, SEP, PAD, PAD]]
    assert batch.segments.tolist() == [[1] * 5 + [0, 0]]


def test_a_tokenizer_without_cls_frames_with_the_ends_of_texts():
    words = vocabulary(cls=None, sep=None, bos=8, eos=9)
    batch = build("mlm", "encoder", QUIET, words=words)(Memory([[11, 12]]), [Place(0, 0, 0)], 8)
    assert batch.tokens.tolist() == [[8, 11, 12, 9, PAD, PAD, PAD, PAD]]


def test_rates_of_masks_are_as_asked_over_many_rows():
    source = Memory(documents(400, 20, 200))
    asked = masked = text = 0
    for batch in in_order(source, 128, 16, 10**9, build("mlm", "encoder")):
        scored = batch.targets != IGNORE
        asked, masked = asked + int(scored.sum()), masked + int((batch.tokens[scored] == MASK).sum())
        original = torch.where(scored, batch.targets, batch.tokens)
        text += int((original >= STOP).sum())
        assert (batch.targets[scored] >= STOP).all() and not (original == MASK).any()
    assert near(asked, 0.15, text) and near(masked, 0.8, asked)


def test_masks_move_from_epoch_to_epoch():
    """RoBERTa's dynamic masking: after many epochs every token was asked for."""
    source, one = Memory(documents(1, 62, 62)), build("mlm", "encoder")
    asked = torch.stack([one(source, [Place(0, epoch, 0)], 64).targets[0] != IGNORE for epoch in range(60)])
    assert asked.any(0).sum() == 62 and near(int(asked.sum()), 0.15, 62 * 60)


# ---------------------------------------------------------------------------------------------- mlm+nsp


def pairs_of(batch: Batch) -> list[tuple[list[int], list[int], int]]:
    found = []
    for row in range(len(batch.tokens)):
        ids = torch.where(batch.targets[row] != IGNORE, batch.targets[row], batch.tokens[row])
        kinds, real = batch.types[row], batch.segments[row] > 0
        first, second = ids[(kinds == 0) & real].tolist(), ids[kinds == 1].tolist()
        assert first[0] == CLS and first[-1] == second[-1] == SEP
        assert SEP not in first[:-1] + second[:-1]
        found.append((first[1:-1], second[:-1], batch.pairs[row].item()))
    return found


def test_half_of_the_pairs_follow_and_half_come_from_another_document():
    source = Memory([[11 + number] * 400 for number in range(50)])
    order = TrainingOrder(source, 48, 100, 0, build("mlm+nsp", "encoder"))
    labels = []
    for batch in order.batches(2, 50):
        assert batch.segments.max() == 1
        for first, second, label in pairs_of(batch):
            assert first and len(set(first)) == len(set(second)) == 1 and 23 <= len(first) + len(second) <= 45
            assert (first[0] == second[0]) == (label == 0)
            labels.append(label)
    assert near(sum(labels), 0.5, len(labels))


def test_what_follows_is_what_stands_there_and_begins_a_sentence():
    text = [11, 13, 15, STOP, 17, 19, STOP, 21]
    source = Memory([text, [31] * 8])
    one = build("mlm+nsp", "encoder")
    found = {str(pair) for i in range(60) for pair in pairs_of(one(source, [Place(0, 0, i)], 12)) if pair[2] == 0}
    assert found == {str((text[:4], text[4:], 0)), str((text[:7], text[7:], 0))}


def test_a_source_of_one_document_has_no_other_and_too_short_ones_no_pair():
    one = build("mlm+nsp", "encoder")
    batch = one(Memory([[11] * 90]), places(6, 12), 12)
    assert batch.pairs.tolist() == [0] * 6
    batch = one(Memory([[11], [12], [13]]), places(1, 6), 6)
    assert batch.pairs.tolist() == [IGNORE] and batch.scored == 0 and batch.segments.sum() == 0


def test_a_row_takes_the_longest_document_in_reach():
    source = Memory([[11], [12] * 6, [13]])
    batch = build("mlm+nsp", "encoder", QUIET)(source, [Place(0, 0, index) for index in range(20)], 12)
    assert all(first[0] == 12 for first, _, _ in pairs_of(batch))


# ---------------------------------------------------------------------------------------------- span


def test_spans_of_t5_by_hand():
    """Documents of two tokens leave no choice: the first is kept, the second taken."""
    source = Memory([[11, 12], [13], [14, 15]])  # one token is too few
    batch = build("span", "encoder-decoder", words=T5)(source, [Place(0, 0, 0)], 16)
    zero = SENTINELS[0]
    assert batch.encoder.tokens.tolist() == [[11, zero, SEP, 14, zero, SEP, PAD, PAD]]
    assert batch.encoder.segments.tolist() == [[1, 1, 1, 2, 2, 2, 0, 0]]
    assert batch.encoder.positions.tolist() == [[0, 1, 2, 0, 1, 2, 0, 0]]
    assert batch.tokens.tolist() == [[START, zero, 12, START, zero, 15, PAD, PAD]]
    assert batch.targets.tolist() == [[zero, 12, SEP, zero, 15, SEP, IGNORE, IGNORE]]
    assert batch.segments.tolist() == [[1, 1, 1, 2, 2, 2, 0, 0]]
    assert (batch.scored, batch.read) == (6, 12)


def test_spans_of_every_row_can_be_put_back_and_hold_their_share():
    source = Memory(documents(60, 2, 150))
    taken = text = 0
    for batch in in_order(source, 64, 4, 10**9, build("span", "encoder-decoder", words=T5)):
        for row in range(len(batch.tokens)):
            sides = (
                segments_of(batch.encoder.tokens[row], batch.encoder.segments[row]),
                segments_of(batch.targets[row], batch.segments[row]),
                segments_of(batch.tokens[row], batch.segments[row]),
            )
            parts = []
            for read, said, given_ in zip(*sides, strict=True):
                assert read.pop() == SEP and given_[0] == START and given_[1:] == said[:-1] and said.pop() == SEP
                parts.append(put_back(_Pair(read, said), SENTINELS))
                taken += sum(id not in SENTINELS for id in said)
                text += len(parts[-1])
            expected = [piece.ids.tolist() for piece in pieces(source, _start(source, parts[0]), 64)]
            assert parts == [part for part in _fit(expected, parts) if len(part) > 1]
    assert taken / text == pytest.approx(0.15, abs=0.01)


class _Pair:
    def __init__(self, inputs, targets):
        self.inputs, self.targets = np.array(inputs), np.array(targets)


def _start(source: Memory, part: list[int]) -> int:
    """Where a run of tokens stands in the stream."""
    found = [i for i in range(source.tokens) if source.ids[i : i + len(part)].tolist() == part]
    return found[0]


def _fit(expected: list[list[int]], parts: list[list[int]]) -> list[list[int]]:
    """The expected texts, the last cut to what had room."""
    expected = [part for part in expected if len(part) > 1][: len(parts)]
    return [*expected[:-1], expected[-1][: len(parts[-1])]]


# ---------------------------------------------------------------------------------------------- denoise


def test_frames_of_bart_by_hand():
    """The decoder begins with its start token, and says <s> first, as fairseq's and transformers' BART do."""
    noise = NoiseConfig(text_infilling=False)
    source = Memory([[11, 12, 13], [14, 15, 16]])
    batch = build("denoise", "encoder-decoder", noise)(source, [Place(0, 0, 0)], 9)  # one sentence: nothing to move
    assert batch.encoder.tokens.tolist() == [[CLS, 11, 12, 13, SEP, CLS, 14, 15, SEP]]
    assert batch.targets.tolist() == [[CLS, 11, 12, 13, SEP, CLS, 14, 15, SEP]]
    assert batch.tokens.tolist() == [[START, CLS, 11, 12, 13, START, CLS, 14, 15]]
    assert batch.segments.tolist() == batch.encoder.segments.tolist() == [[1] * 5 + [2] * 4]
    assert (batch.scored, batch.read) == (9, 18)


def test_the_decoder_says_the_whole_text_whatever_the_noise():
    source = Memory(documents(30, 20, 100))
    noise = NoiseConfig(token_masking=True, token_deletion=True, document_rotation=True)
    noisy, plain = (
        build("denoise", "encoder-decoder", one)(source, places(10, 96), 96)
        for one in (noise, NoiseConfig(text_infilling=False))
    )
    assert torch.equal(noisy.targets, plain.targets) and torch.equal(noisy.tokens, plain.tokens)
    for row in range(10):
        for read, said in zip(
            segments_of(noisy.encoder.tokens[row], noisy.encoder.segments[row]),
            segments_of(noisy.targets[row], noisy.segments[row]),
            strict=True,
        ):
            assert (read[0], read[-1]) == (CLS, SEP) == (said[0], said[-1])
            assert set(read) <= {*said, MASK}


# ---------------------------------------------------------------------------------------------- prefix


def test_a_prefix_sees_itself_and_is_asked_for_what_follows_it():
    source = Memory(documents(40, 0, 60))
    packed, batch = (one(source, places(20, 48), 48) for one in (pack, build("prefix", "decoder")))
    assert torch.equal(batch.tokens, packed.tokens) and torch.equal(batch.segments, packed.segments)
    lengths = []
    for row in range(20):
        sides = (packed.targets[row], batch.targets[row], batch.prefix[row])
        for plain, targets, prefix in zip(*(segments_of(side, batch.segments[row]) for side in sides), strict=True):
            wide = sum(prefix)
            assert prefix == [True] * wide + [False] * (len(prefix) - wide) and wide >= 1
            assert targets == [IGNORE] * (wide - 1) + plain[wide - 1 :]
            lengths.append(wide / len(prefix))
    assert not batch.prefix[batch.segments == 0].any()
    assert np.mean(lengths) == pytest.approx(0.5, abs=0.15)


def test_the_rest_of_a_text_is_its_decoder_s():
    source = Memory(documents(20, 2, 60))
    batch = build("prefix", "encoder-decoder", words=T5)(source, places(8, 64), 64)
    for row, place in enumerate(places(8, 64)):
        found = []
        for begin, rest in zip(
            segments_of(batch.encoder.tokens[row], batch.encoder.segments[row]),
            segments_of(batch.targets[row], batch.segments[row]),
            strict=True,
        ):
            assert begin.pop() == rest.pop() == SEP and begin and rest
            found.append(begin + rest)
        expected = [piece.ids.tolist() for piece in pieces(source, place.start, 64) if len(piece.ids) > 1]
        assert found[:-1] == expected[: len(found) - 1]


def test_a_decoder_does_not_begin_with_the_token_that_ends_what_it_says():
    """GPT's <|endoftext|> opens texts and closes them; generation would stop at once."""
    words = vocabulary(cls=None, sep=None, bos=9, eos=9)
    batch = build("prefix", "encoder-decoder", words=words)(Memory([[11, 12]]), [Place(0, 0, 0)], 6)
    assert batch.encoder.tokens.tolist() == [[9, 11, 9, PAD, PAD, PAD]]
    assert batch.tokens.tolist() == [[START, 12, PAD, PAD, PAD, PAD]]
    assert batch.targets.tolist() == [[12, 9, IGNORE, IGNORE, IGNORE, IGNORE]]


# ---------------------------------------------------------------------------------------------- fim


@quick
@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=9), start=st.integers(0, 20), block=st.integers(1, 30))
def test_rows_without_a_moved_middle_are_those_of_clm(lengths, start, block):
    source = Memory([np.random.default_rng(i).integers(STOP, 170, n).tolist() for i, n in enumerate(lengths)])
    at = [Place(min(start, source.tokens - 1), 0, 0)]
    ours, packed = build("fim", "decoder", NoiseConfig(fim_rate=0.0))(source, at, block), pack(source, at, block)
    for name in ("tokens", "targets", "positions", "segments"):
        assert torch.equal(getattr(ours, name), getattr(packed, name)), name
    assert (ours.scored, ours.read) == (packed.scored, packed.read)


def test_a_document_whose_middle_comes_last_ends_after_it():
    source = Memory([[11, 12, 13, 14], [15, 16, 17, 18, 19]])
    batch = build("fim", "decoder", NoiseConfig(fim_rate=1.0, spm_rate=0.0))(source, [Place(0, 0, 0)], 14)
    first, second = segments_of(batch.tokens[0], batch.segments[0])
    said = segments_of(batch.targets[0], batch.segments[0])
    assert [*first[1:], SEP] == said[0] and [*second[1:], SEP] == said[1] and second.pop(0) == SEP
    for ids, text in ((first, [11, 12, 13, 14]), (second, [15, 16, 17])):  # what fits beside the three marks
        _, prefix, middle, suffix = unscrambled(ids)
        assert prefix + middle + suffix == text
    assert batch.scored == 14


def test_rates_of_moved_middles_are_as_asked():
    source = Memory(documents(300, 20, 60))
    moved = spm = count = 0
    for batch in in_order(source, 512, 8, 10**9, build("fim", "decoder", NoiseConfig(fim_rate=0.4, spm_rate=0.75))):
        for row in range(len(batch.tokens)):
            for ids in segments_of(batch.tokens[row], batch.segments[row])[:-1]:  # the last may have no room
                count += 1
                moved += PRE in ids
                spm += PRE in ids and ids[ids.index(PRE) + 1] == SUF
                assert (ids.count(PRE), ids.count(MID), ids.count(SUF)) in ((1, 1, 1), (0, 0, 0))
    assert near(moved, 0.4, count)
    assert spm / moved == pytest.approx(0.75, abs=0.15)  # and PSM with an empty prefix, one in twenty or so
