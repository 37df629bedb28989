"""RMS norm with its gradient written out."""

import torch
import torch.nn.functional as F

from llmctl.core.model.rms import rms_norm_trained


def test_value_and_gradients_are_those_of_torch_and_of_finite_differences():
    torch.manual_seed(0)
    x = torch.randn(3, 5, 16, requires_grad=True)
    weight = torch.randn(16, requires_grad=True)
    ours, plain = rms_norm_trained(x, weight, 1e-5), F.rms_norm(x, (16,), weight, 1e-5)
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-6)
    pull = torch.randn_like(plain)
    for got, wanted in zip(
        torch.autograd.grad(ours, (x, weight), pull), torch.autograd.grad(plain, (x, weight), pull), strict=True
    ):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    double = (x.detach().double().requires_grad_(), weight.detach().double().requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: rms_norm_trained(a, b, 1e-5), double)
