"""Stream: the tensors of a checkpoint one after another, each out of memory again when its turn is over."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from llmctl.core.checkpoint.directory import _mapped, _tensor
from llmctl.spec.safetensors import SparseInfo, TensorInfo


@contextmanager
def threaded(count: int) -> Iterator[None]:
    """So many threads for torch's arithmetic meanwhile; 0: as many as before.

    Sums over blocks that fit a core's cache wait for memory, and threads for each other: where cores are shared, two
    threads took six times as long as one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Stream:
    """Tensors as views of a directory's mapped files.

    Pages of a map that were read stay resident until memory is short; `release` gives them back at once, so that a
    walk over all tensors never holds more than the few that are in use.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._maps: dict[str, mmap.mmap] = {}
        self._used: list[TensorInfo] = []

    def tensor(self, info: TensorInfo) -> Tensor:
        """A tensor of the files, read as it is used; not to be written to."""
        if info.file not in self._maps:
            self._maps[info.file] = _mapped(self.directory / info.file)
        self._used += [info, info.mask] if isinstance(info, SparseInfo) else [info]
        return _tensor(self._maps, info)

    def release(self) -> None:
        """Give back the memory of all tensors had so far; those still in use are read again."""
        for info in self._used:
            start = info.start // mmap.PAGESIZE * mmap.PAGESIZE
            self._maps[info.file].madvise(mmap.MADV_DONTNEED, start, info.end - start)
        self._used.clear()
