"""ready: a model that is only read from now on, made as fast as this machine allows."""

from llmctl.core.decode.native.build import Unavailable, wanted
from llmctl.core.decode.native.engine import engine_of
from llmctl.core.decode.settle import settle
from llmctl.core.device import Place
from llmctl.core.model.slots import CHUNK
from llmctl.core.model.transformer import Transformer
from llmctl.errors import Exit, UserError
from llmctl.spec.memory import estimate
from llmctl.spec.setting import Setting


def ready(model: Transformer, stock: bool = False) -> str:
    """Lay out the matrices of a model for the native step, or else for torch's kernels; none is held twice.

    Args:
        stock: for torch's kernels.

    Returns:
        Why the native step is not taken, as the end of a sentence; "" where it is, or where nobody wants it.
    """
    reason = ""
    if not stock and wanted() is not None:
        try:
            engine_of(model)
            return ""
        except Unavailable as error:
            reason = str(error)
    settle(model)
    return reason


def left(model: Transformer, place: Place, budget: int, rows: int) -> int:
    """Bytes of a budget that are left for keys and values beside what is held now and what a pass takes.

    Raises:
        UserError: none are.
    """
    config, whole = model.config, next(model.parameters()).dtype.itemsize
    dtype = "fp32" if whole == 4 else "bf16"
    pass_ = estimate(config, Setting(mode="inference", batch=4, sequence=min(CHUNK, config.context), dtype=dtype))
    held, taken = place.held_memory(), pass_.activations + 4 * 4 * rows * config.vocab
    if held + taken >= budget:
        raise UserError(
            f"--memory is {budget:,} bytes, but {held:,} are held already and a pass takes {taken:,}.",
            "Raise it, or lower --batch-size.",
            Exit.SPACE,
        )
    return budget - held - taken
