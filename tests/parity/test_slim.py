"""Models with parts cut out, against transformers: it loads each and gives the same logits."""

import pytest
import torch

pytest.importorskip("transformers")
import transformers
from transformers import AutoModelForCausalLM

from llmctl.core.checkpoint.directory import Checkpoint, save_checkpoint
from llmctl.core.compress.slim.run import slim
from llmctl.core.data.batch import Batch
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.slim import SlimConfig
from tests.parity import oracle, oracle_encoders
from tests.parity.test_encoders import answers_here, answers_there

FP32 = {"atol": 1e-5, "rtol": 1e-5}
DECODERS = (
    *("llama", "llama-biases", "llama-linear", "mistral", "qwen2-tied-window", "qwen3-biases-window", "gpt2", "bloom"),
    *("gemma", "gemma2", "gemma3", "gemma3-linear", "phi3-partial", "phi3-longrope-short", "olmo2"),
    *("olmo2-tied-biases", "gpt_neox", "gpt_neox-serial", "smollm3-window", "smollm3-layer-types"),
)
OTHERS = (
    *("bert-pretraining", "bert-mlm-untied", "bert-sequence", "roberta-sequence", "distilbert-sequence", "t5"),
    *("t5-1.1-tied", "t5-deeper-encoder", "mt5", "t5-sequence", "bart-scaled", "bart-deeper-decoder", "bart-sequence"),
)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def slimmer(model: Transformer) -> Transformer:
    """Half of everything, or of what can be halved together."""
    config = model.config
    tokens = torch.randint(4, config.vocab, (4, 20), generator=torch.Generator().manual_seed(0))
    places = torch.arange(20).expand(4, -1)
    read = EncoderInput(tokens, places, torch.ones_like(tokens)) if config.kind == "encoder-decoder" else None
    batch = Batch(tokens, tokens, places, torch.ones_like(tokens), 80, 80, encoder=read)
    for parts in ({"heads": 0.5, "ff": 0.5, "width": 0.5}, {"width": 0.5}):
        try:
            return slim(model, SlimConfig(**parts, layers=0.5), [batch])[0]
        except UserError as error:  # heads and neurons that follow from the width go with it
            assert "width" in error.hint
    raise AssertionError("nothing can be cut")


@pytest.mark.parametrize("name", DECODERS)
def test_a_slimmer_decoder_is_the_same_in_transformers(name, tmp_path):
    oracle.saved(name, tmp_path)
    before = Checkpoint.open(tmp_path).model()
    ours = slimmer(before)
    assert (ours.config.width, ours.config.heads, ours.config.ff) == tuple(
        size // 2 for size in (before.config.width, before.config.heads, before.config.ff)
    )
    (tmp_path / "slim").mkdir()
    save_checkpoint(tmp_path / "slim", ours, ours.config)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "slim", output_loading_info=True)
    assert not any(report.values()), report
    torch.testing.assert_close(ours.head(ours(oracle.tokens())), theirs(oracle.tokens()).logits, **FP32)
    assert Checkpoint.open(tmp_path / "slim").config == ours.config


@pytest.mark.parametrize("name", OTHERS)
def test_a_slimmer_encoder_or_both_is_the_same_in_transformers(name, tmp_path):
    oracle_encoders.saved(name, tmp_path)
    ours = slimmer(Checkpoint.open(tmp_path).model())
    assert set(ours.config.stacks.values()) <= {1, 2}
    (tmp_path / "slim").mkdir()
    save_checkpoint(tmp_path / "slim", ours, ours.config)
    kind = getattr(transformers, oracle_encoders.CASES[name].kind.__name__)
    theirs, report = kind.from_pretrained(tmp_path / "slim", output_loading_info=True)
    assert not any(report.values()), report
    (ids, mask), (target, _) = oracle_encoders.rows(padded=True), oracle_encoders.rows(length=9, seed=2)
    wanted = answers_there(theirs.eval(), ids, mask, target)
    found = answers_here(ours, ids, mask, target)
    assert found.keys() >= wanted.keys()
    for key, tensor in wanted.items():
        real = mask[:, :, None].bool() if tensor.shape[:2] == mask.shape else torch.ones(1, dtype=torch.bool)
        torch.testing.assert_close(found[key] * real, tensor * real, **FP32)
