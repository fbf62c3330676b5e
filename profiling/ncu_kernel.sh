#!/bin/sh
# Hardware counters of the kernels whose name matches a regular expression, in one generation: <report>.ncu-rep, and a
# page of text.
#
#   profiling/ncu_kernel.sh report 'rms_norm' --model 1B --batch 32 --precision fp8
#
# The arguments behind the expression are those of one_generation.py. LAUNCHES is how many kernels are looked at (3),
# SKIP how many matches are passed over before (0), SET which counters (full), PYTHON the interpreter. The clocks are left
# alone.
set -eu

if [ $# -lt 2 ]; then
  echo "usage: $0 REPORT KERNEL_REGEX [arguments of one_generation.py]" >&2
  exit 2
fi
report=$1
kernel=$2
shift 2
if ! command -v ncu >/dev/null; then
  echo "[ncu_kernel] ncu (Nsight Compute) is not on the PATH. Install it: it comes with the CUDA toolkit." >&2
  exit 1
fi
here=$(dirname "$0")
ncu --export "$report" --force-overwrite --profile-from-start off --target-processes all --clock-control none \
  --set "${SET:-full}" --kernel-name "regex:$kernel" --launch-skip "${SKIP:-0}" --launch-count "${LAUNCHES:-3}" \
  "${PYTHON:-python3}" "$here/one_generation.py" "$@"
ncu --import "$report.ncu-rep" --page details
