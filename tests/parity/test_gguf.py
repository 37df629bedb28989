"""GGUF files in llama.cpp: the same likeliest tokens, from every kind of model and of tokenizer that it has."""

import json
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers

from llmctl.core.checkpoint.directory import Checkpoint, save_checkpoint
from llmctl.core.export.gguf import export
from llmctl.core.export.pieces import PROBE, SPACE
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.core.text.train import train_tokenizer
from llmctl.errors import UserError
from llmctl.spec.gguf import ExportConfig
from llmctl.spec.model import ModelConfig, RopeScaling
from tests.parity.oracle_gguf import LlamaCpp

VOCAB = 384
BASE = {"vocab": VOCAB, "width": 64, "layers": 4, "heads": 4, "ff": 96, "context": 64, "init_std": 0.2}
GROUPED = {**BASE, "kv_heads": 2}
PLAIN = {"norm": "layer", "activation": "gelu_tanh", "gated": False}
BIASED = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
GEMMA = {"norm_plus_one": True, "embed_scale": True, "activation": "gelu_tanh"}
SANDWICH = {**GEMMA, "norm_place": "sandwich"}
LONG = RopeScaling("longrope", 4.0, 256, short_factor=(1.0, 1.5, 2.0, 3.0, 3.0, 4.0, 5.0, 6.0), long_factor=(9.0,) * 8)
YARN = RopeScaling("yarn", 4.0, 16)
ODD_YARN = RopeScaling("yarn", 4.0, 16, beta_fast=8.0, beta_slow=2.0, truncate=False, attention_factor=0.7)

# By llama.cpp's name of the architecture, and what is particular.
MODELS: dict[str, ModelConfig] = {
    "llama": ModelConfig(**GROUPED, tie=False),
    "llama biased": ModelConfig(**GROUPED, **BIASED),
    "llama scaled": ModelConfig(**BASE, kv_heads=1, head_dim=32, attention_scale=0.3, logit_scale=0.5),
    "llama 3": ModelConfig(**GROUPED, rope_scaling=RopeScaling("llama3", 4.0, 8)),
    "llama linear": ModelConfig(**GROUPED, rope_scaling=RopeScaling("linear", 4.0)),
    "llama yarn": ModelConfig(**GROUPED, rope_scaling=ODD_YARN),
    "llama without positions": ModelConfig(**GROUPED, position="none", model_type="llmctl"),
    "llama of mistral": ModelConfig(**GROUPED, window=40, tie=False, model_type="mistral"),
    "qwen2": ModelConfig(**GROUPED, qkv_bias=True, rope_scaling=YARN, model_type="qwen2"),
    "qwen3": ModelConfig(**GROUPED, head_dim=32, qk_norm=True, rope_scaling=YARN, model_type="qwen3"),
    "smollm3": ModelConfig(**GROUPED, rope_skip=(3,), model_type="smollm3"),
    "phi3": ModelConfig(**GROUPED, rotary_dim=8, model_type="phi3"),
    "phi3 long": ModelConfig(**{**GROUPED, "context": 512}, rope_scaling=LONG, model_type="phi3"),
    "gemma": ModelConfig(**GROUPED, **GEMMA, head_dim=32, model_type="gemma"),
    "gemma2": ModelConfig(
        **GROUPED, **SANDWICH, attention_scale=0.25, attention_softcap=3.0, logit_softcap=2.0, window=4,
        window_layers=(0, 2), model_type="gemma2",
    ),
    "gemma2 uncapped": ModelConfig(**GROUPED, **SANDWICH, model_type="gemma2"),
    "gemma3": ModelConfig(
        **GROUPED, **SANDWICH, qk_norm=True, window=4, window_layers=(0, 1, 3), rope_theta=1e6, rope_local_theta=1e4,
        rope_scaling=RopeScaling("linear", 8.0), attention_scale=0.3, tie=False, model_type="gemma3_text",
    ),
    "gemma3 without windows": ModelConfig(
        **GROUPED, **SANDWICH, qk_norm=True, rope_theta=500.0, logit_softcap=5.0, model_type="gemma3_text"
    ),
    "olmo2": ModelConfig(
        **GROUPED, norm_place="output", qk_norm=True, qk_norm_whole=True, rope_scaling=YARN, model_type="olmo2"
    ),
    "gptneox": ModelConfig(**BASE, **PLAIN, **BIASED, parallel=True, rotary_dim=4, tie=False, model_type="gpt_neox"),
    "gptneox in turn": ModelConfig(**BASE, **PLAIN, mlp_bias=True, rotary_dim=4, model_type="gpt_neox"),
    "gpt2": ModelConfig(**BASE, **PLAIN, **BIASED, position="learned", model_type="gpt2"),
    "bloom": ModelConfig(
        **{**BASE, "ff": 256}, **PLAIN, **BIASED, position="alibi", embed_norm=True, model_type="bloom"
    ),
}  # fmt: skip
ENCODER = {"kind": "encoder", **PLAIN, "activation": "gelu", **BIASED, "norm_place": "post", "embed_norm": True}
ENCODERS = {
    "bert": ModelConfig(**BASE, **ENCODER, position="learned", token_types=2, pooler=True, model_type="bert"),
    "roberta": ModelConfig(
        **BASE, **ENCODER, position="learned", token_types=1, position_offset=2, pad=1, model_type="roberta"
    ),
    "distilbert": ModelConfig(**BASE, **ENCODER, position="learned", norm_eps=1e-12, model_type="distilbert"),
}


