"""Compares python/onerec_engine/_C.pyi with the compiled module.

The stub is written by hand, because it says what pybind11's signatures cannot: the types inside arrays, lists and
dictionaries. Names, parameters and defaults must be the module's.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from onerec_engine import _C

STUB = Path(__file__).resolve().parent.parent / "python/onerec_engine/_C.pyi"


def parameters(function: ast.FunctionDef) -> str:
    """The parameters with their defaults and without their types, e.g. `self, config, *, threads`."""
    arguments = function.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        argument.annotation = None
    return ast.unparse(arguments)


def declared(body: list[ast.stmt], prefix: str = "") -> dict[str, str]:
    """Every function, method and property of a stub and its parameters."""
    found: dict[str, str] = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found |= declared(node.body, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            is_property = any(ast.unparse(decorator) == "property" for decorator in node.decorator_list)
            found[prefix + node.name] = "property" if is_property else parameters(node)
    return found


def compiled(owner: Any, prefix: str = "") -> dict[str, str]:
    """The same for a compiled module; the first line of a docstring is the signature."""
    found: dict[str, str] = {}
    for name, value in vars(owner).items():
        if isinstance(value, type):
            found |= compiled(value, f"{name}.")
        elif isinstance(value, property):
            found[prefix + name] = "property"
        elif name == "__init__" and not value.__doc__.startswith("__init__("):
            continue  # a class that Python cannot make
        elif callable(value) and (name == "__init__" or not name.startswith("_")):
            signature = ast.parse(f"def {value.__doc__.splitlines()[0]}: ...").body[0]
            assert isinstance(signature, ast.FunctionDef)
            found[prefix + name] = parameters(signature)
    return found


def test_stub_declares_what_the_module_has() -> None:
    assert declared(ast.parse(STUB.read_text(encoding="utf-8")).body) == compiled(_C)
