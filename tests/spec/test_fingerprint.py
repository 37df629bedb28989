"""fingerprint: the same for copies, another one after any change."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmctl.core.adapt.inject import adapt
from llmctl.core.adapt.stored import save_adapter
from llmctl.core.checkpoint.directory import save_checkpoint
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.spec.adapt import AdaptConfig
from llmctl.spec.fingerprint import fingerprint
from tests.core.variants import VARIANTS


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    save_checkpoint(path, initialise(Transformer(VARIANTS["llama"]), 0), VARIANTS["llama"])
    return path


def changed(path, to, change):
    """A copy whose tensors have been changed."""
    shutil.copytree(path, to)
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return to


def test_it_is_the_same_for_copies_in_other_files(model, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    whole = initialise(Transformer(VARIANTS["llama"]), 0)
    save_checkpoint(shards, whole, VARIANTS["llama"], shard_bytes=3000)
    assert len(list(shards.glob("*.safetensors"))) > 1
    copy = changed(model, tmp_path / "copy", lambda tensors: None)
    said = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(dict(reversed(said.items())), indent=7))
    assert fingerprint(model) == fingerprint(shards) == fingerprint(copy)


def test_it_is_another_one_after_a_change_of_any_tensor_type_or_setting(model, tmp_path):
    found = {fingerprint(model)}
    names = list(load_file(model / "model.safetensors"))
    for number, name in enumerate(names):

        def nudge(tensors, name=name):
            tensors[name] += 1e-3

        found.add(fingerprint(changed(model, tmp_path / str(number), nudge)))

    def halve(tensors):
        tensors.update({name: one.to(torch.bfloat16) for name, one in tensors.items()})

    found.add(fingerprint(changed(model, tmp_path / "half", halve)))
    other = changed(model, tmp_path / "other", lambda tensors: None)
    said = json.loads((other / "config.json").read_text())
    said["rms_norm_eps"] = 0.5
    (other / "config.json").write_text(json.dumps(said))
    found.add(fingerprint(other))
    assert len(found) == len(names) + 3


def test_an_adapter_has_one_of_its_own_that_changes_with_it_and_with_its_base(model, tmp_path):
    config = AdaptConfig(rank=2)
    adapted = initialise(Transformer(VARIANTS["llama"]), 0)
    adapt(adapted, config, seed=1)

    def saved(name, base):
        (tmp_path / name).mkdir()
        save_adapter(tmp_path / name, adapted, config, base, "lm")
        return fingerprint(tmp_path / name)

    def nudge(tensors):
        tensors["model.norm.weight"] += 1e-3

    first = saved("one", model)
    assert first not in (fingerprint(model), saved("on another", changed(model, tmp_path / "nudged", nudge)))
    shutil.copytree(model, tmp_path / "moved")
    assert saved("on a copy", tmp_path / "moved") == first
    with torch.no_grad():
        next(one for one in adapted.parameters() if one.requires_grad).add_(1e-3)
    assert saved("trained on", model) != first
