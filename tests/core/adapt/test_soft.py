"""Soft prompts: made of real tokens they are those tokens, however rows are padded, cached, batched or attended to."""

from dataclasses import replace

import pytest
import torch

from llmctl.core.adapt.inject import adapt
from llmctl.core.adapt.soft import Gated, attach_soft, read, set_prefix
from llmctl.core.compress.frozen import freeze
from llmctl.core.decode.generate import generate
from llmctl.core.decode.look import Labelled, look
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.sample import stream_key
from llmctl.core.model.cache import cache_for
from llmctl.core.model.init import initialise
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.transformer import Transformer
from llmctl.core.model.virtual import Prompt
from llmctl.errors import UserError
from llmctl.spec.adapt import AdaptConfig
from llmctl.spec.files import write_json
from llmctl.spec.peft import within
from llmctl.spec.sample import Sampling
from llmctl.spec.trained import added_shapes
from tests.core.variants import DECODERS, ENCODER_DECODERS, ENCODERS, VARIANTS

CLOSE = {"atol": 2e-5, "rtol": 2e-5}  # fp32, the same sums in other orders
SOFTMAX = [name for name, config in VARIANTS.items() if config.attention == "softmax"]
WORDS = torch.tensor([[7, 30, 11]])  # what prompts and prefixes are made of here
N = WORDS.shape[1]


def made(name: str) -> Transformer:
    model = initialise(Transformer(VARIANTS[name]), 3).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def rows(seed: int = 0, shape: tuple[int, int] = (3, 9)) -> torch.Tensor:
    return torch.randint(1, 61, shape, generator=torch.Generator().manual_seed(seed))


def prompt_of(model: Transformer, words: torch.Tensor) -> Prompt:
    embed = model.embed if model.encoder_embed is None else model.encoder_embed
    return Prompt(embed.vectors(words[0]).detach())


def hidden(model: Transformer, tokens: torch.Tensor, **how) -> torch.Tensor:
    """What a model makes of tokens; an encoder-decoder's decoder reads them, and its encoder what is fixed."""
    if model.config.kind == "encoder-decoder" and "encoder" not in how:
        how["encoder"] = EncoderInput(rows(5, (len(tokens), 6)))
    with torch.no_grad():
        return model(tokens, **how)


def padded(tokens: torch.Tensor, lengths: list[int], left: bool) -> dict[str, torch.Tensor]:
    """Rows cut to lengths, with positions and segments, the padding on one side."""
    length = tokens.shape[1]
    places = torch.arange(length) - torch.tensor([length - n if left else 0 for n in lengths])[:, None]
    real = (places >= 0) & (places < torch.tensor(lengths)[:, None])
    taken = tokens.gather(1, places.clamp(0, length - 1)) * real
    return {"tokens": taken, "positions": places.clamp(0), "segments": real.long()}


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_a_prompt_of_real_tokens_is_those_tokens_typed_before_the_text(name):
    model, tokens = made(name), rows()
    typed = hidden(model, torch.cat((WORDS.expand(3, -1), tokens), 1))
    model.prompt = prompt_of(model, WORDS)
    found = hidden(model, tokens)
    if model.config.classifier == "sequence":  # then the first of the row, the prompt's, stands for it
        torch.testing.assert_close(model.classify(found), model.classify(typed), **CLOSE)
        found, typed = found[:, 1:], typed[:, 1:]
    torch.testing.assert_close(found, typed[:, N:], **CLOSE)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_beside_an_encoder_a_prompt_stands_before_the_source(name):
    model, tokens, source = made(name), rows(), rows(4, (3, 7))
    typed = hidden(model, tokens, encoder=EncoderInput(torch.cat((WORDS.expand(3, -1), source), 1)))
    model.prompt = prompt_of(model, WORDS)
    torch.testing.assert_close(hidden(model, tokens, encoder=EncoderInput(source)), typed, **CLOSE)
    lengths = padded(source, [7, 2, 5], left=False)
    together = hidden(model, tokens, encoder=EncoderInput(**lengths))
    for row, length in enumerate((7, 2, 5)):
        alone = hidden(model, tokens[row : row + 1], encoder=EncoderInput(source[row : row + 1, :length]))
        torch.testing.assert_close(together[row : row + 1], alone, **CLOSE)


