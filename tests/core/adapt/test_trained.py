"""spec/trained: what it says is trained is what an adapted model trains."""

from typing import get_args

import pytest
import torch

from llmctl.core.adapt.inject import adapt, trained
from llmctl.core.compress.frozen import freeze
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.adapt import AdaptConfig, Method
from llmctl.spec.trained import total_parameters, trained_parameters, trained_shapes
from tests.core.variants import VARIANTS

METHODS = {method: AdaptConfig(method=method, rank=3, bottleneck=5, virtual_tokens=4) for method in get_args(Method)}
CONFIGS = METHODS | {
    "full of some": AdaptConfig(method="full", train=("layers.0.mlp,norm",)),
    "lora on all": AdaptConfig(rank=3, targets=("*",)),
    "lora on layers": AdaptConfig(rank=3, targets=("layers",)),
    "lora on some": AdaptConfig(rank=3, targets=("attention.v,mlp.up", "embed"), train=("embed.positions", "mlp.down")),
    "dora on some": AdaptConfig(method="dora", rank=3, targets=("q", "v"), train=("bias",)),
    "ia3 on all": AdaptConfig(method="ia3", targets=("layers.*.q", "mlp")),
    "adapter and more": AdaptConfig(method="adapter", train=("layers.1.mlp.down",)),
    "qlora on all": AdaptConfig(method="qlora", rank=3, targets=("layers",), train=("layers.0.attention.out",)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_names_shapes_and_counts_are_those_of_the_adapted_model(name):
    refused = []
    for about, config in CONFIGS.items():
        model = initialise(Transformer(VARIANTS[name], "cpu", torch.float32), 0)
        freeze(model, config, torch.float32)
        try:
            adapt(model, config, 0)
        except UserError as error:  # there are no biases, no learned positions, no keys
            assert "has none" in error.problem or "nothing in this model" in error.problem or "softmax" in error.problem
            refused.append(about)
            continue
        found = {key: tuple(p.shape) for key, p in model.named_parameters() if p.requires_grad}
        assert found == trained_shapes(VARIANTS[name], config), about
        counts = trained_parameters(VARIANTS[name], config), total_parameters(VARIANTS[name], config)
        assert counts == trained(model), about
    assert len(refused) < 5
