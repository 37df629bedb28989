"""Whole checkpoints combined: identities that hold bit for bit, PEFT's ties on plain tensors, and what is refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from llmctl.core.adapt.combine import combine, threshold
from llmctl.core.checkpoint.carry import carry
from llmctl.core.checkpoint.directory import Checkpoint, save_checkpoint
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.combine import BASED, CombineConfig, CombinePlan
from tests.core.variants import VARIANTS

LLAMA = VARIANTS["llama"]


@pytest.fixture
def models(tmp_path):
    """A base and three models a little way from it; made(config, dtype) -> their directories, base first."""

    def made(config=LLAMA, dtype=torch.float32, count=4, prefix="model"):
        start, found = initialise(Transformer(config), 0), []
        for number in range(count):
            model = initialise(Transformer(config), number)
            with torch.no_grad():
                for (_, own), (_, one) in zip(model.named_parameters(), start.named_parameters(), strict=True):
                    own.mul_(0.3 * bool(number)).add_(one)
            path = tmp_path / f"{prefix}{number}"
            path.mkdir()
            save_checkpoint(path, model, config, dtype)
            found.append(path)
        return found

    return made


def combined(out, models, base=None, dtype=None, **how) -> dict[str, torch.Tensor]:
    """The tensors of the combined checkpoint, which opens."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    plan = CombinePlan.of(list(models), base, CombineConfig(**how), dtype)
    combine(plan, out)
    carry(out, plan.json, plan.places)
    Checkpoint.open(out).model()
    return load_file(out / "model.safetensors")


