"""The table of measured matrix product kernels, the measurements and the list of kernels agree."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import tune_gemms

RESULTS = tune_gemms.ROOT / "profiling/results/gemm_tuning.json"
CONFIGS = tune_gemms.ROOT / "csrc/backends/cuda/gemm/gemm_configs.h"
TYPES = {enum: name for name, enum in tune_gemms.ENUMS.items()}


@pytest.fixture(scope="module")
def report() -> Any:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def kernel_names() -> dict[int, str]:
    """What gemm_name() calls the kernels of gemm_configs.h."""
    found = re.search(r"kGemmConfigs\[\] = \{\n(.*?)\n\};", CONFIGS.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    names = {-1: "plain"}
    for index, line in enumerate(found[1].splitlines()):
        match = re.fullmatch(r" *\{GemmTypes::(\w+), (\d+), (\d+), (\d+), (\d+), GemmSchedule::k(\w+)(, \d+)?\},", line)
        assert match, line
        types, rows, outputs, depth_bytes, cluster, schedule, parts = match.groups()
        depth = int(depth_bytes) // (1 if types == "kFp8ToBf16" else 2)
        ending = (schedule.lower() + (parts or "").replace(",", "")).strip()
        names[index] = f"{TYPES[types]} {rows}x{outputs}x{depth} cluster {cluster} {ending}"
    return names


def test_measurements_name_the_kernels_that_are_built(report: Any) -> None:
    names = kernel_names()
    measured = {(line["config"], line["name"]) for line in report["lines"] if line["types"] in tune_gemms.ENUMS}
    assert measured <= set(names.items())
    assert len(measured) == len(names)


def test_the_table_is_what_the_measurements_say(report: Any) -> None:
    text = tune_gemms.header(report["lines"], report["facts"]["device"])
    assert text == tune_gemms.HEADER.read_text(encoding="utf-8")
