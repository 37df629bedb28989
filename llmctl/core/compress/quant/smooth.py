"""smoothquant: large inputs are made smaller before they are rounded, and the weights that meet them larger."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmctl.core.compress.quant.fold import Fold, Given
from llmctl.spec.calibration import Rounding
from llmctl.spec.quant import Grid


def smoothing(
    at: Fold, matrices: Sequence[tuple[Tensor, Grid]], given: Given, rounding: Rounding, dtype: torch.dtype
) -> Tensor:
    """Factors (I,) of the columns of matrices that are given the same, by which their inputs are divided.

    Args:
        matrices: (O, I) float32 each, and its grid.

    Source: Xiao et al., arXiv:2211.10438, equation 4.
    """
    largest = torch.stack([weight.abs().amax(0) for weight, _ in matrices]).amax(0)
    scale = given.largest.pow(rounding.migration) / largest.clamp(min=1e-5).pow(1 - rounding.migration)
    return torch.where(given.largest > 0, scale, torch.ones_like(scale)).clamp(min=1e-5)