@pytest.mark.parametrize("name", [name for name in SOFTMAX if name not in ENCODERS])
def test_a_prefix_of_real_tokens_is_those_tokens_typed_before_the_text(name):
    model, tokens, how = made(name), rows(), {}
    source = rows(5, (1, 6))
    both = model.config.kind == "encoder-decoder"
    if both:
        how = {"encoder": EncoderInput(source.expand(3, -1))}
    if model.config.prefix_lm:  # tokens of a prefix see what follows in it, and those of ours cannot
        typed = torch.cat((WORDS.expand(3, -1), tokens), 1)
        how = {"prefix": torch.zeros_like(tokens, dtype=torch.bool)}
        typed = hidden(model, typed, prefix=torch.arange(12).expand(3, -1) < N)
    else:
        typed = hidden(model, torch.cat((WORDS.expand(3, -1), tokens), 1), **how)
    with torch.no_grad():
        set_prefix(model, read(model, WORDS, model.encode(source) if both else None))
    torch.testing.assert_close(hidden(model, tokens, **how), typed[:, N:], **CLOSE)


def soft(name: str, method: str) -> Transformer:
    """A model with a soft prompt whose gates are open."""
    model = made(name)
    model.requires_grad_(False)
    attach_soft(model, AdaptConfig(method, virtual_tokens=N), seed=2)
    with torch.no_grad():
        for layer in model.layers:
            if layer.attention.extra is not None:
                layer.attention.extra.gate.fill_(0.7)
    return model


METHODS = [
    (name, method)
    for name in VARIANTS
    for method in ("prompt", "prefix", "llama-adapter")
    if method != "prefix" or name in SOFTMAX
]


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_padded_rows_are_single_rows(name, method):
    model, tokens = soft(name, method), rows()
    for left in (False, True) if name not in ENCODERS else (False,):
        batch = padded(tokens, [9, 4, 1], left)
        source = EncoderInput(rows(5, (3, 6))) if model.config.kind == "encoder-decoder" else None
        together = hidden(model, **batch, **({"encoder": source} if source else {}))
        for row, length in enumerate((9, 4, 1)):
            one = {"encoder": EncoderInput(source.tokens[row : row + 1])} if source else {}
            alone = hidden(model, tokens[row : row + 1, :length], **one)
            own = together[row : row + 1, 9 - length :] if left else together[row : row + 1, :length]
            torch.testing.assert_close(own, alone, **CLOSE)


