"""Tiny models of every variant, for the tests of core."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llmctl.core.checkpoint.directory import save_checkpoint
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from tests.core.variants import VARIANTS


@pytest.fixture
def written(tmp_path) -> Callable[..., Path]:
    """written(variant, **how) -> a checkpoint directory with random weights, made by save_checkpoint(**how)."""

    def write(variant: str, **how: object) -> Path:
        directory = tmp_path / f"written-{variant}"
        directory.mkdir()
        model = initialise(Transformer(VARIANTS[variant]), 0)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # ones and zeros would hide a swap
                parameter.data += (
                    parameter.new_tensor([(sum(name.encode()) * (i + 1)) % 97 for i in range(len(parameter))]) / 97
                )
        save_checkpoint(directory, model, VARIANTS[variant], **how)
        return directory

    return write
