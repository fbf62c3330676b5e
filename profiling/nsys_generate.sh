#!/bin/sh
# Timeline of one warm generation, op by op, with the NVTX ranges of its ops: <report>.nsys-rep, and a table of kernels.
#
#   profiling/nsys_generate.sh report --model 1B --batch 32 --precision fp8
#
# The arguments behind the report's name are those of one_generation.py. PYTHON names the interpreter.
set -eu

if [ $# -lt 1 ]; then
  echo "usage: $0 REPORT [arguments of one_generation.py]" >&2
  exit 2
fi
report=$1
shift
if ! command -v nsys >/dev/null; then
  echo "[nsys_generate] nsys (Nsight Systems) is not on the PATH. Install it, or use profiling/kernel_times.py, which" >&2
  echo "needs torch alone and gives the times without the timeline." >&2
  exit 1
fi
here=$(dirname "$0")
nsys profile --output "$report" --force-overwrite true --trace cuda,nvtx --capture-range cudaProfilerApi \
  --capture-range-end stop "${PYTHON:-python3}" "$here/one_generation.py" "$@"
nsys stats --report cuda_gpu_kern_sum --report nvtx_sum "$report.nsys-rep"
