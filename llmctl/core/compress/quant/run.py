"""run: a quantized checkpoint, written matrix by matrix: casts, roundings without data, and those with it."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmctl.core.checkpoint.carry import carry
from llmctl.core.checkpoint.directory import SHARD_BYTES, Checkpoint
from llmctl.core.checkpoint.names import split
from llmctl.core.checkpoint.quantized import QuantWriter
from llmctl.core.checkpoint.stream import Stream, threaded
from llmctl.core.checkpoint.write import DTYPES, Item, write_shards
from llmctl.core.compress.judge import texts
from llmctl.core.compress.quant.calibrated import calibrated
from llmctl.core.compress.quant.grid import Codes, measured, quantise
from llmctl.core.compress.quant.hqq import hqq
from llmctl.errors import Exit, UserError
from llmctl.spec.calibration import Calibration, Rounding
from llmctl.spec.model import ModelConfig
from llmctl.spec.names import Name
from llmctl.spec.quant_files import Matrix as Written
from llmctl.spec.quant_plan import QuantPlan
from llmctl.spec.safetensors import TensorInfo
from llmctl.spec.sizes import shapes

Told = Callable[[int], None]
Choose = Callable[..., Codes]  # of weight, grid, dtype of the scales, clip

# Methods that need nothing but the matrix itself.
CHOICES: dict[str, Choose] = {"rtn": quantise, "hqq": hqq}


def cast(plan: QuantPlan, directory: Path, progress: Told = lambda done: None) -> None:
    """Write the checkpoint with every tensor in another dtype, one of them in memory at a time.

    Args:
        directory: exists, and is empty.
        progress: told the bytes of the source that are done.

    Raises:
        UserError: a number is too large for the dtype.
    """
    source, done, dtype = Stream(plan.source), 0, DTYPES[plan.cast]

    def item(rule: Name, info: TensorInfo) -> Item:
        def make() -> Tensor:
            nonlocal done
            source.release()
            stored = source.tensor(info)
            made = stored.to(dtype)
            if not made.isfinite().all() and stored.isfinite().all():
                raise UserError(
                    f"{rule.theirs} holds numbers that {plan.quant.scheme} does not reach.",
                    "Use --scheme bf16.",
                    Exit.MISMATCH,
                )
            done += info.bytes
            progress(done)
            return made

        return Item(rule.theirs, info.shape, dtype, make)

    with threaded(1):
        write_shards(directory, [item(rule, info) for rule, info, _ in plan.files.plain], SHARD_BYTES)
    carry(directory, plan.files.json, [plan.source])


def stream(
    plan: QuantPlan, directory: Path, threads: int, device: torch.device, progress: Told = lambda done: None
) -> list[dict[str, Any]]:
    """Write the checkpoint with its matrices rounded, by a method that needs nothing but them.

    In memory are at a time: a tensor of the files for each thread and one more, with what becomes of it.

    Args:
        directory, progress: as for `cast`.
        threads: tensors that are rounded at a time.
        device: where.

    Returns:
        A record of each matrix, as `Matrix.record` has it.
    """
    choose, records, done = CHOICES[plan.quant.method], [], 0

    def work(one: Written) -> list[tuple[str, Codes, float]]:
        return [
            (name, *_measured(choose, name, weight.to(device), plan))
            for name, weight in _parts(one, plan.source, plan.config)
        ]

    with threaded(1), QuantWriter(directory, plan.source, plan.quant, plan.grids) as writer:
        for one, made in zip(plan.files.matrices, _spread(work, plan.files.matrices, threads), strict=True):
            for name, codes, error in made:
                writer.put(name, codes)
                records.append(plan.matrices[name].record(error))
            done += one.info.bytes
            progress(done)
    return records


def with_data(
    plan: QuantPlan,
    directory: Path,
    calibration: Calibration,
    rounding: Rounding,
    device: torch.device,
    dtype: torch.dtype | None,
    progress: Told = lambda done: None,
) -> list[dict[str, Any]]:
    """Write the checkpoint with its matrices rounded by what they are multiplied with.

    Args:
        directory: as for `cast`.
        calibration: the text.
        dtype: of the model meanwhile; None: as it is stored.
        progress: told the matrices that are done.

    Returns:
        A record of each matrix; its error is that of its outputs on the text.
    """
    checkpoint = Checkpoint.open(plan.source)
    rows = texts(
        calibration.calibration, plan.config, checkpoint.tokenizer(), calibration.calibration_tokens, "train",
        calibration.calibration_row,
    )  # fmt: skip
    batches = [batch.to(device) for batch in rows()]
    model = checkpoint.model(device, dtype)
    inner = {name: grid for name, grid in plan.grids.items() if ".layers." in name}
    count = 0
    with QuantWriter(directory, plan.source, plan.quant, plan.grids) as writer:

        def store(name: str, codes: Codes) -> None:
            nonlocal count
            count += 1
            writer.put(name, codes)
            progress(count)

        scales = DTYPES[next(iter(plan.matrices.values())).dtype]
        made = calibrated(
            model, batches, plan.quant, store, writer.plain, grids=inner, rounding=rounding, dtype=scales,
            kept=writer.plain_dtype,
        )  # fmt: skip
        records = [plan.matrices[one["name"]].record(one["relative"]) for one in made]
        for name in plan.matrices.keys() - inner.keys():  # a head
            codes, error = _measured(quantise, name, model.get_submodule(name).weight.detach(), plan)
            store(name, codes)
            records.append(plan.matrices[name].record(error))
    return records


def workers(threads: int, device: torch.device) -> int:
    """How many matrices are rounded at a time, where --threads says so many; 0: one for each core, but not many."""
    return threads or (min(4, torch.get_num_threads()) if device.type == "cpu" else 1)


def _measured(choose: Choose, name: str, weight: Tensor, plan: QuantPlan) -> tuple[Codes, float]:
    """The codes of a matrix, and their error.

    Raises:
        UserError: a weight is not a finite number.
    """
    quant, dtype = plan.quant, DTYPES[plan.matrices[name].dtype]
    codes, error = measured(lambda rows: choose(rows, quant.grid, dtype, quant.clip), weight, quant.grid)
    if not isfinite(error):
        raise UserError(f"{name} of {plan.source} holds numbers that are not finite.", code=Exit.MISMATCH)
    return codes, error


def _parts(one: Written, source: Path, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Our matrices in one tensor of the files, whose pages are given back with the last of them."""
    wanted = shapes(config)
    rows = [wanted[f"{name}.weight"][0] for name in one.ours]
    parts = split(one.rule, Stream(source).tensor(one.info), rows, config.heads)
    yield from ((name, part.contiguous()) for name, part in zip(one.ours, parts, strict=True))


def _spread(work: Callable[[Any], Any], items: Sequence[Any], threads: int) -> Iterator[Any]:
    """What work makes of each item, in their order; threads do it, each on one, and no more ahead than that."""
    if threads <= 1:
        yield from map(work, items)
        return
    todo = iter(items)
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        coming: list[Future] = [pool.submit(work, item) for item in islice(todo, threads)]
        while coming:
            made = coming.pop(0).result()
            coming += [pool.submit(work, item) for item in islice(todo, 1)]
            yield made
