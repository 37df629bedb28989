"""frozen: the same products from matrices in few bits, with nothing kept but the bits."""

import struct
from mmap import PAGESIZE

import pytest
import torch

from llmctl.core.adapt.inject import adapt
from llmctl.core.adapt.lora import Lora
from llmctl.core.checkpoint.directory import Checkpoint, save_checkpoint
from llmctl.core.compress.frozen import CastLinear, Nf4Linear, freeze
from llmctl.core.compress.nf4 import pack, unpack
from llmctl.core.model.init import initialise
from llmctl.core.model.layers import Linear
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.transformer import Transformer
from llmctl.spec.adapt import AdaptConfig
from tests.core.variants import VARIANTS

QLORA = AdaptConfig(method="qlora")


def made(name="llama", **changes):
    return initialise(Transformer(VARIANTS[name].resized(**changes), "cpu", torch.float32), 0).eval()


def hidden(model, ids=((3, 5, 8, 13, 21), (2, 4, 8, 16, 32))):
    tokens = torch.tensor(ids)
    both = model.config.kind == "encoder-decoder"
    return model(tokens, encoder=EncoderInput(tokens, None, None)) if both else model(tokens)


@pytest.mark.parametrize("double", [False, True], ids=["scales", "double"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_in_4_bits_computes_what_one_of_the_unpacked_weights_does(name, double):
    model, other = made(name), made(name)
    freeze(model, AdaptConfig(method="qlora", double_quant=double), torch.float32)
    with torch.no_grad():
        for path, module in other.named_modules():
            if isinstance(module, Linear) and ".layers." in path:
                packed = pack(module.weight, double)
                module.weight.copy_(unpack(packed, tuple(module.weight.shape), torch.float32))
                assert torch.equal(model.get_submodule(path).dense(), module.weight)
    assert torch.equal(hidden(model), hidden(other))


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_an_adapter_may_overwrite_the_product_of_4_bits_with_and_without_a_bias(name):
    """A product with a bias had been a view, which autograd lets nobody overwrite: QLoRA of BERT ended in an error."""
    model = made(name)
    freeze(model, QLORA, torch.float32)
    adapt(model, QLORA, seed=0)
    hidden(model).sum().backward()
    assert all(one.b.grad.abs().sum() > 0 for one in model.modules() if isinstance(one, Lora))


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
def test_gradients_pass_through_4_bits_as_through_the_unpacked_weight(autocast):
    source = Linear(70, 30)
    with torch.no_grad():
        source.weight.normal_(), source.bias.normal_()
    held = Nf4Linear(source, True, torch.float32)
    dense = Linear(70, 30)
    dense.load_state_dict({"weight": held.dense(), "bias": source.bias})
    x = torch.randn(2, 5, 70)
    found = []
    for linear in (held, dense):
        given, bias = x.clone().requires_grad_(), linear.bias
        bias.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = linear(given)
        y.backward(torch.ones_like(y) / 8)
        found.append((y, given.grad, bias.grad))
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0.008 if autocast else 1e-6, atol=0)  # a bias's sum is rounded once


def test_nothing_but_the_packed_weight_is_kept_for_the_backward_pass():
    linear, kept = Nf4Linear(made().decoder.layers["0"].mlp.up, True, torch.float32), []
    x = torch.randn(3, 24, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        linear(x)
    own = {buffer.data_ptr() for buffer in linear.buffers()}
    assert kept and {tensor.data_ptr() for tensor in kept} == own


def test_names_of_the_state_say_that_it_is_nf4_and_no_checkpoint_is_made_of_it(tmp_path):
    model = made()
    freeze(model, QLORA, torch.bfloat16)
    names = {name.rpartition(".")[2] for name in model.state_dict() if ".mlp.up." in name}
    assert names == {"weight_nf4", "weight_absmax", "weight_nested_absmax", "weight_offset"}
    with pytest.raises(ValueError, match=r"does not fit its config: .*k\.weight.*k\.weight_nf4"):
        save_checkpoint(tmp_path, model, model.config)
    assert not list(tmp_path.iterdir())


def test_embeddings_norms_and_heads_stay_and_a_layers_biases_too():
    model, before = made("gpt2"), made("gpt2").state_dict()
    freeze(model, QLORA, torch.bfloat16)
    after = model.state_dict()
    gone = {name for name in before if name not in after}
    assert gone == {name for name in before if ".layers." in name and before[name].ndim == 2}
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - gone)


@pytest.mark.parametrize(
    ("base", "dtype"), [("auto", torch.bfloat16), ("bf16", torch.float32), ("fp32", torch.bfloat16)]
)
def test_matrices_are_held_in_the_type_that_is_asked_for(base, dtype):
    model, plain = made(), made()
    freeze(model, AdaptConfig(base_dtype=base), dtype)
    held = torch.float32 if base == "fp32" else torch.bfloat16
    up = model.decoder.layers["1"].mlp.up
    assert (
        up.weight.dtype == held
        and not up.weight.requires_grad
        and type(up) is (Linear if base == "auto" else CastLinear)
    )
    assert model.embed.tokens.weight.dtype == torch.float32 == model.decoder.layers["1"].mlp_norm.weight.dtype
    if dtype == torch.float32:
        torch.testing.assert_close(hidden(model), hidden(plain), rtol=0.1, atol=0.1)
        hidden(model).sum().backward()
        torch.testing.assert_close(up.dense().float(), plain.decoder.layers["1"].mlp.up.weight, rtol=2**-8, atol=0)
    save = model.state_dict()
    assert save.keys() == plain.state_dict().keys()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "t5", "bert"])
