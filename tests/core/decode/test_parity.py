"""Decoding against transformers' generate, on random models that transformers made and saved."""

import pytest
import torch

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.decode.generate import generate
from llmctl.core.decode.prompt import stop_ids
from llmctl.spec.sample import Sampling

transformers = pytest.importorskip("transformers", reason="the oracle")

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=120, num_key_value_heads=2, initializer_range=0.3, max_position_embeddings=64, **SMALL
        )
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=120, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3, eos_token_id=2
        )
    ),
}
PROMPTS = [[5, 9, 3], [7], [11, 110, 30, 4, 8, 12, 77, 2], [7, 1, 100, 9]]


@pytest.mark.parametrize("penalty", [1.0, 1.4])
@pytest.mark.parametrize("eos", [None, [17, 54, 90, 3, 31, 66, 101]])
@pytest.mark.parametrize("kind", MODELS)
def test_greedy_completions_are_those_of_transformers(kind, eos, penalty, tmp_path):
    torch.manual_seed(1)
    theirs = MODELS[kind]().eval()
    theirs.generation_config.eos_token_id = eos
    theirs.generation_config.pad_token_id = 0
    theirs.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    model = checkpoint.model()
    stops = frozenset(eos or ())
    if eos:
        assert stops < stop_ids(NoTokenizer(), checkpoint.config, checkpoint.generation)
    ids = [[] for _ in PROMPTS]
    keys = [0] * len(PROMPTS)
    sampling = Sampling(max_tokens=20, repetition_penalty=penalty)
    for token in generate(model, PROMPTS, sampling, keys, stops):
        ids[token.row].append(token.id)
    for prompt, found in zip(PROMPTS, ids, strict=True):
        row = torch.tensor([prompt])
        wanted = theirs.generate(
            row, attention_mask=torch.ones_like(row), max_new_tokens=20, repetition_penalty=penalty
        )
        assert found == wanted[0, len(prompt) :].tolist()


class NoTokenizer:
    """A tokenizer without an end-of-text token."""

    eos = None
