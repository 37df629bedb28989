"""Decoding with an encoder: the completions are transformers', the source is encoded once, rows stay independent."""

import pytest
import torch

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.decode.generate import generate
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.sample import stream_key
from llmctl.core.model.init import initialise
from llmctl.core.model.layers import CrossAttention
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.sample import Sampling

transformers = pytest.importorskip("transformers", reason="the oracle")

T5 = {"vocab_size": 120, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 2}
BART = {
    **{"vocab_size": 120, "d_model": 32, "max_position_embeddings": 64},
    **{f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in {"layers": 2, "ffn_dim": 48}.items()},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
}
MODELS = {
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(**{**T5, "num_layers": 3, "num_decoder_layers": 2}, decoder_start_token_id=0)
    ),
    "t5-gated": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            **T5,
            decoder_start_token_id=0,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    ),
    "bart": lambda: transformers.BartForConditionalGeneration(transformers.BartConfig(**BART)),
}
PROMPTS = [[5, 9, 3, 1], [7, 1], [11, 110, 30, 4, 8, 12, 77, 2, 1], [7, 99, 100, 9, 1]]
SETTINGS = {
    "plain": {},
    "ends": {"eos_token_id": [17, 54, 90, 3, 31, 66, 101, 7, 9, 44, 45, 46]},
    "forced": {"forced_bos_token_id": 8, "forced_eos_token_id": 2, "eos_token_id": 2},
    "one-token": {"forced_bos_token_id": 8, "forced_eos_token_id": 2, "max_new_tokens": 1},
    "start": {"decoder_start_token_id": 33, "repetition_penalty": 1.5},
    "banned": {
        "suppress_tokens": list(range(40, 80)),
        "begin_suppress_tokens": list(range(80, 118)),
        "no_repeat_ngram_size": 3,
    },
    "banned-after-forced": {"forced_bos_token_id": 8, "begin_suppress_tokens": list(range(20, 118))},
    "least": {"eos_token_id": list(range(0, 120, 2)), "min_length": 4},
    "least-new": {"eos_token_id": list(range(0, 120, 2)), "min_new_tokens": 5},
}


def drawn(kind):
    """The model with every parameter random, biases and norms too; else all it writes may be one token."""
    model, chance = MODELS[kind]().eval(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=chance) * 0.3
            parameter.copy_(values + (parameter.dim() == 1 and name.endswith("weight")))
    return model


def written(model, prompts, sampling=None, keys=None, **how):
    """The ids of each row."""
    rows = [[] for _ in prompts]
    for token in generate(model, prompts, sampling or Sampling(max_tokens=20), keys or [0] * len(prompts), **how):
        rows[token.row].append(token.id)
    return rows


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", MODELS)
def test_greedy_completions_are_those_of_transformers(kind, setting, tmp_path):
    theirs = drawn(kind)
    how = {"max_new_tokens": 20, **SETTINGS[setting]}
    for name, value in {"eos_token_id": None, "pad_token_id": 0, **how}.items():
        setattr(theirs.generation_config, name, value)
    theirs.generation_config.forced_eos_token_id = how.get("forced_eos_token_id")
    theirs.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    said = checkpoint.generation
    rules, eos = Rules.of(said, checkpoint.config), how.get("eos_token_id") or ()
    sampling = Sampling(
        max_tokens=how["max_new_tokens"], repetition_penalty=theirs.generation_config.repetition_penalty or 1.0
    )
    stops = frozenset([eos] if isinstance(eos, int) else eos)
    ours = written(checkpoint.model(), PROMPTS, sampling, rules=rules, eos=stops)
    longest = max(map(len, PROMPTS))
    rows = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in PROMPTS])
    for found, wanted in zip(ours, theirs.generate(rows, attention_mask=(rows != 0).long()).tolist(), strict=True):
        assert found == wanted[1 : len(found) + 1] and set(wanted[len(found) + 1 :]) <= {0}
    assert len({tuple(row) for row in ours}) > 1 or setting == "one-token"


def test_runs_of_banned_tokens_are_not_completed(tmp_path):
    theirs = drawn("bart")
    prompt = torch.tensor([PROMPTS[0]])
    theirs.generation_config.update(eos_token_id=None, forced_eos_token_id=None, pad_token_id=0)
    free = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12)[0, 1:].tolist()
    banned = [free[3:5], [free[8]]]
    theirs.save_pretrained(tmp_path)
    config = Checkpoint.open(tmp_path).config
    rules = Rules.of({"bad_words_ids": banned}, config)
    wanted = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, bad_words_ids=banned)[
        0, 1:
    ].tolist()
    model = Checkpoint.open(tmp_path).model()
    assert written(model, [PROMPTS[0]], Sampling(max_tokens=12), rules=rules) == [wanted] != [free]