@pytest.mark.parametrize(("name", "method"), [pair for pair in METHODS if pair[0] not in ENCODERS])
def test_a_cache_changes_nothing(name, method):
    model, tokens = soft(name, method), rows()
    batch = padded(tokens, [9, 9, 9], left=True)
    both = model.config.kind == "encoder-decoder"
    how = {"memory": model.encode(rows(5, (3, 6)))} if both else {}
    whole = hidden(model, **batch, **({"encoder": EncoderInput(rows(5, (3, 6)))} if both else how))
    cache = cache_for(model.config, 3, 9 + N)
    with torch.no_grad():
        parts = [
            model(*(batch[key][:, at : at + n] for key in ("tokens", "positions", "segments")), cache=cache, **how)
            for at, n in ((0, 6), (6, 1), (7, 2))
        ]
    real = batch["segments"] != 0
    torch.testing.assert_close(torch.cat(parts, 1)[real], whole[real], **CLOSE)


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, method) for name in ("llama3", "mistral", "gpt2", "bloom", "t5", "bart", "linear")
     for method in ("prompt", "prefix", "llama-adapter") if (name, method) != ("linear", "prefix")],
)  # fmt: skip
def test_generation_in_a_batch_with_a_cache_is_reading_each_row_anew(name, method):
    model = soft(name, method)
    prompts = [[5, 9, 3], [7], [11, 30, 4, 8, 20]]
    keys = [stream_key(0, row, 0) for row in range(3)]
    found: list[list[int]] = [[], [], []]
    both = model.config.kind == "encoder-decoder"
    rules = {}
    if both:
        rules = {"rules": Rules(start=(0,))}
    for token in generate(model, prompts, Sampling(max_tokens=6), keys, **rules):
        found[token.row].append(token.id)
    for prompt, ids in zip(prompts, found, strict=True):
        row = [0] if both else list(prompt)
        for id in ids:
            how = {"encoder": EncoderInput(torch.tensor([prompt]))} if both else {}
            assert int(model.head(hidden(model, torch.tensor([row]), **how))[0, -1].argmax()) == id
            row.append(id)


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_only_the_soft_prompt_learns_and_all_of_it(name, method):
    model = soft(name, method)
    both = model.config.kind == "encoder-decoder"
    how = {"encoder": EncoderInput(rows(5, (3, 6)))} if both else {}
    model.train()(rows(), **how).square().sum().backward()
    learned = {name: tuple(one.shape) for name, one in model.named_parameters() if one.grad is not None}
    config = AdaptConfig(method, virtual_tokens=N)
    assert learned == added_shapes(model.config, config)
    assert all(one.grad.abs().sum() > 0 for one in model.parameters() if one.grad is not None)


def test_a_fresh_llama_adapter_changes_nothing():
    model, tokens = made("qwen3"), rows()
    before = hidden(model, tokens)
    attach_soft(model, AdaptConfig("llama-adapter"), seed=0)
    assert torch.equal(hidden(model, tokens), before)


def test_gates_let_each_query_look_at_the_vectors_alone():
    """Zhang et al., equations 4 to 8, written out for one layer with shared heads."""
    model, x = soft("llama", "llama-adapter"), torch.randn(2, 5, 24)
    attention = model.decoder.layers["1"].attention
    extra: Gated = attention.extra
    q, y = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 6)
    k, v = (attention.heads(one(extra.vectors[None])).repeat_interleave(2, 1) for one in (attention.k, attention.v))
    weights = (q @ k.transpose(2, 3) / 6**0.5).softmax(-1)
    wanted = attention.out((y + 0.7 * weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(extra(attention, q, y), wanted)
    assert x.shape == wanted.shape


def test_rows_of_several_documents_are_refused():
    for method in ("prompt", "prefix"):
        model = soft("llama", method)
        with pytest.raises(ValueError, match="one document"):
            model(rows(), segments=torch.tensor([[1] * 4 + [2] * 5]).expand(3, -1))


def test_rows_that_do_not_fit_beside_the_virtual_tokens_are_refused():
    model = soft("gpt2", "prompt")
    assert model.virtual_tokens("decoder") == N
    tokens = rows(0, (1, 32 - N))
    hidden(model, tokens)
    with pytest.raises(UserError, match="row of 33"):
        hidden(model, rows(0, (1, 33 - N)))
    with pytest.raises(UserError, match="row of 33"):
        hidden(model, rows(0, (1, 33 - N)), positions=torch.arange(33 - N)[None])
    with pytest.raises(UserError, match="leaves no room"):
        attach_soft(made("gpt2"), AdaptConfig("prefix", virtual_tokens=32), 0)


def test_a_prompt_begins_with_vectors_of_the_vocabulary_by_the_seed():
    found = {}
    for seed in (0, 0, 1):
        model = made("gemma2")  # its vectors are scaled
        attach_soft(model, AdaptConfig("prompt", virtual_tokens=70), seed)
        if seed in found:
            assert torch.equal(found[seed], model.prompt.vectors)
        found[seed] = model.prompt.vectors.detach()
        every = model.embed.vectors(torch.arange(61))
        ids = torch.cdist(model.prompt.vectors, every).argmin(1)
        assert torch.equal(every[ids], model.prompt.vectors)
        assert sorted(ids[:61].tolist()) == list(range(61))
        assert torch.equal(ids[61:], ids[:9])
    assert not torch.equal(found[0], found[1])


def test_a_prompt_begins_with_the_vectors_of_a_text_repeated(byte_bpe):
    model = initialise(Transformer(replace(DECODERS["llama"], vocab=300)), 0)
    ids = byte_bpe.encode("the list of things")
    attach_soft(
        model, AdaptConfig("prompt", virtual_tokens=len(ids) + 2, prompt_text="the list of things"), 0, byte_bpe
    )
    assert torch.equal(model.prompt.vectors, model.embed.tokens(torch.tensor([*ids, *ids[:2]])))
    with pytest.raises(UserError, match="no tokens"):
        attach_soft(model, AdaptConfig("prompt", prompt_text=""), 0, byte_bpe)


def test_a_base_in_bf16_holds_its_soft_prompt_in_fp32():
    for method in ("prompt", "prefix", "llama-adapter"):
        model = made("llama").to(torch.bfloat16)
        attach_soft(model, AdaptConfig(method, virtual_tokens=N), 0)
        assert hidden(model, rows()).dtype == torch.bfloat16
        names = added_shapes(model.config, AdaptConfig(method, virtual_tokens=N))
        assert {model.get_parameter(name).dtype for name in names} == {torch.float32}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "nf4"])
