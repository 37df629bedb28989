"""linear: products with packed weights are those of the matrix that the codes stand for."""

import copy

import pytest
import torch
import torch.nn.functional as F

from llmctl.core.compress.quant.grid import dense, quantise
from llmctl.core.compress.quant.kernels import LIFT, MOST, Nibbles, block_rows, bytes_are_fast
from llmctl.core.compress.quant.linear import BytesLinear, CodedLinear, FloatsLinear, NibblesLinear, PlanesLinear, held
from llmctl.core.compress.quant.quicken import quicken
from llmctl.core.decode.generate import generate
from llmctl.core.model.init import initialise
from llmctl.core.model.layers import Linear
from llmctl.core.model.transformer import Transformer
from llmctl.spec.model import ModelConfig
from llmctl.spec.quant import Grid
from llmctl.spec.sample import Sampling

INT8, INT4 = Grid("int", 8), Grid("int", 4, 128)
GRIDS = {
    "int8": INT8,
    "int8 with zeros": Grid("int", 8, symmetric=False),
    "int8 in groups": Grid("int", 8, 64),
    "int4": INT4,
    "int4 with zeros": Grid("int", 4, 32, symmetric=False),
    "int4 by row": Grid("int", 4),
    "int3": Grid("int", 3, 128),
    "int2": Grid("int", 2, 64),
    "w8a8": Grid("int", 8, dynamic=True),
    "fp8": Grid("fp8", 8),
    "fp8 of both": Grid("fp8", 8, dynamic=True),
    "nf4": Grid("nf4", 4, 64),
    "mxfp4": Grid("mxfp4", 4, 32),
}
SHAPES = [(80, 256), (33, 256), (144, 384)]  # rows that are no multiple of 16 have no kernel of 4 bits
CLOSE = {torch.float32: 3e-6, torch.bfloat16: 6e-3, torch.float16: 8e-4}  # of a product, relative: its own rounding
BY_BF16 = 6e-3  # where arithmetic is in bf16 whatever the dtype


def made(grid, shape, dtype, bias=True):
    source = Linear(shape[1], shape[0], bias=bias)
    with torch.no_grad():
        source.weight.normal_(0, 0.02)
        if bias:
            source.bias.normal_()
    source = source.to(dtype)
    codes = quantise(source.weight.detach(), grid, dtype)
    return source, codes, held(source, codes, grid, dtype)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("name", GRIDS)