@pytest.fixture(scope="module")
def texts(corpus_file) -> list[str]:
    with open(corpus_file, encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file][:60]


@pytest.fixture(scope="module")
def made(texts, tmp_path_factory):
    """made("bpe", vocab_size=384, ...) -> a directory that holds a tokenizer."""

    def make(algorithm: str, **how: object) -> Path:
        directory = tmp_path_factory.mktemp("tokenizer")
        train_tokenizer(texts, algorithm, **how).save(directory)
        return directory

    return make


@pytest.fixture(scope="module")
def bpe(made) -> Path:
    return made("bpe", vocab_size=VOCAB)


def written(directory: Path, config: ModelConfig, tokenizer: Path, type: str = "f32") -> tuple[Path, list[str]]:
    """A GGUF file of random weights, and what is said of it."""
    model = initialise(Transformer(config), 0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:  # ones and zeros would hide a swap
            turns = torch.arange(1, len(parameter) + 1) * sum(name.encode()) % 97
            parameter.data += turns / 194
    save_checkpoint(directory, model, config, tokenizer_from=tokenizer)
    with open(directory / "model.gguf", "wb") as file:
        plan, notes = export(directory, file, ExportConfig(type), "{}")
    return directory / "model.gguf", [*plan.notes, *notes]


@torch.inference_mode()
def greedy(checkpoint: Checkpoint, prompt: str, like: list[int]) -> tuple[list[int], dict[int, float]]:
    """The likeliest token after a prompt and after each of `like`; the first one's log-probabilities."""
    model, tokenizer = checkpoint.model(), checkpoint.tokenizer()
    ids = tokenizer.encode(prompt)
    hidden = model(torch.tensor([[*ids, *like]]))[0, len(ids) - 1 : -1]
    scores = model.head(hidden).float().log_softmax(-1)
    return scores.argmax(-1).tolist(), dict(enumerate(scores[0].tolist()))


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_takes_the_same_tokens_as_we_do(name, tmp_path, bpe):
    path, notes = written(tmp_path, MODELS[name], bpe)
    theirs = LlamaCpp(path)
    for prompt in ("Kalo mi turen", "é"):
        said = theirs.greedy(prompt)
        ours, scores = greedy(Checkpoint.open(tmp_path), prompt, said.tokens)
        assert said.tokens == ours
        for token, score in said.scores.items():  # llama.cpp looks up gelu in a table of float16
            assert score == pytest.approx(scores[token], abs=0.01 if "gelu" in MODELS[name].activation else 1e-4)
    assert bool(notes) == (name in ("llama of mistral", "phi3 long"))


@pytest.mark.parametrize("name", ENCODERS)
def test_llama_cpp_makes_the_same_embeddings(name, tmp_path, made):
    kinds = {"bert": "wordpiece", "roberta": "bpe", "distilbert": "wordpiece"}
    roles = {"roles": "roberta"} if name == "roberta" else {"normalize": "lower"}
    path, notes = written(tmp_path, ENCODERS[name], made(kinds[name], vocab_size=VOCAB, **roles))
    checkpoint, text = Checkpoint.open(tmp_path), "Kalo mi turen, sa velström 12."
    before, after = checkpoint.tokenizer().frame
    with torch.inference_mode():
        hidden = checkpoint.model()(torch.tensor([[*before, *checkpoint.tokenizer().encode(text), *after]]))
        ours = torch.nn.functional.normalize(hidden[0].mean(0), dim=0)
    theirs = torch.tensor(LlamaCpp(path, embedding=True).vector(text))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-3)  # gelu by its tanh form
    assert any("tanh" in note for note in notes) and any("heads" in note for note in notes)


