#!/bin/sh
# check_ptxas.sh <compiler command>: compiles, and fails where the assembler reports that it spilled registers or gave up
# overlapping matrix instructions (C75xx): both are silent losses of speed otherwise.
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
"$@" >"$log" 2>&1
status=$?
cat "$log" >&2
if [ "$status" -eq 0 ] && grep -Eq '\(C75[0-9][0-9]\)|[Rr]egisters are spilled' "$log"; then
  echo "[build] ptxas spilled registers or serialised matrix instructions; see above." >&2
  exit 1
fi
exit "$status"