def stored(path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_combinations_that_leave_one_model_give_it_bit_for_bit(dtype, models, tmp_path):
    base, a, b, _ = models(dtype=dtype)
    out = tmp_path / "out"
    assert same(combined(out, [a, a, a], weights=("1,5,2",)), stored(a))
    assert same(combined(out, [a, b], weights=("0,3",)), stored(b))
    assert same(combined(out, [a, b], method="slerp", t=0.0), stored(a))
    assert same(combined(out, [a, b], method="slerp", t=1.0), stored(b))
    assert same(combined(out, [a, a], method="slerp", t=0.3), stored(a))
    for method in BASED:
        more = {} if method == "task-arithmetic" else {"density": ("1",)}
        assert same(combined(out, [a], base, method=method, **more), stored(a)), method
        assert same(combined(out, [a, b], base, method=method, weights=("0,0",)), stored(base)), method
        assert same(combined(out, [a, b], base, method=method, scale=0.0), stored(base)), method


def test_linear_is_the_weighted_mean_and_without_shares_the_sum(models, tmp_path):
    _, a, b, _ = models()
    mean = combined(tmp_path / "out", [a, b], weights=("1", "3"))
    total = combined(tmp_path / "out", [a, b], weights=("1", "3"), normalize=False)
    one, other = stored(a), stored(b)
    for name in one:
        wanted = one[name].double() + 3 * other[name].double()
        torch.testing.assert_close(total[name], wanted.float(), rtol=1e-6, atol=0)
        torch.testing.assert_close(mean[name], (wanted / 4).float(), rtol=1e-6, atol=1e-9)


def test_slerp_keeps_the_length_and_halves_the_angle(models, tmp_path):
    _, a, b, _ = models()
    mixed = combined(tmp_path / "out", [a, b], method="slerp", t=0.5)
    name = "model.layers.1.mlp.up_proj.weight"
    one, other, middle = (of[name].double().flatten() for of in (stored(a), stored(b), mixed))
    cosine = torch.cosine_similarity
    torch.testing.assert_close(cosine(one, middle, 0), cosine(middle, other, 0), atol=0.02, rtol=0)
    whole, half = torch.arccos(cosine(one, other, 0)), torch.arccos(cosine(one, middle, 0))
    assert abs(2 * half - whole) < 0.02 * whole  # lengths differ a little, so that the middle does
    assert one.norm().min(other.norm()) * 0.99 < middle.norm() < one.norm().max(other.norm()) * 1.01


def test_ties_with_weights_by_hand(models, tmp_path):
    base, a, b, c = models()
    put = {base: [1, 1, 1, 1], a: [5, 2, 0, 1], b: [-1, 3, 2, 1], c: [0, 1, -2, 1]}
    for path, numbers in put.items():
        model = Checkpoint.open(path).model(writable=True)
        with torch.no_grad():
            model.decoder.norm.weight[:4] = torch.tensor(numbers, dtype=torch.float32)
            model.decoder.norm.weight[4:] = 0
        save_checkpoint(path, model, LLAMA)
    how = {"method": "ties", "weights": ("1,2,4",), "density": ("1",)}
    # changes: a 4 1 -1 0, b -2 2 1 0, c -1 0 -3 0; weighted: a 4 1 -1 0, b -4 4 2 0, c -4 0 -12 0
    # signs elected: - + - +; summed where they agree: -8 / 6, 5 / 3, -13 / 5, nothing
    found = combined(tmp_path / "out", [a, b, c], base, **how)["model.norm.weight"][:4]
    torch.testing.assert_close(found, torch.tensor([1 - 8 / 6, 1 + 5 / 3, 1 - 13 / 5, 1.0]))
    found = combined(tmp_path / "out", [a, b, c], base, normalize=False, **how)["model.norm.weight"][:4]
    torch.testing.assert_close(found, torch.tensor([-7.0, 6, -12, 1]))


def test_dare_keeps_its_share_makes_up_for_the_rest_and_is_drawn_by_seed_and_name(models, tmp_path):
    base, a, *_ = models(replace(LLAMA, ff=400))
    out, name = tmp_path / "out", "model.layers.0.mlp.up_proj.weight"
    how = {"method": "dare-linear", "density": ("0.25",)}
    found = combined(out, [a], base, **how)
    change, kept = stored(a)[name] - stored(base)[name], found[name] - stored(base)[name]
    taken = kept != 0
    assert 0.22 < taken.float().mean() < 0.28  # 9,600 draws: five deviations
    torch.testing.assert_close(kept[taken], 4 * change[taken], rtol=1e-3, atol=1e-6)
    assert same(combined(out, [a], base, **how), found)
    assert not torch.equal(combined(out, [a], base, seed=1, **how)[name], found[name])
    other = "model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(taken, found[other] != stored(base)[other])
    both = combined(out, [a, a], base, **how)[name] - stored(base)[name]
    assert 0.4 < (both != 0).float().mean() < 0.475  # of two models apart: 1 - 0.75 ** 2


@pytest.mark.parametrize("wanted", [1, 3, 500, 999, 1000])
def test_the_threshold_is_that_of_a_sort(wanted):
    chance = torch.Generator().manual_seed(wanted)
    model, base = torch.randn(1000, generator=chance).round(decimals=1), torch.zeros(1000)
    ordered = model.abs().sort(descending=True).values
    assert threshold(model, base, wanted) == (ordered[wanted - 1], int((ordered > ordered[wanted - 1]).sum()))


def test_shards_prefixes_fused_matrices_and_ties_need_not_be_the_same(models, tmp_path):
    _, a, b, _ = models()
    plain = combined(tmp_path / "out", [a, b])
    model = Checkpoint.open(b)
    again = tmp_path / "again"
    again.mkdir()
    save_checkpoint(again, model.model(), replace(LLAMA, model_type="phi3"), shard_bytes=9_000)
    assert (again / "model.safetensors.index.json").exists()
    assert any("qkv_proj" in path.read_text() for path in again.glob("*.index.json"))
    assert same(combined(tmp_path / "out", [a, again]), plain)
    fused = combined(tmp_path / "out", [again, a])
    torch.testing.assert_close(
        fused["model.layers.0.self_attn.qkv_proj.weight"],
        torch.cat([plain[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]),
    )


def test_a_tied_model_beside_an_untied_one_gets_a_head_of_its_own(models, tmp_path):
    _, a = models(count=2)
    (tied,) = models(replace(LLAMA, tie=True), count=1, prefix="tied")
    found = combined(tmp_path / "out", [tied, a])
    before, beside = stored(tied), stored(a)
    wanted = (before["model.embed_tokens.weight"] + beside["lm_head.weight"]) / 2
    torch.testing.assert_close(found["lm_head.weight"], wanted)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


def refused(models, base=None, **how) -> UserError:
    with pytest.raises(UserError) as caught:
        CombinePlan.of(list(models), base, CombineConfig(**how))
    return caught.value


def test_what_does_not_fit_is_refused(models):
    base, *_ = models()
    (other,) = models(replace(LLAMA, ff=48), count=1, prefix="wide")
    error = refused([base, other])
    assert error.code == 4 and "decoder.layers.0.mlp.down.weight is [24, 48]" in error.problem
    assert refused([base], method="ties").code == 2
    assert refused([base], base, method="linear").code == 2
    assert refused([base, base, base], method="slerp").code == 2
    assert refused([base, base], weights=("1,2,3",)).code == 2
    assert refused([base, base], weights=("1,-1",)).code == 2
    for how in ({"t": 2.0, "method": "slerp"}, {"density": ("0.5",)}, {"method": "ties", "density": ("2",)}):
        assert refused([base, base], **how).code == 2
    quantized = json.loads((base / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (base / "config.json").write_text(json.dumps(quantized))
    assert "gptq" in refused([base, base]).problem


def test_another_tokenizer_and_another_config_are_said(models):
    base, a, _, _ = models()
    for path, vocab in ((base, {"a": 0}), (a, {"b": 0})):
        (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    config = json.loads((a / "config.json").read_text()) | {"rms_norm_eps": 0.5}
    (a / "config.json").write_text(json.dumps(config))
    notes = CombinePlan.of([base, a], None, CombineConfig()).notes
    assert ["norm_eps" in notes[0], "tokenizer" in notes[1], len(notes)] == [True, True, 2]
