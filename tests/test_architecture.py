"""The house of DESIGN: imports point down, --help is light, every module says what it is, choices are dict literals."""

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "llmctl").rglob("*.py"))
LONGEST = 400  # lines of a module; DESIGN wants 350
STDLIB = sys.stdlib_module_names | {"tomli"}

# Layer -> what its modules may import when they are loaded, besides the standard library. Longest prefix wins.
LOADED = {
    "llmctl": (),
    "llmctl.__main__": (),
    "llmctl.errors": (),
    "llmctl.spec": ("llmctl.errors", "llmctl.spec"),
    "llmctl.flags": ("typer", "llmctl.errors", "llmctl.spec"),
    "llmctl.values": ("typer", "llmctl.errors"),
    "llmctl.program": ("typer", "llmctl.errors", "llmctl.flags", "llmctl.values"),
    "llmctl.completions": ("typer", "llmctl.program", "llmctl.values"),
    "llmctl.console": ("rich", "llmctl.errors", "llmctl.flags", "llmctl.spec"),
    "llmctl.signals": (),
    "llmctl.follow": ("llmctl.errors", "llmctl.console", "llmctl.signals"),
    "llmctl.explained": ("llmctl.errors", "llmctl.console", "llmctl.spec"),
    "llmctl.written": ("llmctl.errors", "llmctl.console", "llmctl.explained"),
    "llmctl.judged": ("llmctl.errors", "llmctl.console", "llmctl.spec"),
    "llmctl.translated": ("llmctl.errors", "llmctl.console", "llmctl.flags", "llmctl.spec"),
    "llmctl.typed": (),
    "llmctl.conversation": ("llmctl.errors", "llmctl.console", "llmctl.signals", "llmctl.spec", "llmctl.typed"),
    "llmctl.records": ("typer", "llmctl.errors", "llmctl.console", "llmctl.flags"),
    "llmctl.commands": ("typer", "llmctl.errors", "llmctl.flags", "llmctl.spec"),
    "llmctl.cli": ("typer", "llmctl.errors", "llmctl.program", "llmctl.commands"),
    "llmctl.core": ("*", "llmctl.errors", "llmctl.spec", "llmctl.core"),
    "llmctl.core.model": ("*", "llmctl.errors", "llmctl.spec", "llmctl.core.model"),
}
# Layer -> what its modules never import, inside functions neither.
NEVER = {
    "llmctl": ("click",),
    "llmctl.spec": ("torch", "numpy", "typer", "rich", "llmctl.core", "llmctl.commands", "llmctl.cli", "llmctl.flags"),
    "llmctl.core": ("typer", "rich", "llmctl.commands", "llmctl.cli", "llmctl.flags", "llmctl.console"),
    "llmctl.commands": ("llmctl.commands", "llmctl.cli"),
    "llmctl.cli": ("llmctl.core", "torch"),
}


# Dispatch by the name of a choice, where the dict lies far from the Literal that the flag shows.
CHOICES = [
    ("llmctl.core.model.layers.ACTIVATIONS", "llmctl.spec.model.Activation"),
    ("llmctl.core.model.norms.NORMS", "llmctl.spec.model.Norm"),
    ("llmctl.core.model.layers.PLACES", "llmctl.spec.model.NormPlace"),
    ("llmctl.core.model.heads.DENSE", "llmctl.spec.model.ClassifierDense"),
    ("llmctl.core.model.layers.ATTENTIONS", "llmctl.spec.model.AttentionKind"),
    ("llmctl.core.model.cache.CACHES", "llmctl.spec.model.AttentionKind"),
    ("llmctl.core.model.position._SCALED", "llmctl.spec.model.RopeKind"),
    ("llmctl.core.train.objectives.OBJECTIVES", "llmctl.spec.noise.Objective"),
    ("llmctl.core.infer.embed.POOLINGS", "llmctl.spec.sentence.Pooling"),
    ("llmctl.core.export.gguf._POOLINGS", "llmctl.spec.sentence.Pooling"),
    ("llmctl.core.infer.embed.ACTIVATIONS", "llmctl.spec.sentence.Activation"),
    ("llmctl.core.decode.bench.ENGINES", "llmctl.spec.bench.Engine"),
    ("llmctl.core.decode.guide.FORMS", "llmctl.spec.guide.Form"),
    ("llmctl.completions.WRITERS", "llmctl.commands.completion.Shell"),
    ("llmctl.core.text.train.TRAINERS", "llmctl.spec.data.Algorithm"),
    ("llmctl.core.text.patterns.PATTERNS", "llmctl.spec.data.Words"),
    ("llmctl.core.data.encode.SAMPLE_BYTES", "llmctl.spec.data.Algorithm"),
    ("llmctl.spec.presets.PRESETS", "llmctl.spec.presets.PresetName"),
    ("llmctl.spec.presets.FRESH", "llmctl.spec.presets.FamilyName"),
]


