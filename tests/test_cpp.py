"""Runs the C++ tests: one pytest item per GoogleTest case, of the normal build and of the build under sanitizers.

What is missing fails: a folder that was not built, or a tests/cpp/test_*.cpp without its executable.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOW_TO_BUILD = "`make test` builds the C++ tests (`make cpp-tests sanitize` builds them alone)."

# Tests that tests/cpp/CMakeLists.txt also links with the matrix library of machines other than x86-64.
OPENBLAS_TESTS = ("test_gemm_openblas", "test_linear_openblas")

SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "strict_string_checks=1:detect_stack_use_after_return=1:check_initialization_order=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = "--sanitize-bin" if metafunc.function is test_sanitized else "--cpp-bin"
    cases = list(_cases(metafunc.config.getoption(option)))
    metafunc.parametrize(("binary", "case"), cases, ids=[f"{binary.name}-{case}" for binary, case in cases])


def test_cpp(binary: Path, case: str | None) -> None:
    _run(binary, case)


@pytest.mark.sanitize
def test_sanitized(binary: Path, case: str | None) -> None:
    _run(binary, case, **SANITIZER_OPTIONS)


def _cases(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Every case of every executable that there should be; None stands for an executable that cannot list its own."""
    for name in [*sorted(source.stem for source in (ROOT / "tests/cpp").glob("test_*.cpp")), *OPENBLAS_TESTS]:
        binary = folder / name
        for case in _list_tests(binary) or [None]:
            yield binary, case


def _list_tests(binary: Path) -> list[str]:
    """The executable's cases as `Suite.Case`; none if it is missing or fails."""
    if not binary.is_file():
        return []
    done = subprocess.run([binary, "--gtest_list_tests"], capture_output=True, text=True, timeout=60, check=False)
    cases: list[str] = []
    suite = ""
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        name = line.split("#")[0].strip()  # after '#': the value of a parameter
        if line.startswith(" "):
            cases.append(suite + name)
        else:
            suite = name
    return cases


def _openblas_location() -> dict[str, str]:
    package = importlib.util.find_spec("scipy_openblas32")
    if package is None or package.origin is None:
        return {}
    return {"ONEREC_OPENBLAS": str(Path(package.origin).parent / "lib/libscipy_openblas.so")}


def _run(binary: Path, case: str | None, **environment: str) -> None:
    if not binary.is_file():
        pytest.fail(f"{binary} does not exist. {HOW_TO_BUILD}", pytrace=False)
    selection = f"--gtest_filter={case}" if case else "--gtest_list_tests"
    done = subprocess.run(
        [binary, selection],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**_openblas_location(), **os.environ, **environment},
        check=False,
    )
    if done.returncode != 0 or case is None:
        pytest.fail(f"{binary.name} {selection} exited with {done.returncode}:\n{done.stdout}", pytrace=False)
    if "[  SKIPPED ]" in done.stdout or "DISABLED TEST" in done.stdout:
        pytest.skip(done.stdout)
    assert "[  PASSED  ] 1 test." in done.stdout, done.stdout
