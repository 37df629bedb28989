"""Sample data that every machine has: the running Python's documentation, its source files, summaries to learn."""

import ast
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import pkgutil
import re
import sys
import sysconfig
import warnings
import zipimport
from collections.abc import Iterator
from typing import NamedTuple

from llmctl.errors import UserError
from llmctl.spec.data import Corpus, Half

TEST_SHARE = 0.1
LONG = 120  # characters that the body of a docstring has, to be worth summarising
SKIPPED = frozenset(["test", "tests", "idle_test", "_bundled", "pydoc_data", "turtledemo", "antigravity", "this"])

# Modules in C, which have no source to parse; importing them does nothing else.
COMPILED = """
    _asyncio _bisect _bz2 _codecs _collections _contextvars _csv _ctypes _datetime _decimal _elementtree _functools
    _hashlib _heapq _imp _io _json _lzma _operator _pickle _posixsubprocess _queue _random _signal _socket _sqlite3
    _sre _ssl _stat _string _struct _symtable _thread _tracemalloc _warnings _weakref array atexit binascii builtins
    cmath errno faulthandler fcntl gc grp itertools marshal math mmap posix pwd pyexpat resource select
    sys syslog termios time unicodedata zlib
""".split()  # noqa: SIM905


class Doc(NamedTuple):
    """A docstring and what it is of.

    Attributes:
        name: as code names it: "json.decoder.JSONDecoder.decode".
        kind: "module", "class" or "function".
        signature: of a function its parameters, of a class its bases: "(self, s)".
        text: the docstring, its indentation removed; may be "" for a class whose methods have some.
        parts: of a class, its methods and classes.
    """

    name: str
    kind: str
    signature: str
    text: str
    parts: tuple["Doc", ...] = ()


def documents(kind: Corpus, split: Half | None = None) -> Iterator[dict[str, str]]:
    """The records of a corpus, the same for the same Python, each text once.

    Args:
        kind: docs and source give {"text", "source", "kind"}, summaries {"prompt", "completion", "source"}.
        split: train or test alone (a tenth); chosen by a hash of the bare name of the function, class or module,
            so that functions of one name, which often share their text, are never in both. None: all.

    Raises:
        UserError: this Python was installed without the sources that are asked for.
    """
    seen: set[str] = set()
    for record in {"docs": _docs, "source": _sources, "summaries": _summaries}[kind]():
        text = record.get("prompt", record.get("text", ""))
        if text in seen:
            continue
        seen.add(text)
        if split is None or split == _split(record["source"]):
            yield record
    if not seen:
        raise UserError(
            f"This Python ({sys.executable}) has no standard library sources, so corpus {kind} is empty.",
            "Install them (on Debian: libpython3-stdlib), or use another Python.",
        )


def _split(source: str) -> Half:
    bare = source.rpartition(".")[2]
    hashed = int.from_bytes(hashlib.blake2b(bare.encode(), digest_size=8).digest(), "big")
    return "test" if hashed < TEST_SHARE * 2**64 else "train"


def _docs() -> Iterator[dict[str, str]]:
    """Topics of the language, then docstrings of modules in C, then of those in Python."""
    topics = _topics()
    for name in sorted(topics):
        yield {"text": topics[name].strip() + "\n", "source": f"pydoc.{name}", "kind": "topic"}
    for doc in _all_docs():
        text = _rendered(doc)
        if text:
            yield {"text": text + "\n", "source": doc.name, "kind": doc.kind}


def _sources() -> Iterator[dict[str, str]]:
    for name, source in _modules():
        if source.strip():
            yield {"text": source, "source": name, "kind": "source"}


def _summaries() -> Iterator[dict[str, str]]:
    """Docstrings of functions and classes that begin with one line and a blank one, as PEP 257 asks."""
    for doc in _flat(_all_docs()):
        summary, blank, body = (doc.text + "\n\n").partition("\n\n")
        summary, body = summary.strip(), body.strip()
        if doc.kind == "module" or "\n" in summary or not 16 <= len(summary) <= 120 or len(body) < LONG:
            continue
        if summary[-1] in ".!" and summary[0].isalpha() and blank:
            yield {"prompt": body, "completion": summary, "source": doc.name}


def _rendered(doc: Doc, depth: int = 0) -> str:
    """A docstring under its name, with those of a class's methods; "" when there is no text at all."""
    parts = [part for part in (_rendered(part, depth + 1) for part in doc.parts) if part]
    if not doc.text and not parts:
        return ""
    name = doc.name.rpartition(".")[2] if depth else doc.name.removeprefix("builtins.")
    head = f"{'class ' if doc.kind == 'class' else ''}{name}{doc.signature}"
    lines = [head, *(f"    {line}" for line in doc.text.splitlines())]
    return "\n\n".join(["\n".join(f"{'    ' * depth}{line}".rstrip() for line in lines), *parts])