def test_an_encoder_decoder_has_the_tensors_that_llama_cpp_names_and_its_head_in_the_last_norm(tmp_path, made):
    """llama.cpp's server runs no encoder-decoder: it stops at "llama_encode must be called first"."""
    shape = {**BASE, "vocab": 512, "kind": "encoder-decoder", "decoder_start": 0, "position": "relative"}
    more = {"activation": "relu", "gated": False, "attention_scale": 1.0, "logit_scale": 0.125, "norm_eps": 1e-6}
    path, notes = written(
        tmp_path, ModelConfig(**shape, **more, model_type="t5"), made("unigram", vocab_size=512, roles="t5")
    )
    tensors = {one.name: one for one in gguf.GGUFReader(path).tensors}
    known = {gguf.TENSOR_NAMES[kind] for kind in gguf.MODEL_TENSORS[gguf.MODEL_ARCH.T5]}
    numbered = {re.sub(r"blk\.\d+", "blk.{bid}", name.removesuffix(".weight")) for name in tensors}
    optional = {"output", "dec.blk.{bid}.cross_attn_rel_b", "enc.blk.{bid}.ffn_gate", "dec.blk.{bid}.ffn_gate"}
    assert numbered == known - optional
    norm = Checkpoint.open(tmp_path).model().get_parameter("decoder.norm.weight").detach().numpy()
    np.testing.assert_allclose(tensors["dec.output_norm.weight"].data, norm * np.float32(0.125), rtol=1e-6)
    assert any("llama_encode" in note for note in notes)


@pytest.mark.parametrize(
    "how",
    [
        {"algorithm": "bpe"},
        {"algorithm": "bpe", "words": "llama3"},
        {"algorithm": "bpe", "words": "qwen2", "specials": ("<|im_end|>",)},
        {"algorithm": "bpe", "roles": "roberta"},
        {"algorithm": "byte", "vocab_size": None},
    ],
    ids=str,
)
def test_a_text_has_the_same_tokens(how, tmp_path, made, texts):
    tokenizer = made(**{"vocab_size": VOCAB, **how})
    path, notes = written(tmp_path, MODELS["llama"], tokenizer)
    theirs, ours = LlamaCpp(path), Tokenizer.open(tokenizer)
    for text in (PROBE, *texts[:5], " ", "\n", "a  b", "\r\n\r\n x", "1234567", "don't I'LL"):
        assert theirs.ids(text) == ours.encode(text)
    assert notes == []


def test_unigram_pieces_are_the_likeliest_and_bytes_stand_for_the_rest(tmp_path, made, texts):
    tokenizer = made("unigram", vocab_size=VOCAB)
    path, notes = written(tmp_path, MODELS["llama"], tokenizer)
    theirs, ours = LlamaCpp(path), Tokenizer.open(tokenizer)
    for text in (*texts[:5], "日本 🙂 kalo", "<0x41>", "<|endoftext|>"):
        assert theirs.ids(text) == ours.encode(text)
    assert any("words" in note for note in notes)


@pytest.mark.parametrize("prefixed", [True, False], ids=["as Llama", "as Gemma"])
def test_sentencepiece_bpe_has_the_same_tokens_without_its_merges(prefixed, tmp_path, texts):
    (tmp_path / "tokenizer").mkdir()
    Tokenizer(_sentencepiece(texts, prefixed), {"bos_token": "<s>", "eos_token": "</s>"}).save(tmp_path / "tokenizer")
    path, notes = written(tmp_path, MODELS["llama"], tmp_path / "tokenizer")
    theirs, ours = LlamaCpp(path), Tokenizer.open(tmp_path / "tokenizer")
    for text in (*texts[:5], "日本 🙂 kalo", "a  b", " ka\nlo"):
        assert theirs.ids(text) == ours.encode(text)
    assert notes == []