CONFIG = ModelConfig(
    kind="encoder-decoder",
    vocab=120,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    ff=64,
    context=64,
    init_std=0.3,
    tie=False,
    decoder_start=0,
)


@pytest.fixture(scope="module", params=["rope", "learned", "relative"])
def model(request):
    """An encoder-decoder of no family, with shared key and value heads."""
    return initialise(Transformer(CONFIG.resized(position=request.param)), seed=5).eval()


def test_a_batch_gives_each_row_what_it_gets_alone(model):
    rules, eos = Rules(start=(0, 4)), frozenset(range(0, 120, 9))
    for sampling in (Sampling(max_tokens=12), Sampling(temperature=0.9, top_p=0.95, max_tokens=12)):
        keys = [stream_key(3, row, 0) for row in range(len(PROMPTS))]
        together = written(model, PROMPTS, sampling, keys, eos=eos, rules=rules)
        alone = [
            written(model, [p], sampling, [key], eos=eos, rules=rules)[0] for p, key in zip(PROMPTS, keys, strict=True)
        ]
        assert together == alone
    assert len({len(ids) for ids in together}) > 1


def test_cached_steps_give_what_reading_the_whole_row_again_gives(model):
    row = [0]
    with torch.inference_mode():
        memory = model.encode(torch.tensor([PROMPTS[2]]))
        for _ in range(12):
            row.append(int(model.head(model(torch.tensor([row]), memory=memory))[0, -1].argmax()))
    assert not memory.kept
    assert written(model, [PROMPTS[2]], Sampling(max_tokens=12), rules=Rules(start=(0,))) == [row[1:]]


def test_the_source_is_encoded_once_and_its_keys_are_made_once(model, monkeypatch):
    calls = {"encode": 0, "keys": 0}
    encode, remember = model.encode, CrossAttention.remember

    def counted(*given, **named):
        calls["encode"] += 1
        return encode(*given, **named)

    def noted(self, memory, keep):
        calls["keys"] += self.layer not in memory.kept
        return remember(self, memory, keep)

    monkeypatch.setattr(model, "encode", counted)
    monkeypatch.setattr(CrossAttention, "remember", noted)
    samples = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[0]]  # three of them of one prompt
    written(model, samples, Sampling(temperature=1.0, max_tokens=9), [1, 2, 3, 4], rules=Rules(start=(0,)))
    assert calls == {"encode": 1, "keys": CONFIG.layers}


def test_a_prefix_model_reads_its_prompt_both_ways():
    config = ModelConfig(vocab=120, width=32, layers=2, heads=4, ff=64, context=64, init_std=0.3, prefix_lm=True)
    model = initialise(Transformer(config), seed=5).eval()
    row = list(PROMPTS[2])
    with torch.inference_mode():
        for _ in range(12):
            prefix = torch.arange(len(row))[None] < len(PROMPTS[2])
            row.append(int(model.head(model(torch.tensor([row]), prefix=prefix))[0, -1].argmax()))
    assert written(model, PROMPTS, Sampling(max_tokens=12))[2] == row[len(PROMPTS[2]) :]
    causal = initialise(Transformer(config.resized(prefix_lm=False)), seed=5).eval()
    assert written(causal, PROMPTS, Sampling(max_tokens=12))[2] != row[len(PROMPTS[2]) :]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"forced_bos_token_id": 120}, "forced_bos_token_id is \\[120\\]"),
        ({"suppress_tokens": ["a"]}, "suppress_tokens"),
        ({"bad_words_ids": [1, 2]}, "bad_words_ids"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"decoder_start_token_id": [1, 2]}, "decoder_start_token_id"),
    ],
)
def test_values_that_are_no_ids_are_refused(said, words):
    with pytest.raises(UserError, match=words):
        Rules.of(said, CONFIG)


def test_a_decoder_that_nothing_begins_is_refused():
    with pytest.raises(UserError, match="begins with"):
        Rules.of({}, CONFIG.resized(decoder_start=None))
    assert Rules.of({}, CONFIG.resized(decoder_start=None, bos=5)).start == (5,)