def _flat(docs: Iterator[Doc] | tuple[Doc, ...]) -> Iterator[Doc]:
    for doc in docs:
        yield doc
        yield from _flat(doc.parts)


def _all_docs() -> Iterator[Doc]:
    for name in COMPILED:
        yield from _compiled(name)
    for name, source in _modules():
        yield from _parsed(name, source)


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return topics


def _modules() -> Iterator[tuple[str, str]]:
    """Name and source of every module of the standard library but tests; none is imported."""
    paths = [sysconfig.get_path("stdlib"), _compiled_library()]
    paths += [path for path in sys.path if re.search(r"python3\d+\.zip$", path)]  # a library in one file
    yield from _below([module for module in pkgutil.iter_modules(paths) if module.name in sys.stdlib_module_names])


def _below(found: list[pkgutil.ModuleInfo]) -> Iterator[tuple[str, str]]:
    for module in sorted(found, key=lambda module: module.name):
        if module.name.rpartition(".")[2] in SKIPPED:
            continue
        spec = module.module_finder.find_spec(module.name)
        if spec is None or spec.loader is None:
            continue
        source = _source(spec)
        if source is not None:
            yield module.name, source
        if spec.submodule_search_locations:
            yield from _below(list(pkgutil.iter_modules(spec.submodule_search_locations, f"{module.name}.")))


def _source(spec: importlib.machinery.ModuleSpec) -> str | None:
    """The text of a module; None for one in C, or installed without its source."""
    if not isinstance(spec.loader, importlib.machinery.SourceFileLoader | zipimport.zipimporter):
        return None
    try:
        return spec.loader.get_source(spec.name)
    except (ImportError, OSError):  # also what cannot be decoded
        return None


def _parsed(module: str, source: str) -> Iterator[Doc]:
    """The docstrings in a source file: the module's own, then one Doc for each function and class."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    if text := ast.get_docstring(tree):
        yield Doc(module, "module", "", text)
    yield from _members(tree, module)


def _members(tree: ast.AST, within: str) -> Iterator[Doc]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If | ast.Try):
            yield from _members(node, within)
        elif isinstance(node, ast.ClassDef):
            name = f"{within}.{node.name}"
            bases = ", ".join(ast.unparse(base) for base in node.bases)
            text = ast.get_docstring(node) or ""
            yield Doc(name, "class", f"({bases})" if bases else "", text, tuple(_members(node, name)))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
            name = f"{within}.{node.name}"
            yield Doc(name, "function", f"({ast.unparse(node.args)})", text)


def _compiled(name: str) -> Iterator[Doc]:
    """The docstrings of a module in C, as the interpreter holds them; nothing where it does not have the module."""
    spec = importlib.util.find_spec(name)
    origin = "" if spec is None else str(spec.origin)
    if origin != "built-in" and not origin.startswith(_compiled_library()):
        return
    module = importlib.import_module(name)
    if text := _doc_of(module):
        yield Doc(name, "module", "", text)
    for member, value in sorted(vars(module).items()):
        full = f"{name}.{member}"
        if isinstance(value, type) and value.__module__ in (name, "builtins"):
            methods = ((key, method) for key, method in sorted(vars(value).items()) if not key.startswith("__"))
            parts = tuple(part for key, method in methods for part in _function(f"{full}.{key}", method))
            yield Doc(full, "class", _signature(value), _doc_of(value), parts)
        elif inspect.isbuiltin(value):
            yield from _function(full, value)


def _function(name: str, value: object) -> Iterator[Doc]:
    text = _doc_of(value)
    if text and (inspect.isroutine(value) or isinstance(value, classmethod | staticmethod)):
        yield Doc(name, "function", _signature(value), text)


def _compiled_library() -> str:
    """Where this Python keeps its modules in C; a virtual environment names its own directory, which has none."""
    return sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix})


def _doc_of(value: object) -> str:
    text = getattr(value, "__doc__", None)
    return inspect.cleandoc(text) if isinstance(text, str) else ""


def _signature(value: object) -> str:
    """The parameters of a function in C: "(x, /)"; "" when it does not tell them."""
    text = getattr(value, "__text_signature__", None)
    return re.sub(r"\$\w+(, /)?(, )?", "", text) if isinstance(text, str) else ""