@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_matrices_may_be_held_in_another_type_when_a_prefix_begins(name, dtype):
    model, config = made(name), AdaptConfig("prefix", virtual_tokens=N, base_dtype=dtype)
    freeze(model, config, torch.bfloat16 if dtype == "bf16" else torch.float32)
    adapt(model, config, seed=2)
    wanted = soft(name, "prefix").last_stack.layers["0"].attention.prefix
    found = model.last_stack.layers["0"].attention.prefix
    far = float(((found - wanted).norm() / wanted.norm()).detach())
    assert (
        far < {"fp32": 1e-6, "bf16": 0.02, "nf4": 0.3}[dtype]
    )  # by the mantissas of 8 bits, and by 16 values a weight


def test_a_second_adapter_is_refused():
    for method in ("prompt", "prefix", "llama-adapter"):
        with pytest.raises(UserError, match="adapter already"):
            adapt(soft("llama", method), AdaptConfig("lora"), 0)


@pytest.mark.parametrize(
    ("name", "method", "queries", "keys"),
    [("llama", "prompt", 3, 3), ("llama", "prefix", 0, 3), ("bert", "prompt", 3, 3), ("t5", "prefix", 0, 3),
     ("t5", "prompt", 0, 0), ("llama", "llama-adapter", 0, 0)],
)  # fmt: skip
def test_a_look_at_attention_names_virtual_tokens(name, method, queries, keys):
    model = soft(name, method)
    text = Labelled([5, 6, 7, 8], list("abcd"), list("abcd"))
    both = model.config.kind == "encoder-decoder"
    side = "encoder" if name == "bert" else "decoder"
    found = look(model, text, text if both else None, side, False, [0], [1])
    assert found.weights.shape == (1, 1, len(found.queries.ids), len(found.keys.ids)) == (1, 1, 4 + queries, 4 + keys)
    assert found.keys.texts == ["<virtual 1>", "<virtual 2>", "<virtual 3>"][:keys] + list("abcd")
    if both:
        crossed = look(model, text, text, side, True, [0], [1])
        assert crossed.weights.shape[3] == len(crossed.keys.ids) == 4 + (3 if method == "prompt" else 0)


def test_the_virtual_tokens_of_an_adapter_take_places_in_the_context(tmp_path):
    config = VARIANTS["gpt2"]
    assert within(tmp_path, config) == config
    prompt = {"num_virtual_tokens": 5}
    for kind, more, kept in (("PROMPT_TUNING", prompt, 27), ("PREFIX_TUNING", prompt, 27), ("IA3", {}, 32)):
        write_json(tmp_path / "adapter_config.json", {"peft_type": kind, **more})
        assert within(tmp_path, config).context == kept
