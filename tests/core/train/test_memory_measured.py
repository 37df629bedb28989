"""What spec/memory predicts beside what the model, its loss and its optimizer hold."""

from collections.abc import Callable
from contextlib import nullcontext
from itertools import accumulate
from math import ceil, prod

import pytest
import torch

from llmctl.core.data.batch import IGNORE, Batch
from llmctl.core.model.cache import KVCache
from llmctl.core.model.explicit import LONGEST, QUERIES
from llmctl.core.model.init import initialise
from llmctl.core.model.linear import CHUNK
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.transformer import Transformer
from llmctl.core.train.cross_entropy import chunk_rows
from llmctl.core.train.objectives import SPARSE, tokens_loss
from llmctl.core.train.optim import optimizers
from llmctl.core.train.wrap import recompute
from llmctl.spec import activations, kept, sizes
from llmctl.spec.memory import estimate
from llmctl.spec.model import ModelConfig
from llmctl.spec.setting import Setting
from llmctl.spec.sizes import parameters, shapes
from llmctl.spec.train import TrainConfig

LLAMA = ModelConfig(vocab=211, width=64, layers=3, heads=4, kv_heads=2, ff=176, context=64)
QWEN3 = LLAMA.resized(qk_norm=True, tie=False)
MISTRAL = LLAMA.resized(window=24, window_layers=(0, 2))
PLAIN = {
    "norm": "layer",
    "gated": False,
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "ff": 256,
    "kv_heads": 4,
}
GPT2 = LLAMA.resized(position="learned", activation="gelu_tanh", **PLAIN)
DROPS = GPT2.resized(dropout=0.1)
BLOOM = LLAMA.resized(position="alibi", embed_norm=True, activation="gelu_tanh", **PLAIN)
GEMMA2 = LLAMA.resized(
    norm_plus_one=True, norm_place="sandwich", attention_softcap=50.0, logit_softcap=30.0, window=24,
    window_layers=(0, 2), activation="gelu_tanh", embed_scale=True,
)  # fmt: skip
GEMMA3 = LLAMA.resized(
    norm_plus_one=True, norm_place="sandwich", qk_norm=True, rope_local_theta=1e4, window=24, window_layers=(0, 2),
    activation="gelu_tanh", embed_scale=True,
)  # fmt: skip
OLMO2 = LLAMA.resized(norm_place="output", qk_norm=True, qk_norm_whole=True, tie=False)
NEOX = LLAMA.resized(parallel=True, activation="gelu", rotary_dim=8, tie=False, **PLAIN)
BERT = LLAMA.resized(
    kind="encoder", norm_place="post", position="learned", embed_norm=True, token_types=2, activation="gelu",
    head_transform=True, head_bias=True, **PLAIN,
)  # fmt: skip
T5 = LLAMA.resized(
    kind="encoder-decoder", encoder_layers=2, position="relative", attention_scale=1.0, kv_heads=4,
    activation="gelu_tanh", tie=False,
)  # fmt: skip
T5_OLD = T5.resized(activation="relu", gated=False, tie=True, logit_scale=0.125)
BART = LLAMA.resized(
    kind="encoder-decoder", norm_place="post", position="learned", position_offset=2, embed_norm=True,
    activation="gelu", head_bias=True, **PLAIN,
)  # fmt: skip
MODELS = {
    "llama": LLAMA,
    "qwen3": QWEN3,
    "mistral": MISTRAL,
    "gpt2": GPT2,
    "dropout": DROPS,
    "bloom": BLOOM,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "olmo2": OLMO2,
    "neox": NEOX,
    "bert": BERT,
    "bert with dropout": BERT.resized(dropout=0.1),
    "t5": T5,
    "t5 1.0": T5_OLD,
    "bart": BART,
}
LINEAR = {
    "causal": LLAMA.resized(attention="linear"),
    "both ways": LLAMA.resized(attention="linear", kind="encoder", position="sinusoidal"),
}
SOURCE = 32  # tokens of an encoder's row beside a decoder's
# Not counted by the formulas: 16-bit copies of norms' weights and the like, a few hundred bytes.
SLACK = 0.002


