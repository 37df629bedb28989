"""What is done to a step's scores before a token is chosen, against transformers' processors, alone and together."""

import random

import pytest
import torch

from llmctl.core.decode.choose import Chooser
from llmctl.core.decode.rules import Rules
from llmctl.spec.model import ModelConfig
from llmctl.spec.sample import Sampling

transformers = pytest.importorskip("transformers", reason="the oracle of the filters")

VOCAB, PROMPT, LIMIT, ROWS = 40, 6, 9, 5
EOS = (3, 7)
# Options of transformers' GenerationConfig; those of Sampling have another name or the same.
ALONE = {
    "repetition": {"repetition_penalty": 1.4},
    "praise of repetition": {"repetition_penalty": 0.6},
    "bias": {"sequence_bias": [[[5], 2.5], [[6], -3.0], [[1, 2], 4.0], [[4, 1, 2], -9.0], [[9, 3], 5.0]]},
    "bigrams": {"no_repeat_ngram_size": 2},
    "trigrams": {"no_repeat_ngram_size": 3},
    "unigrams": {"no_repeat_ngram_size": 1},
    "bad words": {"bad_words_ids": [[5], [1, 2], [4, 1, 2], [3], [2, 7]]},
    "least new": {"min_new_tokens": 4},
    "least length": {"min_length": PROMPT + 3},
    "forced end": {"forced_eos_token_id": [3, 7]},
    "suppressed": {"suppress_tokens": [2, 8, 30]},
    "suppressed at first": {"begin_suppress_tokens": [2, 3]},
    "warm": {"temperature": 1.7},
    "top k": {"top_k": 4},
    "top p": {"top_p": 0.6},
    "min p": {"min_p": 0.2},
    "typical": {"typical_p": 0.5},
    "epsilon": {"epsilon_cutoff": 0.03},
    "eta": {"eta_cutoff": 0.2},
}
OURS = {"temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty"}


def together(seed: int) -> dict:
    """Some of them, by chance."""
    chance = random.Random(seed)
    return {name: value for one in chance.sample(list(ALONE.values()), 6) for name, value in one.items()}


@pytest.mark.parametrize("settings", [*ALONE.values(), *map(together, range(40))], ids=repr)
def test_scores_are_those_after_transformers_processors(settings):
    config = transformers.GPT2Config(vocab_size=VOCAB, n_embd=8, n_layer=1, n_head=1)
    theirs = transformers.GenerationConfig(
        do_sample=True, eos_token_id=list(EOS), max_length=PROMPT + LIMIT, **{"top_k": None, **settings}
    )
    oracle = transformers.GPT2LMHeadModel(config)
    oracle._prepare_special_tokens(theirs, kwargs_has_attention_mask=True)
    processors = oracle._get_logits_processor(theirs, input_ids_seq_length=PROMPT)

    sampling = Sampling(**{"temperature": 1.0, **{key: value for key, value in settings.items() if key in OURS}})
    said = {"eos_token_id": list(EOS), **settings}
    least = said.pop("min_length", None)  # counts the prompt, which ours does for an encoder-decoder alone
    if least:
        said["min_new_tokens"] = max(least - PROMPT, said.get("min_new_tokens", 0))
    rules = Rules.of(said, ModelConfig(vocab=VOCAB, width=8, layers=1, heads=1, ff=8, context=64, eos=EOS))
    chooser = Chooser(sampling, rules, VOCAB, None, frozenset(EOS))

    draw = torch.Generator().manual_seed(4)
    ids = torch.randint(0, 10, (ROWS, PROMPT), generator=draw)  # of few tokens, so that runs come again
    lines = [chooser.line(row, 0, LIMIT) for row in ids.tolist()]
    for _ in range(LIMIT):
        logits = torch.randn(ROWS, VOCAB, generator=draw) * 2
        wanted = processors(ids, logits.clone())
        ours = chooser.scores(logits, lines)
        assert torch.equal(ours > -torch.inf, wanted > -torch.inf)
        torch.testing.assert_close(ours.softmax(-1), wanted.softmax(-1), atol=1e-6, rtol=1e-5)  # rounding of fp32
        greedy = torch.randint(0, 10, (ROWS,), generator=draw)
        ids = torch.cat([ids, greedy[:, None]], dim=1)
        for line, token in zip(lines, greedy.tolist(), strict=True):
            line.push(token)


def test_the_first_token_of_a_decoder_beside_an_encoder_is_forced_and_the_second_is_not():
    config = transformers.T5Config(vocab_size=VOCAB, d_model=8, num_layers=1, num_heads=1, d_kv=8, d_ff=8)
    said = {"decoder_start_token_id": 0, "forced_bos_token_id": 4, "begin_suppress_tokens": [5], "min_length": 3}
    theirs = transformers.GenerationConfig(eos_token_id=3, max_length=8, **said)
    oracle = transformers.T5ForConditionalGeneration(config)
    oracle._prepare_special_tokens(theirs, kwargs_has_attention_mask=True)
    processors = oracle._get_logits_processor(theirs, input_ids_seq_length=1)
    shape = {"vocab": VOCAB, "width": 8, "layers": 1, "heads": 1, "ff": 8, "context": 64}
    rules = Rules.of(said, ModelConfig(**shape, kind="encoder-decoder", eos=(3,)))
    chooser = Chooser(Sampling(), rules, VOCAB, None, frozenset([3]))
    line = chooser.line([11, 12], 0, 7)
    ids = torch.tensor([[0]])
    for step in range(5):
        logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(step))
        assert torch.equal(chooser.scores(logits, [line]), processors(ids, logits.clone()))
        token = chooser.pick(logits, [line])[0].id
        assert step > 0 or token == 4
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
