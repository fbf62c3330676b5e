"""Holds the sources to the architecture: who may include whom, and how long a file may be."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "python/onerec_engine"

CXX_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}

# Layer -> the layers it may include.
CXX_LAYERS = {
    "core": {"core"},
    "ops": {"core", "ops"},
    "backends": {"core", "ops", "backends"},
    "model": {"core", "ops", "model"},
    "engine": {"core", "ops", "model", "engine"},
    "bindings": {"core", "ops", "model", "engine", "bindings"},
}
# The composition root may take this one file of the backends.
BACKEND_ENTRANCE = "backends/registry.h"
# Headers that CMake configures into the build folder.
GENERATED = {"core/build_info.h"}

# The standard library is what has no folder and no suffix; <stdint.h> and <unistd.h> are not it.
STD_HEADER = re.compile(r"[a-z_]+$")
CUDA_HEADER = re.compile(r"(cuda|cublas|cutlass|cute|cub|thrust|nv|cooperative_groups|mma\.h|device_launch|curand)")
PYTHON_HEADER = re.compile(r"(pybind11/|Python\.h$)")

# The package from the ground up: a module imports from its own layer and from the layers before it.
PYTHON_LAYERS = (
    # foundations
    "_C _arrays _files _json _native _regular_file _safetensors _schedule _usage errors float_formats",
    # what a model is
    "_config_checks config generation_config pathway",
    # what lies on disk
    "_trie_index assets catalogue checkpoint quant schemes weights",
    # the life of a batch
    "_columns _expansion _loading _memory _read_arrays _read_requests _scoring batching engine request result",
    # beside the engine
    "__init__ evaluation reference",
    # programs
    "cli serving",
)
PYTHON_RANKS = {name: rank for rank, layer in enumerate(PYTHON_LAYERS) for name in layer.split()}
MAY_IMPORT_TORCH = "reference"

MAX_LINES = {".cuh": 600}
DEFAULT_MAX_LINES = 500
LINE_RULE_FOLDERS = ("csrc", "python", "tests", "examples", "profiling", "cmake")
LINE_RULE_SUFFIXES = CXX_SUFFIXES | {".py", ".cmake"}

INCLUDE = re.compile(r'^\s*#\s*include\s*(?P<open>[<"])(?P<path>[^>"]+)[>"]', re.MULTILINE)


def cxx_files() -> list[Path]:
    return sorted(path for path in CSRC.rglob("*") if path.suffix in CXX_SUFFIXES)


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def includes(path: Path) -> Iterator[tuple[bool, str]]:
    """Yields (is it in quotes, path) for every #include."""
    for match in INCLUDE.finditer(path.read_text(encoding="utf-8")):
        yield match["open"] == '"', match["path"]


def backend_of(path: Path) -> str | None:
    """`cpu` for csrc/backends/cpu/x.h; None for what belongs to no single backend."""
    parts = path.relative_to(CSRC).parts
    return parts[1] if parts[0] == "backends" and len(parts) > 2 else None


def wrong_quoted_include(source: Path, target: str) -> str | None:
    """Judges `#include "target"` in a file of csrc/; returns what is wrong with it."""
    layer = source.relative_to(CSRC).parts[0]
    if target not in GENERATED and not (CSRC / target).is_file():
        return "names no file under csrc/ (includes are written from there)"
    if layer == "bindings" and target == BACKEND_ENTRANCE:
        return None
    if Path(target).parts[0] not in CXX_LAYERS[layer]:
        return f"{layer}/ may include {', '.join(sorted(CXX_LAYERS[layer]))} only"
    # The backends know nothing of one another; registry.cpp beside their folders knows them all.
    here, there = backend_of(source), backend_of(CSRC / target)
    if here and there and here != there:
        return f"backends/{here} may not include another backend"
    return None


def wrong_system_include(source: Path, target: str) -> str | None:
    """Judges `#include <target>` in a file of csrc/; returns what is wrong with it."""
    parts = source.relative_to(CSRC).parts
    if CUDA_HEADER.match(target):
        return None if parts[:2] == ("backends", "cuda") else "only backends/cuda may include CUDA headers"
    if PYTHON_HEADER.match(target):
        return None if parts[0] == "bindings" else "only bindings/ may include Python headers"
    if parts[0] not in ("backends", "bindings") and not STD_HEADER.match(target):
        return f"{parts[0]}/ may include the standard library only"
    return None


