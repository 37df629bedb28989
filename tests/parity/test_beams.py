"""Beam search against transformers': the same texts in the same order, with the same scores."""

import pytest
import torch

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.decode.beam_desk import BeamDesk, Quest
from llmctl.core.decode.choose import Chooser
from llmctl.core.decode.rules import Rules
from llmctl.spec.sample import Sampling
from llmctl.spec.search import Search

transformers = pytest.importorskip("transformers", reason="the oracle")

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
T5 = {"vocab_size": 120, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 2}
BART = {
    **{"vocab_size": 120, "d_model": 32, "max_position_embeddings": 64},
    **{f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in {"layers": 2, "ffn_dim": 48}.items()},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
}
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=120, num_key_value_heads=2, max_position_embeddings=64, **SMALL)
    ),
    "mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(vocab_size=120, num_key_value_heads=2, sliding_window=5, **SMALL)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=120, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ),
    "t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, decoder_start_token_id=0)),
    "bart": lambda: transformers.BartForConditionalGeneration(transformers.BartConfig(**BART)),
}
PROMPTS = [[5, 9, 3, 1], [7], [11, 110, 30, 4, 8, 12, 77, 2, 1], [7, 1, 100, 9]]
ENDS = [17, 54, 90, 3, 31, 66, 101]
TOKENS = 12
SETTINGS = {
    "endless": {},
    "ends": {"eos_token_id": ENDS},
    "one-end": {"eos_token_id": 2, "length_penalty": 2.0},
    "sums": {"eos_token_id": ENDS, "length_penalty": 0.0},
    "short": {"eos_token_id": ENDS, "length_penalty": -0.5},
    "early": {"eos_token_id": ENDS, "early_stopping": True},
    "never": {"eos_token_id": ENDS, "early_stopping": "never"},
    "never-sums": {"eos_token_id": ENDS, "early_stopping": "never", "length_penalty": 0.0},
    "five": {"eos_token_id": ENDS, "num_beams": 5},
    "penalties": {"eos_token_id": ENDS, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    "least": {"eos_token_id": ENDS, "min_new_tokens": 4},
    "banned": {"eos_token_id": ENDS, "suppress_tokens": list(range(40, 80)), "begin_suppress_tokens": [1, 2, 3, 4]},
    "last": {"eos_token_id": ENDS, "forced_eos_token_id": 3},
}
STOPPINGS = {False: "false", True: "true", "never": "never"}


def drawn(kind: str) -> "transformers.PreTrainedModel":
    """The model with every parameter random, biases and norms too; else all it writes may be one token."""
    model, chance = MODELS[kind]().eval(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=chance) * 0.3
            parameter.copy_(values + (parameter.dim() == 1 and name.endswith("weight")))
    return model


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Each kind of model as transformers has it, and as it is here; made when it is first asked for."""
    made = {}

    def pair(kind):
        if kind not in made:
            theirs, path = drawn(kind), tmp_path_factory.mktemp(kind)
            theirs.generation_config.update(eos_token_id=None, forced_eos_token_id=None, pad_token_id=0)
            theirs.save_pretrained(path)
            made[kind] = theirs, Checkpoint.open(path).model()
        return made[kind]

    return pair


def found(model, said: dict, most: int = 8) -> list[Quest]:
    """The searches after each of the prompts, once they are over."""
    ends = said.get("eos_token_id")
    eos = frozenset([ends] if isinstance(ends, int) else ends or ())
    rules = Rules.of(said, model.config)
    sampling = Sampling(max_tokens=TOKENS, repetition_penalty=said.get("repetition_penalty", 1.0))
    chooser = Chooser(sampling, rules, model.config.vocab, None, eos)
    desk = BeamDesk(model, Search().filled(said), most, 0, rules)
    quests = [Quest(prompt, chooser, 0, TOKENS, eos) for prompt in PROMPTS]
    for quest in quests:
        desk.ask(quest)
    while desk.busy:
        desk.step()
    return quests


CASES = [(kind, setting) for kind in ("llama", "t5") for setting in SETTINGS]
CASES += [(kind, setting) for kind in ("mistral", "gpt2", "bart") for setting in ("ends", "never", "penalties")]


@pytest.mark.parametrize(("kind", "setting"), CASES)
def test_texts_and_scores_of_a_search_are_those_of_transformers(kind, setting, pairs):
    theirs, ours = pairs(kind)
    said = {"num_beams": 3, **SETTINGS[setting]}
    beams = said["num_beams"]
    how = {"max_new_tokens": TOKENS, "num_return_sequences": beams, "do_sample": False, "output_scores": True, **said}
    for prompt, one in zip(PROMPTS, found(ours, said), strict=True):
        row = torch.tensor([prompt])
        wanted = theirs.generate(row, attention_mask=torch.ones_like(row), return_dict_in_generate=True, **how)
        start = 1 if ours.encoder is not None else len(prompt)
        assert len(one.texts) == beams
        for text, ids, score in zip(one.texts, wanted.sequences, wanted.sequences_scores, strict=True):
            assert list(text.ids) == ids[start : start + len(text.ids)].tolist()
            assert set(ids[start + len(text.ids) :].tolist()) <= {0, *ENDS[:1], 2}  # what fills the row
            assert text.score == pytest.approx(float(score), rel=1e-5, abs=1e-5)


def test_a_text_that_begins_with_a_forced_token_is_found_as_transformers_finds_it(pairs):
    theirs, ours = pairs("bart")
    said = {"num_beams": 3, "forced_bos_token_id": 8, "forced_eos_token_id": 2, "eos_token_id": 2}
    for prompt, one in zip(PROMPTS, found(ours, said), strict=True):
        row = torch.tensor([prompt])
        wanted = theirs.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=TOKENS, **said)[0, 1:]
        assert list(one.texts[0].ids) == wanted[: len(one.texts[0].ids)].tolist()
        assert one.texts[0].ids[0] == 8


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_several_prompts_at_a_time_are_searched_as_each_alone(kind, pairs):
    _, ours = pairs(kind)
    said = {"num_beams": 3, "eos_token_id": ENDS}
    together, alone = found(ours, said, most=100), found(ours, said, most=1)
    for one, other in zip(together, alone, strict=True):
        assert [text.ids for text in one.texts] == [text.ids for text in other.texts]