def _sentencepiece(texts: list[str], prefixed: bool) -> tokenizers.Tokenizer:
    """BPE with bytes for what it lacks and a merge for every way to make a token, as converted from sentencepiece."""
    replaced = [normalizers.Prepend(SPACE)] * prefixed + [normalizers.Replace(" ", SPACE)]
    plain = tokenizers.Tokenizer(models.BPE())
    plain.normalizer = normalizers.Sequence(replaced)
    plain.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=120, show_progress=False)
    plain.train_from_iterator(texts, trainer)
    pieces = sorted(plain.get_vocab(), key=plain.token_to_id)
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: i for i, token in enumerate([*first, *pieces])}
    splits = ((piece[:i], piece[i:]) for piece in pieces for i in range(1, len(piece)))
    merges = [pair for pair in splits if pair[0] in vocab and pair[1] in vocab]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence(replaced)
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"algorithm": "bpe", "normalize": "lower"}, "normalizes"),
        ({"algorithm": "word", "vocab_size": 200}, "WordLevel"),
        ({"algorithm": "char", "vocab_size": None}, "unk"),
    ],
    ids=lambda one: one["algorithm"] if isinstance(one, dict) else "",
)
def test_a_tokenizer_that_llama_cpp_has_not_is_refused_by_what_it_does(how, why, tmp_path, made):
    with pytest.raises(UserError, match=why):
        written(tmp_path, MODELS["llama"], made(**{"vocab_size": VOCAB, **how}))


def test_a_pattern_of_words_that_llama_cpp_has_not_is_refused(tmp_path, bpe):
    parts = json.loads((bpe / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": r"\w+|\W"}, "behavior": "Isolated", "invert": False}
    bare = {**parts["pre_tokenizer"], "use_regex": False}
    parts["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, bare]}
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "tokenizer.json").write_text(json.dumps(parts))
    with pytest.raises(UserError, match="cuts texts into words"):
        written(tmp_path, MODELS["llama"], tmp_path / "odd")


@pytest.mark.parametrize("type", ["f32", "f16", "bf16", "q8_0"])
def test_a_trained_model_writes_the_same_text_in_llama_cpp(type, learned, tmp_path):
    with open(tmp_path / "m.gguf", "wb") as file:
        export(learned.path, file, ExportConfig(type), "{}")
    theirs, checkpoint = LlamaCpp(tmp_path / "m.gguf"), Checkpoint.open(learned.path)
    for prompt in ("The function returns", "class Name:\n    def "):
        said = theirs.greedy(prompt, 32)
        ours, scores = greedy(checkpoint, prompt, said.tokens)
        if type in ("f32", "f16"):  # the others round weights that are float32 here by as much as two tokens differ
            assert said.tokens == ours
            assert said.text == checkpoint.tokenizer().decode(said.tokens)
        for token, score in said.scores.items():
            assert score == pytest.approx(scores[token], abs=0.1)


def test_fewer_bits_are_further_from_the_model_and_each_type_loads(learned, tmp_path):
    """By how much the log-probabilities of the next token are off: each type loads, and more bits are nearer."""
    checkpoint, off = Checkpoint.open(learned.path), {}
    prompts = ["The function returns", "import os\n\n", "If the argument is", "Return a new"]
    for type in ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "q6_k", "q4_k_m"):
        with open(tmp_path / f"{type}.gguf", "wb") as file:
            export(learned.path, file, ExportConfig(type), "{}")
        theirs, found = LlamaCpp(tmp_path / f"{type}.gguf"), []
        for prompt in prompts:
            said = theirs.greedy(prompt, 1)
            _, scores = greedy(checkpoint, prompt, said.tokens)
            found += [abs(score - scores[token]) for token, score in said.scores.items()]
        off[type] = sum(found) / len(found)
    assert off["f16"] < off["q8_0"] < off["q5_0"] < off["q4_0"]
    assert off["q4_0"] < 0.3


def test_a_model_that_llama_cpp_does_not_compute_is_refused_by_what_it_is(tmp_path, bpe):
    config = ModelConfig(**GROUPED, attention="linear", model_type="llmctl")
    with pytest.raises(UserError, match="nearest it has is llama, but here its attention is linear"):
        written(tmp_path, config, bpe)
