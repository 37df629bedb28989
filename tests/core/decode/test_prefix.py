"""Prefixes in files: what was kept is what would be read, and nobody else's."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmctl.core.adapt.inject import adapt
from llmctl.core.adapt.stored import save_adapter
from llmctl.core.checkpoint.directory import Checkpoint, save_checkpoint
from llmctl.core.decode.cached import kept, unkept
from llmctl.core.decode.prefix import Prefix
from llmctl.core.decode.ready import ready
from llmctl.core.decode.rows import rows_of
from llmctl.core.model.init import initialise
from llmctl.core.model.slots import SLACK
from llmctl.core.model.transformer import Transformer
from llmctl.errors import Exit, UserError
from llmctl.spec.adapt import AdaptConfig
from tests.core.variants import VARIANTS

KINDS = ["llama", "mistral", "gemma3", "gpt2", "bloom", "prefix tuning"]
IDS = [(7 * at + 3) % 61 for at in range(30)]


@pytest.fixture
def stored(tmp_path):
    """stored(kind) -> the directory of a checkpoint or of an adapter on one."""

    def stored(kind, name="model", seed=0):
        config = replace(VARIANTS["llama" if kind == "prefix tuning" else kind], context=64)
        path = tmp_path / name
        path.mkdir()
        model = initialise(Transformer(config), seed)
        save_checkpoint(path, model, config)
        if kind != "prefix tuning":
            return path
        how = AdaptConfig(method="prefix", virtual_tokens=3)
        adapt(model, how, seed=1)
        save_adapter(tmp_path, model, how, path, "lm")
        return tmp_path

    return stored


@pytest.mark.parametrize("stock", [True, False], ids=["stock", "native"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_begins_with_a_kept_prompt_goes_on_as_if_it_had_been_read(kind, stock, stored, tmp_path):
    path, file = stored(kind), tmp_path / "prompt.safetensors"

    def opened():
        model = Checkpoint.open(path).model()
        ready(model, stock)
        return model

    assert kept(file, path, opened(), IDS)[1] == "" and file.exists()
    before = file.read_bytes()
    model = opened()
    prefix, note = kept(file, path, model, IDS[:25])
    assert note == "" and prefix.ids == tuple(IDS) and file.read_bytes() == before
    for text in (IDS, IDS[:25], [*IDS, 5, 6], [*IDS[:20], 1, 2, 3]):
        plain, helped = rows_of(model), rows_of(model)
        helped.prefixes.append(prefix)
        wanted = plain.add([text])
        torch.testing.assert_close(helped.add([text]), wanted, rtol=1e-5, atol=1e-5)  # sums in another order
        torch.testing.assert_close(helped.step([9]), plain.step([9]), rtol=1e-5, atol=1e-5)
    other = rows_of(model)
    other.prefixes.append(Prefix(prefix.ids, [(keys + 1, values + 1) for keys, values in prefix.pairs]))
    assert (other.add([IDS]) - wanted).abs().max() > 1e-3  # it was not read again


def test_a_prompt_is_kept_while_a_window_has_not_let_go_of_it_and_used_by_both_steps(stored, tmp_path):
    config = replace(VARIANTS["mistral"], context=4096)
    path = tmp_path / "model"
    path.mkdir()
    save_checkpoint(path, initialise(Transformer(config), 0), config)
    stock, native = Checkpoint.open(path).model(), Checkpoint.open(path).model()
    ready(stock, True)
    if why := ready(native):
        pytest.fail(why)
    file = tmp_path / "prompt.safetensors"
    for model in (stock, native):
        prefix, note = kept(file, path, model, IDS * 40)
        assert prefix is None and "window" in note and not file.exists()
    for writer in (stock, native):
        ids = (IDS * 40)[: config.window + SLACK]
        assert kept(file, path, writer, ids)[1] == ""
        for model in (stock, native):
            prefix, _ = kept(file, path, model, ids)
            assert len(prefix.ids) == len(ids)
            plain, helped = rows_of(model), rows_of(model)
            helped.prefixes.append(prefix)
            torch.testing.assert_close(helped.add([IDS * 40]), plain.add([IDS * 40]), rtol=1e-4, atol=1e-4)
        file.unlink()


def test_a_file_of_another_model_or_type_is_refused(stored, tmp_path):
    path, other, file = stored("llama"), stored("llama", "other", seed=1), tmp_path / "prompt"
    kept(file, path, Checkpoint.open(path).model(), IDS)
    with pytest.raises(UserError, match="as another model or adapter read it") as found:
        kept(file, other, Checkpoint.open(other).model(), IDS)
    assert found.value.code == Exit.MISMATCH and f"rm {file}" in found.value.hint
    with pytest.raises(UserError, match="keeps keys and values in F32; the arithmetic is in BF16"):
        kept(file, path, Checkpoint.open(path).model(dtype=torch.bfloat16), IDS)
    with pytest.raises(UserError, match="keeps no prompt"):
        kept(path / "model.safetensors", path, Checkpoint.open(path).model(), IDS)


def test_a_broken_file_is_refused(stored, tmp_path):
    path, file = stored("llama"), tmp_path / "prompt"
    model = Checkpoint.open(path).model()
    kept(file, path, model, IDS)
    data = file.read_bytes()
    file.write_bytes(data[:-5])
    with pytest.raises(UserError, match="not a sound safetensors file"):
        kept(file, path, model, IDS)
    file.write_bytes(data)
    tensors = load_file(file)
    said = {"schema": "llmctl/prompt/1", "model": _whose(data)}
    first = {"ids": tensors["ids"], "keys.0": tensors["keys.0"], "values.0": tensors["values.0"]}
    for made, words in (
        (first, "does not hold"),
        ({**tensors, "keys.0": tensors["keys.0"][:, :9].clone()}, "does not hold"),
        ({**tensors, "ids": tensors["ids"][:9].clone()}, "does not hold"),
        ({**first, "values": tensors["keys.1"]}, "keeps no prompt"),
        ({**tensors, "ids": tensors["ids"].float()}, "keeps no prompt"),
    ):
        save_file(made, file, said)
        with pytest.raises(UserError, match=words):
            kept(file, path, model, IDS)


def _whose(data):
    at = data.index(b'"model": "') + 10
    return data[at : at + 32].decode()


def test_short_prompts_and_unlike_ones_are_read(stored, tmp_path):
    path, file = stored("llama"), tmp_path / "prompt"
    model = Checkpoint.open(path).model()
    assert kept(file, path, model, IDS[:9]) == (
        None,
        f"the prompt has 9 tokens, and {file} is not written for fewer than 16.",
    )
    kept(file, path, model, IDS)
    prefix, note = kept(file, path, model, IDS[1:])
    assert prefix is None and "0 of 30 tokens agree" in note


def test_what_cannot_be_kept_is_said_beforehand():
    reasons = {kind: unkept(config) for kind, config in VARIANTS.items() if config.kind != "encoder"}
    assert {kind for kind, reason in reasons.items() if reason and VARIANTS[kind].kind == "decoder"} == {
        "linear",
        "prefix",
    }
    assert all(reasons[kind] for kind in reasons if VARIANTS[kind].kind == "encoder-decoder")
    assert "8 bits" in unkept(VARIANTS["llama"], 8)
