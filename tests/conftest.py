"""Options, markers and fixtures shared by all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The measuring tools are tested too; they are scripts beside one another, not a package.
sys.path.append(str(ROOT / "profiling"))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("onerec_engine")
    group.addoption(
        "--require-beauty",
        action="store_true",
        help="a test marked `beauty` that would be skipped fails instead",
    )
    group.addoption(
        "--cpp-bin",
        type=Path,
        default=ROOT / "build/cpp-tests/bin",
        help="folder with the C++ tests (default: build/cpp-tests/bin)",
    )
    group.addoption(
        "--sanitize-bin",
        type=Path,
        default=ROOT / "build/sanitize/bin",
        help="folder with the C++ tests built under the sanitizers (default: build/sanitize/bin)",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # A test that needs a GPU may be skipped for want of one.
    required = item.get_closest_marker("beauty") and not item.get_closest_marker("gpu")
    if report.skipped and required and item.config.getoption("--require-beauty"):
        reason = call.excinfo.value if call.excinfo else "marked to be skipped"
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped under --require-beauty: {reason}"
    return report


@pytest.fixture(scope="session")
def gpu() -> None:
    """Skips where the package cannot use a GPU. Mark the test `gpu` as well: `pytest -m gpu` runs them all."""
    from onerec_engine import build_info

    cuda = build_info().get("cuda", "off: not in this build")
    if cuda.startswith("off"):
        pytest.skip(f"device 'cuda' is {cuda}")


@pytest.fixture(scope="session")
def beauty_path() -> Path:
    """The Amazon Beauty file. Mark the test `beauty` as well, so that --require-beauty sees it."""
    name = os.environ.get("ONEREC_BEAUTY")
    if not name:
        pytest.skip("ONEREC_BEAUTY is not set; point it at beauty.npz")
    path = Path(name)
    if not path.is_file():
        pytest.skip(f"ONEREC_BEAUTY names {path}, which is not a file")
    return path