def made(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Transformer:
    return initialise(Transformer(config, "cpu", dtype), 0).train()


def made_for(config: ModelConfig, regime: str, packed: bool, rows: int, block: int) -> tuple[Setting, Transformer]:
    """A setting and its model: fp32, autocast, or all of it in 16 bits (pure)."""
    dtype, precision = ("fp32", "pure") if regime == "fp32" else ("bf16", regime)
    source = SOURCE if config.kind == "encoder-decoder" else None
    setting = Setting(
        batch=rows, sequence=block, source=source, dtype=dtype, precision=precision, device="cpu", packed=packed
    )
    return setting, made(config, torch.bfloat16 if regime == "pure" else torch.float32)


def near(size: int) -> object:
    return pytest.approx(size, rel=SLACK)


def batch(config: ModelConfig, rows: int, block: int) -> Batch:
    """Random rows of two documents each; an encoder is asked for 15 % of the tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.vocab, (rows, block), generator=generator)
    targets, scored, apart = tokens.roll(-1, 1), rows * block, halved(rows, block)
    if config.kind == "encoder":
        scored = ceil(0.15 * scored)
        chosen = torch.randperm(rows * block, generator=generator)[:scored]
        targets = torch.full((rows * block,), IGNORE).scatter(0, chosen, 5).view(rows, block)
    source = None
    if config.kind == "encoder-decoder":
        read = torch.randint(0, config.vocab, (rows, SOURCE), generator=generator)
        source = EncoderInput(read, *halved(rows, SOURCE))
    return Batch(tokens, targets, *apart, scored, rows * block, encoder=source)


def halved(rows: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and segments of rows of two documents."""
    places, half = torch.arange(block).expand(rows, block), block // 2
    return places % half, 1 + places // half


def kept_storages(model: torch.nn.Module, forward: Callable[[], object]) -> list[torch.UntypedStorage]:
    """What autograd keeps between the forward and the backward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage  # held here, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return list(found.values())


def saved(model: Transformer, setting: Setting, given: Batch) -> int:
    """Bytes that autograd keeps of a model's forward pass and loss."""
    with torch.autocast("cpu", torch.bfloat16) if setting.autocast else nullcontext():
        storages = kept_storages(model, lambda: tokens_loss(model, given, cross_document=not setting.packed))
    return sum(storage.nbytes() for storage in storages)


def predicted(config: ModelConfig, setting: Setting) -> int:
    """The parts of `activations` that are kept, without those that are at work for a moment."""
    return sum(size for name, size in estimate(config, setting).parts if not name.startswith("at work"))


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "whole"])
@pytest.mark.parametrize("regime", ["fp32", "autocast", "pure"])
@pytest.mark.parametrize("name", MODELS)
def test_the_tensors_that_autograd_keeps_have_the_predicted_bytes(name, regime, packed):
    setting, model = made_for(MODELS[name], regime, packed, 4, 48)
    assert saved(model, setting, batch(MODELS[name], 4, 48)) == near(predicted(MODELS[name], setting))


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "whole"])
@pytest.mark.parametrize("regime", ["fp32", "autocast", "pure"])
@pytest.mark.parametrize("name", LINEAR)
def test_linear_attention_keeps_chunks_and_their_sums(name, regime, packed):
    setting, model = made_for(LINEAR[name], regime, packed, 2, 2 * CHUNK)
    assert saved(model, setting, batch(LINEAR[name], 2, 2 * CHUNK)) == near(predicted(LINEAR[name], setting))


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "whole"])
@pytest.mark.parametrize("name", ["llama", "mistral", "bloom", "bert", "t5", "bart", "gemma2"])
@pytest.mark.parametrize("block", [QUERIES + 44, LONGEST + 6])
def test_long_rows_keep_what_their_kernel_of_attention_keeps(name, block, packed):
    config = MODELS[name].resized(layers=2, context=2048, window_layers=None)
    setting, model = made_for(config, "autocast", packed, 1, block)
    assert saved(model, setting, batch(config, 1, block)) == near(predicted(config, setting))


