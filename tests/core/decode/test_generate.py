"""The decoding loop: batched equals single, cached equals uncached, and rows end where they should."""

import math

import pytest
import torch

from llmctl.core.decode import rows as module
from llmctl.core.decode.generate import Completion, complete, generate
from llmctl.core.decode.sample import stream_key
from llmctl.errors import UserError
from llmctl.spec.sample import Sampling

from .conftest import SHAPES, make_model

PROMPTS = [[5, 9, 3], [7], [11, 250, 30, 4, 8, 120, 77, 2], [7, 1, 100, 9], [5, 9, 3]]
GREEDY = Sampling(max_tokens=12)
WARM = Sampling(temperature=0.9, top_p=0.95, max_tokens=12)


def tokens_of(model, prompts, sampling, keys=None, **how):
    """The ids of each row and how it ended."""
    keys = keys or [stream_key(0, row, 0) for row in range(len(prompts))]
    ids, ends = [[] for _ in prompts], [None] * len(prompts)
    for token in generate(model, prompts, sampling, keys, **how):
        assert ends[token.row] is None, "a row goes on after its end"
        if token.id is not None:
            ids[token.row].append(token.id)
        ends[token.row] = token.finish
    return ids, ends


@pytest.mark.parametrize("kind", SHAPES)
def test_a_cached_step_gives_what_reading_the_whole_row_again_gives(kind):
    model = make_model(kind)
    row = list(PROMPTS[2])
    with torch.inference_mode():
        for _ in range(12):
            row.append(int(model.head(model(torch.tensor([row])))[0, -1].argmax()))
    assert tokens_of(model, [PROMPTS[2]], GREEDY)[0] == [row[8:]]


@pytest.mark.parametrize("sampling", [GREEDY, WARM, Sampling(repetition_penalty=1.5, max_tokens=12)], ids=repr)
@pytest.mark.parametrize("kind", SHAPES)
def test_a_batch_gives_each_row_what_it_gets_alone(kind, sampling):
    model = make_model(kind, tie=False)  # a tied one without attention to positions tends to repeat itself
    eos = frozenset(range(0, 300, 9))  # so many that rows leave the batch at different steps
    keys = [stream_key(3, row, 0) for row in range(len(PROMPTS))]
    together = tokens_of(model, PROMPTS, sampling, keys, eos=eos)
    alone = [tokens_of(model, [prompt], sampling, [key], eos=eos) for prompt, key in zip(PROMPTS, keys, strict=True)]
    assert together == ([ids for ((ids,), _) in alone], [end for (_, (end,)) in alone])
    assert len({len(ids) for ids in together[0]}) > 1
    backwards = tokens_of(model, PROMPTS[::-1], sampling, keys[::-1], eos=eos)
    assert together == tuple(part[::-1] for part in backwards)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_cache_that_grows_changes_nothing(kind, monkeypatch):
    model = make_model(kind)
    wanted = tokens_of(model, PROMPTS, WARM)
    monkeypatch.setattr(module, "SPARE", 1)
    assert tokens_of(model, PROMPTS, WARM) == wanted


def test_samples_of_one_prompt_differ_by_their_keys_alone():
    model = make_model()
    keys = [stream_key(0, 0, sample) for sample in range(4)]
    rows, _ = tokens_of(model, [PROMPTS[0]] * 4, WARM, keys)
    assert len({tuple(ids) for ids in rows}) == 4
    assert tokens_of(model, [PROMPTS[0]] * 2, WARM, [keys[2], keys[2]])[0] == [rows[2], rows[2]]
    same, _ = tokens_of(model, [PROMPTS[0]] * 3, GREEDY)
    assert same[0] == same[1] == same[2]


def test_a_row_ends_with_any_eos_and_the_eos_is_counted():
    model = make_model()
    (free,), ends = tokens_of(model, [PROMPTS[0]], GREEDY)
    assert ends == ["length"] and len(free) == 12
    for eos in (free[4], free[7]):
        (ids,), ends = tokens_of(model, [PROMPTS[0]], GREEDY, eos=frozenset([eos, 299]))
        assert ids == free[: free.index(eos) + 1] and ends == ["stop"]


def test_no_tokens_wanted_is_an_empty_completion():
    assert tokens_of(make_model(), PROMPTS[:2], Sampling(max_tokens=0)) == ([[], []], ["length", "length"])


def test_learned_positions_end_the_text_and_rotary_ones_do_not():
    prompt = list(range(60))
    long = Sampling(max_tokens=20)
    (ids, short), ends = tokens_of(make_model("gpt2"), [prompt, [1]], long)
    assert len(ids) == 5  # 64 positions; the last token is predicted at position 63 and never read
    assert len(short) == 20 and ends == ["length", "length"]
    (ids,), _ = tokens_of(make_model("llama"), [prompt], long)
    assert len(ids) == 20


def test_ids_without_a_token_are_never_chosen():
    model = make_model(tie=False)
    with torch.no_grad():
        model.head.weight[290:] = 50 * model.head.weight[:10]
    assert max(tokens_of(model, PROMPTS, GREEDY)[0][0]) >= 290
    for sampling in (GREEDY, WARM, Sampling(temperature=3.0, max_tokens=12)):
        rows, _ = tokens_of(model, PROMPTS, sampling, known=290)
        assert max(map(max, rows)) < 290


def test_scores_that_are_not_numbers_are_an_error():
    model = make_model()
    with torch.no_grad():
        model.decoder.norm.weight[3] = math.nan
    with pytest.raises(UserError, match="not numbers"):
        tokens_of(model, PROMPTS, GREEDY)


def test_the_text_is_that_of_the_tokens(byte_bpe):
    model = make_model()
    rows, _ = tokens_of(model, PROMPTS, WARM, known=byte_bpe.size)
    keys = [stream_key(0, row, 0) for row in range(len(PROMPTS))]
    pieces = list(complete(model, byte_bpe, PROMPTS, WARM, keys, frozenset()))
    for row, (prompt, ids) in enumerate(zip(PROMPTS, rows, strict=True)):
        shown = "".join(piece.text for piece in pieces if piece.row == row)
        (done,) = [piece.completion for piece in pieces if piece.row == row and piece.completion]
        assert done == Completion(shown, "length", 12)
        assert byte_bpe.decode(prompt + ids).endswith(shown)


def test_a_stop_string_ends_the_row_and_is_left_out(byte_bpe):
    model = make_model()
    key = [stream_key(0, 0, 0)]
    (ids,), _ = tokens_of(model, [PROMPTS[0]], WARM, key, known=byte_bpe.size)
    whole = list(complete(model, byte_bpe, [PROMPTS[0]], WARM, key, frozenset()))[-1].completion
    stop = whole.text[5:7]
    *_, last = complete(model, byte_bpe, [PROMPTS[0]], WARM, key, frozenset(), stops=[stop])
    assert last.completion.finish == "stop"
    assert last.completion.text == whole.text[: whole.text.index(stop)]
    assert last.completion.tokens < len(ids)
