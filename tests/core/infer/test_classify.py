"""Labels of texts: what a model must say of itself before it is asked."""

import pytest
import tokenizers
import torch
from tokenizers import models

from llmctl.core.infer.classify import classify
from llmctl.core.infer.encode import Row
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.model import ModelConfig

SMALL = {"vocab": 9, "width": 8, "layers": 1, "heads": 2, "ff": 8, "context": 8, "model_type": "llmctl"}
LABELLED = {"classifier": "sequence", "labels": ("no", "yes"), "classifier_pool": "last", "lm_head": False}


@pytest.fixture
def row() -> Row:
    words = {"a": 3, "b": 4}
    return Row(tokenizers.Tokenizer(models.WordLevel(words, "a")).encode("b"))


def test_a_decoder_that_nothing_begins_is_refused_and_not_begun_with_id_0(row):
    """Where config.json named neither decoder_start nor bos, the decoder once began with id 0."""
    shape = ModelConfig(**SMALL, **LABELLED, kind="encoder-decoder")
    with pytest.raises(UserError, match="begins with"):
        classify(initialise(Transformer(shape), 0).eval(), [row])


@pytest.mark.parametrize("named", [{"decoder_start": 2, "bos": 1}, {"bos": 2}])
def test_it_begins_with_what_config_json_names(row, named):
    model = initialise(Transformer(ModelConfig(**SMALL, **LABELLED, kind="encoder-decoder", **named)), 0).eval()
    read = []
    model.embed.register_forward_hook(lambda module, args, out: read.append(args[0]))
    (scores,) = classify(model, [row])
    assert read[-1].tolist() == [[2]]
    torch.testing.assert_close(scores.sum(), torch.tensor(1.0))
