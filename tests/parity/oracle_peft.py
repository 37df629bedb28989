"""PEFT as the oracle of adapters: tiny models of every family, adapters on them with random numbers, and logits."""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from peft import PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.model.transformer import Transformer
from tests.parity import oracle, oracle_encoders
from tests.parity.oracle import llama_like

NAMED = {"id2label": {0: "no", 1: "perhaps", 2: "yes"}, "pad_token_id": 0}
ENCODERS = ("bert-mlm", "bert-sequence", "roberta-sequence", "t5", "t5-1.1-tied", "t5-sequence", "bart")


def llama_sequence() -> PreTrainedModel:
    """A llama that scores three labels."""
    torch.manual_seed(0)
    return transformers.LlamaForSequenceClassification(llama_like(LlamaConfig, **NAMED)()).eval()


class Bases:
    """bases("gpt2") -> the directory of a tiny model of transformers with random weights."""

    def __init__(self, root: Path):
        self.root = root

    def __call__(self, name: str) -> Path:
        """The directory."""
        directory = self.root / name
        if not directory.exists():
            made = llama_sequence if name == "llama-sequence" else None
            made = made or (lambda: (oracle_encoders if name in ENCODERS else oracle).make(name))
            made().save_pretrained(directory)
        return directory

    def theirs(self, name: str, kind: str | None = None) -> PreTrainedModel:
        """Read by transformers, by the class that it names or another."""
        directory = self(name)
        kind = kind or transformers.AutoConfig.from_pretrained(directory).architectures[0]
        return getattr(transformers, kind).from_pretrained(directory).eval()

    def ours(self, name: str) -> Transformer:
        """Read by llmctl."""
        return Checkpoint.open(self(name)).model()


def rows(length: int = 12) -> Tensor:
    """Random ids, (2, length) int64, the last 2: it ends a text of the encoders here, which transformers looks for."""
    ids = torch.randint(4, oracle.VOCAB, (2, length), generator=torch.Generator().manual_seed(3))
    ids[:, -1] = 2
    return ids


def there(model: PreTrainedModel | PeftModel, ids: Tensor) -> Tensor:
    """Logits of transformers, or hidden states where it has no head."""
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder and "Sequence" not in str(model.config.architectures):
        given["decoder_input_ids"] = ids.flip(1)
    out = model(**given)
    return out.logits if "logits" in out else out.last_hidden_state


def here(model: Transformer, ids: Tensor) -> Tensor:
    """Logits of llmctl, or hidden states where it has no head."""
    config = model.config
    if config.kind == "encoder-decoder":
        target = ids.flip(1)
        if config.classifier == "sequence":
            target = torch.cat((torch.full_like(ids[:, :1], config.decoder_start), ids[:, :-1]), dim=1)
        hidden = model(target, memory=model.encode(ids))
    else:
        hidden = model(ids)
    if config.classifier != "none":
        return model.classify(hidden)
    return hidden if model.head is None else model.head(hidden)


def shaken(model: torch.nn.Module, named: Callable[[str], bool] = lambda name: True) -> None:
    """Every trained parameter moved at random, so that nothing is zero or one."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and named(name):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def adapted(model: PreTrainedModel, directory: Path, config: object) -> PeftModel:
    """A model with an adapter of PEFT's, its numbers random, once PEFT has written it."""
    torch.manual_seed(5)
    made = get_peft_model(model, config).eval()
    shaken(made)
    made.save_pretrained(directory)
    return made


def opened(model: PreTrainedModel, directory: Path) -> PeftModel:
    """An adapter of ours opened by PEFT, which finds a place for every tensor and a tensor for every place."""
    made = PeftModel.from_pretrained(model, directory).eval()
    found = set_peft_model_state_dict(made, load_peft_weights(directory))
    parts = ("lora_", "ia3_", "modules_to_save.default", "prompt")
    missing = [name for name in found.missing_keys if any(part in name for part in parts)]
    assert not found.unexpected_keys and not missing, (found.unexpected_keys, missing)
    return made
