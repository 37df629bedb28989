"""build: the native step's library, compiled when it is first wanted and kept for the next time."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from llmctl.core.decode.native.layout import Matrix, Model, Pass
from llmctl.errors import Exit, UserError

SOURCES = ("vectors.h", "products.h", "step.cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp", "-Wno-psabi")
TARGETS = {"best": "-march=native", "avx2": "-march=x86-64-v3"}  # by what LLMCTL_NATIVE may name
OFF, ON = ("0", "no", "off", "false"), ("", "1", "yes", "on", "true")
PATIENCE = 300  # seconds that a compiler may take


class Unavailable(Exception):
    """There is no native step; the message says why, as the end of a sentence."""


def wanted() -> str | None:
    """Which of TARGETS the environment asks for, or None where it wants none.

    Raises:
        UserError: it asks for something else.
    """
    named = os.environ.get("LLMCTL_NATIVE", "").strip().lower()
    if named in OFF:
        return None
    if named not in (*ON, *TARGETS):
        raise UserError(
            f"LLMCTL_NATIVE is {named!r}; wanted 0, 1, {' or '.join(TARGETS)}.", "1 is the default.", Exit.USAGE
        )
    return named if named in TARGETS else "best"


@lru_cache
def library(target: str = "best") -> ctypes.CDLL:
    """The compiled library for this machine, built if need be: a few seconds.

    Processes that build it at the same time do not disturb each other. One that was built here before is taken even
    where the compiler is gone.

    Raises:
        Unavailable: no compiler, or what it made cannot be loaded.
    """
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    flags = (*FLAGS, _target(target))
    text = b"".join((Path(__file__).parent / name).read_bytes() for name in SOURCES)
    name = f"step-{_digest(text, flags, _cpu())}"
    for place in (_cache, _temporary):
        try:
            folder = place()
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.stat().st_uid != os.getuid():
                raise PermissionError(f"{folder} is another user's")
            if compiler is None:
                path = next(iter(sorted(folder.glob(f"{name}-*.so"))), None)
            else:
                path = folder / f"{name}-{_digest(_identity(compiler))}.so"
            if path is None:
                continue
            return _loaded(path) if path.exists() else _built(compiler, flags, path)
        except OSError as error:
            problem = error
    if compiler is None:
        raise Unavailable("there is no C++ compiler (c++, g++ or clang++)")
    raise Unavailable(f"its library can be neither kept nor loaded ({problem})")


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _built(compiler: str, flags: tuple[str, ...], path: Path) -> ctypes.CDLL:
    """Compile, and load from the place where it will be found again.

    It is linked without OpenMP of its own, since torch has loaded one, whose threads it then shares; where that one is
    not to be found, with the compiler's.
    """
    source = Path(__file__).parent / SOURCES[-1]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made, unlinked = Path(folder) / "step.so", Path(folder) / "step.o"
        _run(compiler, *(flag for flag in flags if flag != "-shared"), "-c", str(source), "-o", str(unlinked))
        _run(compiler, "-shared", str(unlinked), "-o", str(made))
        try:
            _loaded(made)
        except OSError:
            _run(compiler, "-shared", "-fopenmp", str(unlinked), "-o", str(made))
        os.replace(made, path)
    return _loaded(path)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} took more than {PATIENCE} seconds") from None
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        raise Unavailable(f"{command[0]} could not compile it: {said}")


def _loaded(path: Path) -> ctypes.CDLL:
    """The library, its functions typed.

    Raises:
        OSError: it cannot be loaded.
    """
    found = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    found.llmctl_fast.restype = number
    found.llmctl_workspace.restype = pointer
    found.llmctl_release.argtypes, found.llmctl_release.restype = [pointer], None
    found.llmctl_pass.argtypes = [ctypes.POINTER(Model), ctypes.POINTER(Pass), pointer]
    found.llmctl_pass.restype = number
    found.llmctl_interleave.argtypes = [pointer, number, number, number, pointer, number]
    found.llmctl_interleave.restype = None
    found.llmctl_brief_tables.argtypes = [pointer, number, number, pointer, pointer, number]
    found.llmctl_brief_tables.restype = None
    found.llmctl_brief.argtypes = [pointer, ctypes.POINTER(Matrix), number]
    found.llmctl_brief.restype = None
    found.llmctl_paired.argtypes = [ctypes.POINTER(Matrix), pointer, number]
    found.llmctl_paired.restype = None
    found.llmctl_rows.argtypes = [ctypes.POINTER(Matrix), pointer, number, pointer, number]
    found.llmctl_rows.restype = None
    return found


def _target(target: str) -> str:
    """The option that says for which CPU to compile."""
    return TARGETS[target] if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"


def _cache() -> Path:
    """The user's own.

    Raises:
        FileNotFoundError: a user without a home directory, as containers have them.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if cache.startswith("~"):
        raise FileNotFoundError("there is no home directory")
    return Path(cache) / "llmctl"


def _temporary() -> Path:
    return Path(tempfile.gettempdir()) / f"llmctl-{os.getuid()}"


def _identity(compiler: str) -> tuple[str, int, int]:
    """What tells a compiler from the one that stood in its place before: asking it takes longer."""
    path = os.path.realpath(compiler)
    found = os.stat(path)
    return path, found.st_size, found.st_mtime_ns


def _cpu() -> str:
    """What tells this kind of CPU from others: a home directory may be shared by several."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