def test_a_file_in_16_bits_learns_in_arithmetic_of_32_and_beside_a_trained_embedding(name):
    for train, dtype in ((), torch.float32), (("embed",), torch.bfloat16), (("norm",), torch.bfloat16):
        for method in ("lora", "qlora"):
            model, config = made(name).bfloat16(), AdaptConfig(method=method, train=train)
            freeze(model, config, dtype)
            adapt(model, config, 0)
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
                hidden(model.train()).float().square().sum().backward()
            for name_, parameter in model.named_parameters():
                assert (parameter.grad is not None) == (parameter.requires_grad and not name_.startswith("head"))
                assert not parameter.requires_grad or parameter.dtype == torch.float32


def test_what_is_trained_as_it_is_is_neither_packed_nor_left_in_16_bits():
    model = made("bert", labels=("no", "yes"), classifier="sequence").bfloat16()
    freeze(model, AdaptConfig(method="qlora", train=("mlp.up", "decoder")), torch.bfloat16)
    layer = model.encoder.layers["0"]
    assert layer.mlp.up.weight.dtype == layer.mlp.up.bias.dtype == torch.float32
    assert model.classifier.out.weight.dtype == torch.float32 and model.pooler.weight.dtype == torch.bfloat16
    assert isinstance(layer.mlp.down, Nf4Linear) and not isinstance(layer.mlp.up, Nf4Linear)


def test_a_method_that_writes_a_checkpoint_changes_nothing():
    model, before = made(), made().state_dict()
    for method in ("full", "bitfit", "last-n"):
        freeze(model, AdaptConfig(method=method), torch.bfloat16)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_adapters_of_a_matrix_stay_with_it():
    model = made()
    out = model.decoder.layers["0"].attention.out
    out.adapter = torch.nn.Identity()
    freeze(model, QLORA, torch.float32)
    assert model.decoder.layers["0"].attention.out.adapter is out.adapter and out.adapter is not None


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_pages_of_a_packed_files_weights_are_given_back_and_the_rest_still_reads(tmp_path, name):
    """GPT-2 holds q, k and v as columns of one tensor, which all of them have to be done with."""
    big = {"width": 256, "head_dim": 64, "ff": 1024, "kv_heads": 4, "vocab": 211}
    config = VARIANTS[name].resized(**big)
    save_checkpoint(tmp_path, initialise(Transformer(config, "cpu", torch.float32), 0), config)
    model, plain = Checkpoint.open(tmp_path).model(), Checkpoint.open(tmp_path).model(writable=True)
    config = AdaptConfig(method="qlora", train=("layers.0.attention.q",))
    weights = [layer.attention.q.weight for layer in model.layers]
    assert all(weight.sum() and resident(weight) for weight in weights)
    freeze(model, config, torch.float32)
    freeze(plain, config, torch.float32)
    assert resident(weights[1]) == 0 < resident(model.embed.tokens.weight)
    torch.testing.assert_close(hidden(model), hidden(plain), rtol=1e-4, atol=1e-5)  # one is a view with other strides
    assert weights[1].sum()  # whoever has kept a weight reads the file again


def resident(tensor):
    """How many of the pages that lie wholly inside a tensor's memory this process has."""
    storage = tensor.untyped_storage()
    first, last = -(-storage.data_ptr() // PAGESIZE), (storage.data_ptr() + storage.nbytes()) // PAGESIZE
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(8 * first)
        entries = file.read(8 * (last - first))
    return sum(entry >> 63 for (entry,) in struct.iter_unpack("<Q", entries))
