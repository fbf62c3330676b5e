"""Runs the C++ tests: one pytest item per GoogleTest case, of the normal build and of the build under sanitizers.

Tests of ops and of the engine core run on the CPU, on the emulated GPU of tests/simt, and with `-m gpu` on a GPU.
What is missing fails: a folder that was not built, or a tests/cpp/test_*.cpp without its executable. A build without
the emulation or without CUDA skips what needs it.
"""

from __future__ import annotations

import functools
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

# Tests that run on the device which ONEREC_TEST_DEVICE names (tests/cpp/support/device.h).
DEVICE_TESTS = (
    "test_beam_force",
    "test_beam_select",
    "test_combine_norm",
    "test_cross_attention",
    "test_cross_attention_aligned",
    "test_cross_attention_splits",
    "test_dense_kernels",
    "test_embed",
    "test_generation_engine",
    "test_grouped_kernels",
    "test_grouped_linear",
    "test_grouped_swiglu",
    "test_linear",
    "test_linear_contract",
    "test_linear_norm",
    "test_linear_swiglu",
    "test_moe",
    "test_prepared_linear",
    "test_quantize",
    "test_rms_norm",
    "test_routed_feed_forward",
    "test_self_attention",
    "test_stream",
    "test_swiglu",
    "test_trie_filter",
)
# The emulation's own test; not in builds without the emulation.
EMULATION_TEST = "test_simt"
# What an executable writes before it exits with this status, if its build lacks the device.
NO_DEVICE = "ONEREC_TEST_DEVICE: "
NO_DEVICE_STATUS = 2

SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "strict_string_checks=1:detect_stack_use_after_return=1:check_initialization_order=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "binary" not in metafunc.fixturenames:
        return
    sanitized = metafunc.function in (test_sanitized, test_emulated_sanitized)
    folder = metafunc.config.getoption("--sanitize-bin" if sanitized else "--cpp-bin")
    names = [*DEVICE_TESTS]
    if metafunc.function in (test_cpp, test_sanitized):
        names = [*sorted(source.stem for source in (ROOT / "tests/cpp").glob("test_*.cpp")), *OPENBLAS_TESTS]
    elif metafunc.function is not test_on_gpu and (folder / EMULATION_TEST).is_file():
        names.append(EMULATION_TEST)
    cases = list(_cases(folder, names))
    metafunc.parametrize(("binary", "case"), cases, ids=[f"{binary.name}-{case}" for binary, case in cases])


def test_cpp(binary: Path, case: str | None) -> None:
    _run(binary, case)


@pytest.mark.sanitize
def test_sanitized(binary: Path, case: str | None) -> None:
    _run(binary, case, **SANITIZER_OPTIONS)


def test_emulated(binary: Path, case: str | None) -> None:
    _run(binary, case, ONEREC_TEST_DEVICE="simt")


@pytest.mark.sanitize
def test_emulated_sanitized(binary: Path, case: str | None) -> None:
    # Frames that outlive their function cost an allocation per call, and kernels return no addresses of them.
    asan = SANITIZER_OPTIONS["ASAN_OPTIONS"] + ":detect_stack_use_after_return=0"
    _run(binary, case, ONEREC_TEST_DEVICE="simt", **{**SANITIZER_OPTIONS, "ASAN_OPTIONS": asan})


@pytest.mark.gpu
def test_on_gpu(binary: Path, case: str | None) -> None:
    _run(binary, case, ONEREC_TEST_DEVICE="cuda")


def test_device_tests_exist() -> None:
    missing = [name for name in DEVICE_TESTS if not (ROOT / f"tests/cpp/{name}.cpp").is_file()]
    assert not missing


def _cases(folder: Path, names: list[str]) -> Iterator[tuple[Path, str | None]]:
    """Every case of every executable that there should be; None stands for an executable that cannot list its own."""
    for name in names:
        binary = folder / name
        for case in _list_tests(binary) or [None]:
            yield binary, case


@functools.cache
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
    if done.returncode == NO_DEVICE_STATUS and NO_DEVICE in done.stdout:
        pytest.skip(done.stdout[done.stdout.index(NO_DEVICE) :].strip())
    if done.returncode != 0 or case is None:
        pytest.fail(f"{binary.name} {selection} exited with {done.returncode}:\n{done.stdout}", pytrace=False)
    if "[  SKIPPED ]" in done.stdout or "DISABLED TEST" in done.stdout:
        pytest.skip(done.stdout)
    assert "[  PASSED  ] 1 test." in done.stdout, done.stdout
