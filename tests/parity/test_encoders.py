"""Encoders and encoder-decoders against transformers: its checkpoints here, ours there, every head, padded or not."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.models.t5.modeling_t5 import T5Attention

from llmctl.core.checkpoint.directory import Checkpoint, save_checkpoint
from llmctl.core.model.cache import KVCache
from llmctl.core.model.init import initialise
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.position import places_ahead, relative_buckets
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.presets import shape
from tests.parity.oracle_encoders import CASES, PAD, rows, saved

FP32 = {"atol": 1e-5, "rtol": 1e-5}  # the acceptance of issue 3
PADS = {"roberta-mlm": 3}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def answers_there(model: PreTrainedModel, ids: Tensor, mask: Tensor, target: Tensor | None) -> dict[str, Tensor]:
    """What transformers makes of rows, by the names of `answers_here`."""
    given = {"input_ids": ids, "attention_mask": mask}
    both = model.config.is_encoder_decoder
    if both and model.config.architectures[0].endswith("SequenceClassification"):
        target = None  # made of the source
    if target is not None and both:
        given["decoder_input_ids"] = target
    if getattr(model.config, "type_vocab_size", 0) > 1:
        given["token_type_ids"] = types_of(ids)
    out = model(**given, output_hidden_states=True)
    states = out.decoder_hidden_states if both else out.hidden_states
    found = {"hidden": states[-1] if "last_hidden_state" not in out else out.last_hidden_state}
    if both:
        found["memory"] = out.encoder_last_hidden_state
    for theirs, ours in (
        *(("logits", "logits"), ("prediction_logits", "logits"), ("seq_relationship_logits", "next")),
        ("pooler_output", "pooled"),
    ):
        if out.get(theirs) is not None:
            found[ours] = out[theirs]
    return found


def answers_here(model: Transformer, ids: Tensor, mask: Tensor, target: Tensor | None) -> dict[str, Tensor]:
    """Hidden states and scores of rows."""
    config, segments = model.config, None if mask.all() else mask
    if config.kind == "encoder-decoder":
        if config.classifier == "sequence":
            target = torch.cat((torch.full_like(ids[:, :1], config.decoder_start), ids[:, :-1]), dim=1)
        memory = model.encode(ids, segments=segments)
        hidden = model(target, memory=memory)
        found = {"hidden": hidden, "memory": memory.hidden}
    else:
        hidden = model(ids, segments=segments, types=types_of(ids) if config.token_types > 1 else None)
        found = {"hidden": hidden}
    if config.classifier != "none":
        found["logits"] = model.classify(hidden, segments)
    elif config.lm_head:
        found["logits"] = model.head(hidden)
    if config.next_sentence:
        found["next" if config.lm_head else "logits"] = model.next_sentence_scores(hidden)
    if config.pooler:
        found["pooled"] = model.pooled(hidden)
    return found


def types_of(ids: Tensor) -> Tensor:
    """The second half of each row is of the second kind."""
    return (torch.arange(ids.shape[1]) >= ids.shape[1] // 2).long().expand_as(ids)


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor], mask: Tensor) -> set[str]:
    """Compare what both have, at tokens that are not padding; the names of what was compared."""
    for name in (both := ours.keys() & theirs.keys()):
        one, other = ours[name], theirs[name]
        assert one.isfinite().all()
        if one.shape[:2] == mask.shape:
            one, other = one[mask.bool()], other[mask.bool()]
        torch.testing.assert_close(one, other, **FP32, msg=lambda text, name=name: f"{name}: {text}")
    return both


def batch(name: str, padded: bool) -> tuple[Tensor, Tensor, Tensor]:
    ids, mask = rows(padded)
    ids = torch.where(mask.bool(), ids, PADS.get(name, PAD))
    return ids, mask, rows(length=13, seed=2)[0]


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_of_transformers_gives_its_hidden_states_and_scores(name, tmp_path):
    theirs = saved(name, tmp_path)
    ours = Checkpoint.open(tmp_path).model()
    for padded in (False, True):
        ids, mask, target = batch(name, padded)
        expected = answers_there(theirs, ids, mask, target)
        assert compare(answers_here(ours, ids, mask, target), expected, mask) == expected.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_of_ours_loads_in_transformers_with_no_key_missing_or_left(name, tmp_path):
    theirs = saved(name, tmp_path / "theirs")
    opened = Checkpoint.open(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    save_checkpoint(tmp_path / "ours", opened.model(), opened.config)
    back, report = CASES[name].kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert back.config.architectures == theirs.config.architectures or name == "bart-model"
    for (one, parameter), (_, again) in zip(theirs.named_parameters(), back.named_parameters(), strict=True):
        unused = one in ("cls.predictions.bias", "lm_head.bias") and not opened.config.tie
        assert torch.equal(parameter, again) or unused, one
    ids, mask, target = batch(name, True)
    before, after = (answers_there(model, ids, mask, target) for model in (theirs, back.eval()))
    torch.testing.assert_close(after, before, **FP32)  # not the same bits: of one activation's names we write one
    assert Checkpoint.open(tmp_path / "ours").config == opened.config
    for key in ("id2label", "problem_type"):
        if opened.config.labels and getattr(theirs.config, key) is not None:
            assert getattr(back.config, key) == getattr(theirs.config, key)


def rewrite(directory: Path, tensors=lambda tensors: tensors, **keys: object) -> None:
    """Change the tensors, and keys of config.json (None: without it), of a checkpoint in place."""
    save_file(tensors(load_file(directory / "model.safetensors")), directory / "model.safetensors", {"format": "pt"})
    path = directory / "config.json"
    found = {**json.loads(path.read_text()), **keys}
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def agree(directory: Path, theirs: PreTrainedModel, name: str, padded: bool = True) -> set[str]:
    ids, mask, target = batch(name, padded)
    here = answers_here(Checkpoint.open(directory).model(), ids, mask, target)
    return compare(here, answers_there(theirs, ids, mask, target), mask)


def test_an_old_bert_file_opens_with_every_head_it_stores_whatever_its_class(tmp_path):
    theirs = saved("bert-pretraining", tmp_path)

    def as_in_2018(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        old = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): one
            for name, one in tensors.items()
        }
        old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"].clone()
        old["bert.embeddings.position_ids"] = torch.arange(64)[None]
        return old

    rewrite(tmp_path, as_in_2018, architectures=["BertForMaskedLM"])
    config = Checkpoint.open(tmp_path).config
    assert config.lm_head and config.pooler and config.next_sentence
    assert agree(tmp_path, theirs, "bert-pretraining") == {"hidden", "logits", "next"}


@pytest.mark.parametrize("architectures", [["BertModel"], None])
def test_a_sentence_embedder_without_a_pooler_or_a_class_opens_as_what_it_stores(architectures, tmp_path):
    theirs = saved("bert", tmp_path)

    def bare(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: one for name, one in tensors.items() if "pooler" not in name}

    rewrite(tmp_path, architectures=architectures)
    assert agree(tmp_path, theirs, "bert") == {"hidden", "pooled"}
    rewrite(tmp_path, bare)
    assert not Checkpoint.open(tmp_path).config.pooler
    assert agree(tmp_path, theirs, "bert") == {"hidden"}


def test_a_classifier_of_sequences_that_lost_its_pooler_is_refused_not_read_without_it(tmp_path):
    saved("bert-sequence", tmp_path)
    rewrite(tmp_path, lambda tensors: {name: one for name, one in tensors.items() if "pooler" not in name})
    with pytest.raises(UserError, match=r"2 missing: bert\.pooler\.dense\.weight"):
        Checkpoint.open(tmp_path).model()


def test_a_pooler_that_old_roberta_classifiers_carry_along_is_kept_and_not_used(tmp_path):
    theirs = saved("roberta-sequence", tmp_path)
    left = {"roberta.pooler.dense.weight": torch.randn(32, 32), "roberta.pooler.dense.bias": torch.randn(32)}
    rewrite(tmp_path, lambda tensors: tensors | left)
    assert Checkpoint.open(tmp_path).config.pooler
    assert agree(tmp_path, theirs, "roberta-sequence") == {"hidden", "logits"}


def test_flan_as_released_has_a_head_of_its_own_and_as_transformers_5_writes_it_too(tmp_path):
    theirs = saved("t5-1.1", tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True  # what 5 says of every T5
    as_written = Checkpoint.open(tmp_path).config
    rewrite(tmp_path, tie_word_embeddings=False, scale_decoder_outputs=None)
    assert Checkpoint.open(tmp_path).config == as_written
    assert not as_written.tie and as_written.logit_scale == 1
    assert "logits" in agree(tmp_path, theirs, "t5-1.1")


def test_t5_with_every_copy_of_its_table_opens_and_one_that_differs_is_refused(tmp_path):
    theirs = saved("t5", tmp_path)
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    unused = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.randn(8, 4)}
    rewrite(tmp_path, lambda found: found | unused | {name: found["shared.weight"].clone() for name in names})
    assert Checkpoint.open(tmp_path).config.tie
    assert "logits" in agree(tmp_path, theirs, "t5")
    rewrite(tmp_path, lambda found: found | {names[0]: torch.randn(99, 32)})
    with pytest.raises(UserError, match=r"encoder\.embed_tokens\.weight beside shared\.weight"):
        Checkpoint.open(tmp_path).model()


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_table_that_is_stored_under_another_name_alone_is_found(name, tmp_path):
    theirs = saved(name, tmp_path)
    table, other = {
        "t5": ("shared.weight", "encoder.embed_tokens.weight"),
        "bart": ("model.shared.weight", "model.decoder.embed_tokens.weight"),
    }[name]

    def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {other if one == table else one: tensor for one, tensor in tensors.items()}

    rewrite(tmp_path, renamed)
    assert "logits" in agree(tmp_path, theirs, name)


def test_bart_without_a_prefix_and_without_a_bias_of_scores_opens_as_bart_base_does(tmp_path):
    theirs = saved("bart-model", tmp_path)
    assert "shared.weight" in load_file(tmp_path / "model.safetensors")
    opened = Checkpoint.open(tmp_path)
    assert opened.config.lm_head and not opened.config.head_bias
    assert agree(tmp_path, theirs, "bart-model") == {"hidden", "memory"}


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_padding_of_the_source_and_of_the_target_changes_nothing_for_the_rest(name, tmp_path):
    saved(name, tmp_path)
    model = Checkpoint.open(tmp_path).model()
    ids, mask, target = batch(name, True)
    seen = torch.ones_like(target)
    seen[0, 9:] = 0
    whole = model(target, encoder=EncoderInput(ids, segments=mask), segments=seen)
    alone = model(target[:1, :9], encoder=EncoderInput(ids[:1, mask[0].bool()]))
    torch.testing.assert_close(whole[:1, :9], alone, **FP32)


@pytest.mark.parametrize("name", ["t5", "t5-1.1", "bart"])
def test_a_decoder_that_runs_token_by_token_on_one_memory_gives_what_the_whole_row_gives(name, tmp_path):
    theirs = saved(name, tmp_path)
    opened = Checkpoint.open(tmp_path)
    model, cache = opened.model(), KVCache.allocate(opened.config, 2, 64)
    ids, mask, target = batch(name, True)
    memory = model.encode(ids, segments=mask)
    parts = [model.head(model(part, cache=cache, memory=memory)) for part in target.split([5, 1, 1, 6], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), answers_there(theirs, ids, mask, target)["logits"], **FP32)


@pytest.mark.parametrize("name", ["bert-mlm", "t5", "bart"])
def test_in_bf16_both_are_as_far_from_the_truth(name, tmp_path):
    ids, mask, target = batch(name, False)
    truth = answers_there(saved(name, tmp_path), ids, mask, target)["logits"]
    theirs = CASES[name].kind.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ours = Checkpoint.open(tmp_path).model(dtype=torch.bfloat16)

    def distance(answers: dict[str, Tensor]) -> float:
        return float((answers["logits"].float() - truth).norm() / truth.norm())

    # Two roundings of the same sums: errors of the same size (0.5 to 1.5 % here), not the same errors.
    here, there = (
        distance(f(model, ids, mask, target)) for f, model in ((answers_here, ours), (answers_there, theirs))
    )
    assert here < 1.3 * there < 0.05


@pytest.mark.parametrize("family", ["bert", "t5", "bart"])
def test_a_fresh_model_of_ours_opens_in_transformers(family, tmp_path):
    changes = {"layers": 2, "width": 32, "heads": 4, "context": 64, "pad": PAD, "eos": (2,), "dropout": 0.0}
    start = {} if family == "bert" else {"decoder_start": 2}
    config = shape("1m", 99, family, {**changes, **start})
    ours = initialise(Transformer(config), seed=0).eval()
    save_checkpoint(tmp_path, ours, config)
    name = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    theirs, report = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    ids, mask, target = batch(family, True)
    assert "logits" in compare(
        answers_here(ours, ids, mask, target), answers_there(theirs.eval(), ids, mask, target), mask
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 20), (4, 3), (33, 50)])
def test_every_distance_falls_into_the_bucket_that_transformers_puts_it_in(buckets, distance, causal):
    config = shape("1m", 99, "t5", {"relative_buckets": buckets, "relative_distance": distance})
    slots = torch.arange(300)
    expected = T5Attention._relative_position_bucket(slots - slots[250:, None], not causal, buckets, distance)
    assert torch.equal(relative_buckets(places_ahead(50, 300)[0], config, causal), expected)
