"""Pages: memory of mapped files and of freed tensors, given back to the kernel once it is not needed."""

import ctypes
import mmap
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

_MAPS = Path("/proc/self/maps")


def give_back(read: list[Tensor], used: Iterable[Tensor]) -> None:
    """Let go of the pages of mapped files behind tensors that nobody reads again; others are left alone.

    Without this a model that is packed matrix by matrix would stand in memory twice at the end, as its file and
    packed. Whoever reads such a tensor after all reads the file again. Does nothing where there is no Linux.

    Args:
        read: tensors that are not needed any more.
        used: those that are; what shares memory with one of them is kept.
    """
    if not read or not _MAPS.exists():
        return
    kept = {tensor.untyped_storage().data_ptr() for tensor in used}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in read if t.device.type == "cpu"}
    files = _mapped()
    for start, size in storages.items():
        if start not in kept and any(low <= start and start + size <= high for low, high in files):
            first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
            last = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
            if first < last:
                ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def trim() -> None:
    """Let go of memory that was freed, but lies between what is in use, and so is kept for later by the C library.

    Where large tensors come and go between smaller ones that stay, it comes to several times what is in use.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):  # of glibc alone
        library.malloc_trim(0)


def _mapped() -> list[tuple[int, int]]:
    """Where this process has files in private memory: from, to."""
    found = []
    for line in _MAPS.read_text().splitlines():
        span, rights, _, _, inode, *_ = line.split()
        if inode != "0" and rights.endswith("p"):
            low, high = span.split("-")
            found.append((int(low, 16), int(high, 16)))
    return found
