"""What goes on with a model on plain text: after pruning, while it is rounded, or under a teacher."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from torch import nn

from llmctl.core.data.batch import Batch, TrainingOrder, in_order
from llmctl.core.data.old import read_old, rows_of
from llmctl.core.device import Place
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.core.train.loop import Objective
from llmctl.core.train.objectives import tokens_loss
from llmctl.core.train.optim import optimizers
from llmctl.core.train.run import Probe, Run
from llmctl.core.train.wrap import compile_layers, recompute
from llmctl.spec.plan import TrainPlan
from llmctl.spec.tokens import is_tokens
from llmctl.spec.train import TrainConfig, Watch


def prepare(
    directory: Path,
    model: Transformer,
    trained: nn.Module | None,
    path: str,
    tokenizer: Tokenizer,
    plan: TrainPlan,
    config: TrainConfig,
    watch: Watch,
    place: Place,
    write: Callable[[Path], None],
    seed: int,
    objective: Objective = tokens_loss,
    probes: dict[str, Probe] | None = None,
) -> Run:
    """A run ready to go, or to go on from what an interrupted one left in `directory`.

    Args:
        directory: where it is made; it exists.
        model: to train, its trained parameters float32.
        trained: holds all that is trained, where that is more than the model (projections beside it); None: the model.
        path: text, JSON lines, CSV, parquet, or a directory of tokens, whose held-out part is evaluated on.
        tokenizer: the model's.
        plan: the sizes of the run.
        config: options of the loop.
        watch: options of evaluation and records.
        place: device and precision.
        write: writes the model as a checkpoint into a directory.
        seed: of the order of the text and of what is hidden from an encoder.
        objective: what is learned; it is given `trained`, and while evaluating makes sums of the same kind.
        probes: what else is measured before and after.
    """
    whole = model if trained is None else trained
    whole.train()
    made = optimizers(whole, config)
    if config.recompute:
        recompute(model)
    if config.compile:
        compile_layers(model)
    build = rows_of(model.config, tokenizer, seed)
    order = TrainingOrder(read_old(path, tokenizer, "train"), plan.block, plan.rows, seed, build)
    heldout: Callable[[], Iterator[Batch]] | None = None
    if is_tokens(path) and watch.eval_tokens > 1:
        heldout = partial(
            in_order, read_old(path, tokenizer, "heldout"), plan.block, plan.micro, watch.eval_tokens, build
        )
    return Run(
        directory=directory,
        model=whole,
        optimizers=made,
        config=config,
        objective=objective,
        place=place,
        steps=plan.steps,
        batches=lambda step: order.batches(step, plan.micro),
        heldout=heldout,
        bytes_per_token=None,
        eval_every=watch.every(plan.steps),
        save_every=watch.save_every,
        write=write,
        flops_per_token=plan.flops_per_token,
        seed=seed,
        probes=probes or {},
    )