def wrong_includes(source: Path) -> list[str]:
    problems = []
    for quoted, target in includes(source):
        wrong = wrong_quoted_include(source, target) if quoted else wrong_system_include(source, target)
        if wrong:
            problems.append(f"{relative(source)} includes {target}: {wrong}")
        elif "kernels" in source.parts and quoted and "/kernels/" not in target:
            problems.append(f"{relative(source)} includes {target}: kernels include kernels and CUTLASS only")
    return problems


@pytest.mark.parametrize("source", cxx_files(), ids=relative)
def test_cxx_includes(source: Path) -> None:
    assert source.relative_to(CSRC).parts[0] in CXX_LAYERS, "a new folder of csrc/ needs a line in CXX_LAYERS"
    problems = wrong_includes(source)
    assert not problems, "\n".join(problems)


def module_name(path: Path) -> str:
    """`config` for config.py, `reference` for anything in reference/, `__init__` for the package itself."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_module(name: str) -> bool:
    return name == "_C" or (PACKAGE / f"{name}.py").is_file() or (PACKAGE / name).is_dir()


def import_statements(source: Path, *, run_on_import: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yields all import statements of a file, or only those that run when the module itself is imported."""
    pending: list[ast.AST] = list(ast.parse(source.read_text(encoding="utf-8")).body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif run_on_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
        elif not run_on_import or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            pending.extend(ast.iter_child_nodes(node))


def imported_paths(source: Path, *, run_on_import: bool) -> Iterator[list[str]]:
    """Yields what the file imports as dotted paths taken apart; a relative import as an absolute one."""
    for node in import_statements(source, run_on_import=run_on_import):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
            continue
        base = node.module.split(".") if node.module else []
        if node.level:
            folders = source.relative_to(PACKAGE.parent).parts
            base = [*folders[: len(folders) - node.level], *base]
        yield from ([*base, alias.name] for alias in node.names)


def imported_modules(source: Path, *, run_on_import: bool = False) -> set[str]:
    """The modules of this package that the file imports, `__init__` for the package itself."""
    return {
        path[1] if len(path) > 1 and is_module(path[1]) else "__init__"
        for path in imported_paths(source, run_on_import=run_on_import)
        if path[0] == PACKAGE.name
    }


@pytest.mark.parametrize("source", python_files(), ids=relative)
def test_python_imports(source: Path) -> None:
    ours = module_name(source)
    assert ours in PYTHON_RANKS, "a new module needs a place in PYTHON_LAYERS"
    too_high = {name for name in imported_modules(source) if PYTHON_RANKS.get(name, 99) > PYTHON_RANKS[ours]}
    assert not too_high, f"{relative(source)} imports {sorted(too_high)} of a layer above its own"


@pytest.mark.parametrize("source", python_files(), ids=relative)
def test_torch_is_imported_by_the_reference_model_only(source: Path) -> None:
    packages = {path[0] for path in imported_paths(source, run_on_import=True)}
    assert "torch" not in packages or module_name(source) == MAY_IMPORT_TORCH


def test_python_modules_do_not_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for source in python_files():
        graph.setdefault(module_name(source), set()).update(imported_modules(source, run_on_import=True))
    while graph:
        leaves = {name for name, imports in graph.items() if not (imports & graph.keys()) - {name}}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: imports for name, imports in graph.items() if name not in leaves}


def long_files() -> Iterator[str]:
    for folder in LINE_RULE_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in LINE_RULE_SUFFIXES:
                lines = len(path.read_text(encoding="utf-8").splitlines())
                if lines > MAX_LINES.get(path.suffix, DEFAULT_MAX_LINES):
                    yield f"{relative(path)}: {lines} lines"


def test_no_file_is_too_long() -> None:
    problems = list(long_files())
    assert not problems, "\n".join(problems)