def peak(work: Callable[[], None]) -> int:
    """The most bytes that the allocator has handed out at once while `work` ran, more than when it began."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["kept", "recompute"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "vocab"),
    [("llama", 256), ("llama", 4096), ("bloom", 256), ("bert", 4096), ("t5", 256), ("gemma2", 4096), ("olmo2", 256)],
)
def test_a_forward_and_backward_pass_peaks_where_it_is_predicted(name, vocab, dtype, again):
    """To 10 %: the formulas name what is at work in two moments, the loss and the last layer's backward pass; the
    real peak has a few more temporaries, or falls beside one."""
    sizes = {"vocab": vocab, "width": 256, "layers": 4, "head_dim": 64, "ff": 704, "context": 256}
    config = MODELS[name].resized(**sizes)
    source = SOURCE if config.kind == "encoder-decoder" else None
    setting = Setting(batch=4, sequence=128, source=source, dtype=dtype, device="cpu", packed=True, recompute=again)
    model, given = made(config), batch(config, 4, 128)
    if again:
        recompute(model)

    def pass_() -> None:
        with torch.autocast("cpu", torch.bfloat16) if setting.autocast else nullcontext():
            loss = tokens_loss(model, given)
        (loss.total / given.scored).backward()

    pass_()  # so that the gradients are there, as for any micro-batch but the first
    memory = estimate(config, setting)
    assert peak(pass_) == pytest.approx(memory.activations + memory.logits, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "ff"), [("llama", 704), ("llama", 256), ("gpt2", 1024), ("bert", 1024), ("t5", 704), ("bart", 1024)]
)
def test_reading_a_prompt_takes_the_predicted_cache_and_activations(name, ff, dtype):
    config = MODELS[name].resized(width=256, ff=ff, head_dim=64, context=512)
    source = 200 if config.kind == "encoder-decoder" else None
    setting = Setting(mode="inference", batch=4, sequence=256, source=source, dtype=dtype, device="cpu")
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model, tokens = made(config, kind).eval(), batch(config, 4, 256).tokens

    @torch.no_grad()
    def read() -> None:
        given = {"memory": model.encode(tokens[:, :source])} if source else {}
        if config.kind != "encoder":
            given["cache"] = KVCache.allocate(config, 4, 256, dtype=kind)
        model.head(model(tokens, **given)[:, -1]).float()

    read()
    memory = estimate(config, setting)
    assert peak(read) == pytest.approx(memory.kv_cache + memory.activations + memory.logits, rel=0.05)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_gradients_and_optimizer_states_have_the_predicted_bytes(optimizer):
    model = made(QWEN3)
    tokens_loss(model, batch(QWEN3, 2, 16)).total.backward()
    steppers = optimizers(model, TrainConfig(optimizer=optimizer))
    for stepper in steppers:
        stepper.step()
    memory = estimate(QWEN3, Setting(optimizer=optimizer))
    assert sum(p.nbytes for p in model.parameters()) == memory.weights
    assert sum(p.grad.nbytes for p in model.parameters()) == memory.gradients
    states = [value for stepper in steppers for state in stepper.state.values() for value in state.values()]
    held = [value for value in states if isinstance(value, torch.Tensor) and value.ndim]  # without the step counters
    assert sum(value.nbytes for value in held) == memory.optimizer
    assert memory.master_weights == 0


@pytest.mark.parametrize("name", MODELS)
def test_the_shapes_of_a_config_are_those_of_its_model(name):
    found = {key: tuple(value.shape) for key, value in Transformer(MODELS[name], "meta").named_parameters()}
    assert found == shapes(MODELS[name])
    assert sum(map(prod, found.values())) == parameters(MODELS[name])


def test_the_constants_that_the_formulas_repeat_are_those_of_the_code():
    assert (kept.EXPLICIT, kept.QUERIES, sizes.LINEAR_CHUNK) == (LONGEST, QUERIES, CHUNK)
    assert activations.GATHERED == SPARSE
    for vocab in (2, 256, 1000, 4096, 32000, 50257, 128256, 131072, 250880):
        assert activations.loss_rows(vocab) == chunk_rows(vocab)
