"""Where tensors live and in what precision: device, dtype, threads, the C allocator, the machine's peak rate."""

import ctypes
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch

from llmctl.errors import Exit, UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Dense bf16 FLOP/s by the vendors' data sheets, without sparsity.
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "4090": 165e12,
    "3090": 71e12,
    "T4": 65e12,
}


@dataclass(frozen=True)
class Place:
    """A device and the precision of arithmetic on it."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager:
        """Matrix products in `dtype` while weights stay as they are; nothing where dtype is fp32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_memory(self) -> int:
        """The most memory this process has held, in bytes: of the GPU, or resident on the CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def held_memory(self) -> int:
        """The memory that this process holds now, in bytes; on a CPU without /proc, the most that it has held."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        try:
            with open("/proc/self/statm", encoding="ascii") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            return self.peak_memory()

    def total_memory(self) -> int:
        """Memory of the device, in bytes."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_properties(self.device).total_memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def peak_flops(self) -> float:
        """The device's peak rate in FLOP/s: the data sheet's of a known GPU, else what a matrix product reaches."""
        if self.device.type == "cuda" and self.dtype != torch.float32:
            name = torch.cuda.get_device_name(self.device)
            for part, peak in PEAKS.items():
                if part in name:
                    return peak
        return _measured_flops(self)


@lru_cache
def _measured_flops(place: Place) -> float:
    side = 2048 if place.device.type == "cpu" else 8192
    a = torch.ones(side, side, device=place.device, dtype=place.dtype)
    best = float("inf")
    for _ in range(3):
        place.synchronize()
        start = time.perf_counter()
        a @ a
        place.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def pick(device: str = "auto", dtype: str = "auto", threads: int = 0, sparing: bool = False) -> Place:
    """The device and dtype that `--device --dtype --threads` ask for; sets up the process for it.

    Args:
        device: auto, cpu, cuda, cuda:N or mps; auto takes a GPU when there is one.
        dtype: auto, fp32, bf16 or fp16; auto is bf16 where the device multiplies it fast, else fp32.
        threads: CPU threads; 0 leaves one for each core.
        sparing: on a CPU, memory counts for more than a few page faults.

    Raises:
        UserError: the device is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device is {device}, but torch sees no CUDA GPU.", "Use --device cpu.", Exit.USAGE)
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device is mps, but torch sees no Apple GPU.", "Use --device cpu.", Exit.USAGE)
    where = torch.device(device)
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device is {device}, but there are {torch.cuda.device_count()} GPUs, numbered from 0.", code=Exit.USAGE
        )
    if threads:
        torch.set_num_threads(threads)
    if where.type == "cpu":
        keep_freed_memory(1 << (20 if sparing else 30))
    return Place(where, DTYPES[dtype] if dtype != "auto" else torch.bfloat16 if fast_bf16(where) else torch.float32)


def fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 faster than fp32: Ampere and later, AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def keep_freed_memory(largest: int) -> None:
    """Have glibc keep freed blocks for the next allocation, instead of handing each back to the kernel.

    By default malloc maps every block over 32 MiB anew and unmaps it when freed, so that each large
    activation is paid for in page faults; measured, a training step on the CPU takes about half the
    time without them. The process keeps its peak size until it ends. Other C libraries are left alone.

    Args:
        largest: bytes; blocks of that size or more are given back all the same, so that holes between them take
            no memory: of a model in 4 bits they are a third of all.

    Source: mallopt(3): M_MMAP_THRESHOLD (-3), M_TRIM_THRESHOLD (-1), M_MMAP_MAX (-4).
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(-3, largest)
    mallopt(-1, (1 << 31) - 1)
    if largest >= 1 << 30:
        mallopt(-4, 0)