def test_products_of_any_number_of_rows_are_those_of_the_dense_matrix(name, dtype):
    grid, generator = GRIDS[name], torch.Generator().manual_seed(0)
    for shape in SHAPES:
        source, codes, linear = made(grid, shape, dtype)
        exact = dense(codes, grid, torch.float32, shape).double()
        for one, other in zip(linear.codes(), codes, strict=True):
            assert one is other or torch.equal(bits(one), bits(other))
        assert torch.equal(linear.dense(), dense(codes, grid, dtype, shape))
        for rows in (1, 3, 40, 130):
            x = torch.randn(rows, shape[1], generator=generator)
            x[:, 5] *= 30  # an outlier
            x[rows // 2] *= 100  # a large token does not coarsen the others
            x = x.to(dtype)
            with torch.no_grad():
                wanted = linear.rounded(x).double() @ exact.t() + source.bias.double()
                error = ((linear(x).double() - wanted).norm(dim=1) / wanted.norm(dim=1)).max().item()
            loose = isinstance(linear, NibblesLinear | PlanesLinear) or (grid.dynamic and dtype == torch.bfloat16)
            assert error < (2 * BY_BF16 if loose else CLOSE[dtype]), (shape, rows)


def bits(x):
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x


def test_the_kernel_is_chosen_by_shape_and_grid_and_shapes_that_crash_it_have_none():
    """`_weight_int8pack_mm` ends the process or gives wrong numbers where columns are no multiple of 16."""
    kind = {
        (name, shape): type(made(GRIDS[name], shape, torch.bfloat16)[2])
        for name in ("int8", "int4", "int4 by row", "w8a8", "int8 in groups", "mxfp4", "fp8", "nf4")
        for shape in ((64, 256), (33, 256))
    }
    four = NibblesLinear if block_rows() else CodedLinear
    eight = BytesLinear if bytes_are_fast() else CodedLinear
    assert kind["int4", (64, 256)] is kind["int4 by row", (64, 256)] is four
    assert kind["int4", (33, 256)] is CodedLinear
    assert kind["int8", (64, 256)] is kind["int8", (33, 256)] is kind["w8a8", (33, 256)] is eight
    planes = PlanesLinear if block_rows() else CodedLinear
    assert kind["int8 in groups", (64, 256)] is kind["mxfp4", (64, 256)] is planes
    assert kind["fp8", (33, 256)] is FloatsLinear
    assert kind["nf4", (64, 256)] is kind["mxfp4", (33, 256)] is CodedLinear
    for rows, columns in ((64, 24), (64, 63), (33, 65), (1, 1), (7, 13), (100, 2056)):
        _, codes, linear = made(INT8, (rows, columns), torch.bfloat16, bias=False)
        x = torch.randn(5, columns).bfloat16()
        wanted = x.double() @ dense(codes, INT8, torch.float64).t()
        with torch.no_grad():
            for count in (1, 5):
                torch.testing.assert_close(linear(x[:count]).double(), wanted[:count], rtol=0.01, atol=0.01)


def test_weights_alone_in_8_bits_leave_activations_far_nearer_than_bf16_does():
    source, codes, linear = made(INT8, (256, 512), torch.float32, bias=False)
    x = torch.randn(64, 512)
    x[:, 7] *= 50  # what ruins activations of one byte
    exact = x.double() @ dense(codes, INT8, torch.float64).t()

    def error(y):
        return ((y.double() - exact).norm() / exact.norm()).item()

    with torch.no_grad():
        whole, one = error(linear(x)), error(held(source, codes, GRIDS["w8a8"], torch.float32)(x))
        two = error(linear(x.bfloat16()).float())
        rounded = error(F.linear(x.bfloat16(), linear.dense().bfloat16()))
    assert whole < 3e-6 and two < rounded < one / 3


def test_every_whole_number_of_a_token_fits_its_bytes():
    for parts, most in MOST.items():
        ends = torch.tensor([-most, -1.0, 0.0, 1.0, most]) + torch.tensor(LIFT[parts])
        assert ends.dtype == torch.float32 and ends[0] >= 0 and ends[-1] < 256**parts
        assert torch.equal(ends.diff(), torch.tensor([most - 1.0, 1.0, 1.0, most - 1.0]))


def test_zeros_tiny_numbers_and_nan_are_what_they_are():
    _, _, linear = made(INT8, (32, 64), torch.float32, bias=False)
    with torch.no_grad():
        for rows in (1, 3):
            x = torch.zeros(rows, 64)
            assert not linear(x).any() and not linear(x + 1e-38).isnan().any()
            x[0, 3] = float("nan")
            assert linear(x)[0].isnan().all()
            if rows > 1:
                assert not linear(x)[1:].isnan().any()


def test_4_bits_unpack_to_what_was_packed_and_to_the_transposed_matrix():
    assert block_rows() in (64, 32), "torch lays 4 bits out in a way that is not known here"
    numbers = torch.randint(-8, 8, (208, 128), dtype=torch.int8)
    scale, shift = torch.rand(4, 208), torch.randn(4, 208)
    matrix = Nibbles.of(numbers, torch.stack((scale, shift), -1).bfloat16(), 32)
    assert torch.equal(matrix.numbers, numbers)
    scale, shift = (x.bfloat16().repeat_interleave(32, 0) for x in (scale, shift))  # (I, O)
    assert torch.equal(matrix.dense(), numbers.t() * scale + shift)


@pytest.mark.parametrize("name", ["int8", "int4", "w8a8", "nf4"])
def test_gradients_of_inputs_and_biases_are_those_of_the_dense_matrix(name):
    source, codes, linear = made(GRIDS[name], (64, 128), torch.float32)
    source.bias.requires_grad_()
    x = torch.randn(2, 3, 128, requires_grad=True)
    linear(x).square().sum().backward()
    found, x.grad = x.grad, None
    twin = (linear.rounded(x) @ dense(codes, GRIDS[name], torch.float32, (64, 128)).t() + source.bias).square().sum()
    twin.backward()
    torch.testing.assert_close(found, x.grad, rtol=1e-4, atol=1e-4)


def test_autocast_decides_the_dtype_and_copies_compute_the_same():
    for name in ("int8", "int4"):
        _, _, linear = made(GRIDS[name], (64, 128), torch.float32)
        x = torch.randn(2, 128)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert linear(x).dtype == torch.bfloat16
            assert torch.equal(copy.deepcopy(linear)(x), linear(x))


def quantised(grid, dtype, **changes):
    shape = {
        "vocab": 61,
        "width": 128,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 32,
        "ff": 256,
        "context": 64,
    }
    config = ModelConfig(**shape | changes, init_std=0.2, tie=False)
    model = initialise(Transformer(config, "cpu", torch.float32), 0).to(dtype).eval()
    for path, module in list(model.named_modules()):
        if isinstance(module, Linear) and ".layers." in path:
            owner, _, name = path.rpartition(".")
            codes = quantise(module.weight.detach(), grid, dtype)
            setattr(model.get_submodule(owner), name, held(module, codes, grid, dtype))
    return model


def written(model, tokens=12):
    return [token.id for token in generate(model, [[3, 5, 8]], Sampling(max_tokens=tokens, temperature=0), [0])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["int8", "int8 with zeros", "int4", "w8a8"])
@torch.no_grad()
def test_a_model_made_quick_computes_what_it_did(name, dtype):
    for changes in ({}, {"qkv_bias": True, "mlp_bias": True}):
        model, plain = (quantised(GRIDS[name], dtype, **changes) for _ in range(2))
        quicken(model)
        quicken(model)
        assert model.layers[0].attention.joint is not None and model.layers[1].mlp.joint is not None
        tokens = torch.tensor([[3, 5, 8, 13, 21, 34, 55]])
        for row in (tokens, tokens[:, :1]):
            made, wanted = (one.head(one(row)).float() for one in (model, plain))
            torch.testing.assert_close(made, wanted, rtol=0, atol=1e-4 if dtype == torch.float32 else 0.15)
        up, other = model.layers[0].mlp.up, plain.layers[0].mlp.up
        assert torch.equal(up.codes().codes, other.codes().codes) and torch.equal(up.dense(), other.dense())
        assert written(copy.deepcopy(model)) == written(model)


@torch.no_grad()
def test_an_adapter_or_a_hook_on_one_of_the_joined_matrices_is_heard():
    model = quantised(INT4, torch.float32)
    before = written(model)
    up, seen = model.layers[0].mlp.up, []
    hook = up.register_forward_hook(lambda module, given, made: seen.append(made))
    assert written(model) == before and seen
    hook.remove()
    up.adapter = Louder()
    assert written(model) != before


class Louder(torch.nn.Module):
    def forward(self, linear, x):
        return 3 * linear.plain(x)


@torch.no_grad()
def test_a_head_that_changes_after_it_was_packed_is_packed_anew():
    model = quantised(INT4, torch.bfloat16)
    written(model)
    model.head.weight.data.neg_()
    model.head.weight.add_(0)  # a step of training counts up the version
    fresh = quantised(INT4, torch.bfloat16)
    fresh.head.weight.copy_(model.head.weight)
    assert written(model) == written(fresh)