def name_of(path: Path) -> str:
    """llmctl/spec/model.py -> llmctl.spec.model."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def inside(module: str, layer: str) -> bool:
    """Whether the module is the layer or lies in it."""
    return module == layer or module.startswith(layer + ".")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST, loaded_only: bool) -> Iterator[str]:
    """The modules that are imported: when the module is loaded, or at all. Those for type checkers do not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if loaded_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            packages = [
                alias.name for alias in node.names if (ROOT / node.module.replace(".", "/") / alias.name).exists()
            ]
            modules = [
                alias.name
                for alias in node.names
                if (ROOT / node.module.replace(".", "/") / f"{alias.name}.py").exists()
            ]
            yield from [f"{node.module}.{name}" for name in packages + modules] or [node.module]
        yield from imports(node, loaded_only)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path):
    module, tree = name_of(path), tree_of(path)
    layer = max((layer for layer in LOADED if inside(module, layer)), key=len)
    assert layer != "llmctl" or module == "llmctl", f"{module}: say in LOADED what it may import"
    allowed = LOADED[layer]
    for name in imports(tree, loaded_only=True):
        ours = inside(name, "llmctl")
        version = name == "llmctl"  # all that llmctl/__init__.py holds
        fine = version or any(inside(name, one) for one in allowed) or ("*" in allowed and not ours)
        assert fine or name.partition(".")[0] in STDLIB, f"{module} imports {name} when it is loaded"
    for name in imports(tree, loaded_only=False):
        for layer, banned in NEVER.items():
            if inside(module, layer):
                assert not any(inside(name, one) and name != module for one in banned), f"{module} imports {name}"


@pytest.mark.parametrize("path", [path for path in MODULES if inside(name_of(path), "llmctl.core")], ids=name_of)
def test_core_neither_prints_nor_exits(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "exit", "quit", "sys.exit", "os._exit"), f"line {node.lineno}: {called}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_in_its_first_line_what_it_is_and_is_short(path):
    text = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring, "no docstring"
    first = docstring.splitlines()[0]
    assert 10 < len(first) <= 120 and first[-1] in ".:", first
    assert len(text.splitlines()) <= LONGEST


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_catches_everything_but_the_one_error_boundary(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            reraised = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            broad = caught in ("everything", "Exception", "BaseException") and not reraised
            assert not broad or name_of(path) == "llmctl.cli", f"line {node.lineno}: except {caught}"


@pytest.mark.parametrize("path", [p for p in MODULES if inside(name_of(p), "llmctl.spec")], ids=name_of)
def test_spec_has_no_postponed_annotations(path):
    assert "__future__" not in list(imports(tree_of(path), loaded_only=True))  # flags.expand reads real types


def test_a_command_is_a_function_named_as_its_file_and_is_in_the_table():
    from llmctl.cli import COMMANDS

    files = {path.stem for path in (ROOT / "llmctl" / "commands").glob("*.py")} - {"__init__"}
    assert files == {name.replace("-", "_") for name in COMMANDS}
    for name, function in COMMANDS.items():
        assert function.__name__ == name.replace("-", "_")
        assert function.__module__ == f"llmctl.commands.{function.__name__}"
        assert hasattr(function, "__signature__"), f"{name} lacks @expand"


def test_a_dispatch_by_a_literal_has_exactly_its_choices():
    """Every `NAME: dict[Some, ...] = {...}` whose key type is a Literal has that Literal's values as keys."""
    seen = 0
    for path in MODULES:
        annotated = [
            node
            for node in tree_of(path).body
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation).startswith("dict[")
        ]
        if not annotated:
            continue
        module = importlib.import_module(name_of(path))
        for node in annotated:
            kind = eval(ast.unparse(node.annotation), vars(module))
            key = get_args(kind)[0]
            if get_origin(key) is Literal:
                seen += 1
                table = getattr(module, ast.unparse(node.target))
                assert set(table) == set(get_args(key)), f"{path.name}: {ast.unparse(node.target)}"
    assert seen


@pytest.mark.parametrize(("table", "choices"), CHOICES, ids=[table for table, _ in CHOICES])
def test_a_dispatch_far_from_its_literal_has_exactly_its_choices(table, choices):
    def named(path: str) -> object:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)

    assert set(named(table)) == set(get_args(named(choices)))
