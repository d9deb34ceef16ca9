#!/usr/bin/env bash
# Everything there is to know of a card, in under nine minutes on an H200 (an estimate): gpu-check, the memory and race
# checkers over the kernels, PyTorch on the same numbers, and one page of tables at the end.
#
#     benches/gpu/run.sh [FOLDER]      # results go to FOLDER, else to $OUT, else to gpu-results: eight files
#
# Needs an aim-cli ($AIM_CLI, else target/release/aim-cli), NVIDIA's driver, cuBLASLt and NVRTC, and python3 with PyTorch.
# compute-sanitizer is used where there is one. A part that fails does not stop the others; the exit status is then 1.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cli=${AIM_CLI:-$here/../../target/release/aim-cli}
out=${1:-${OUT:-gpu-results}}
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
mkdir -p "$out"
# The tensors are some gigabytes and stay here.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Where NVRTC and cuBLASLt are if only pip has them.
VIRTUAL_ENV=${VIRTUAL_ENV:-$("$python" -c 'import sys; print(sys.prefix)')}
export VIRTUAL_ENV

failed=()
part() { # NAME SECONDS LOG COMMAND...
    local name=$1 limit=$2 log=$3 start=$SECONDS rc=0
    shift 3
    timeout --kill-after=10 "$limit" "$@" >"$out/$log" 2>&1 || rc=$?
    echo "== $name: $((SECONDS - start)) s, exit status $rc"
    [ "$rc" -eq 0 ] || failed+=("$name")
}

part gpu-check 290 gpu_check.txt "$cli" gpu-check --out "$work"
cp "$work/gpu_check.json" "$out/" 2>/dev/null

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer /usr/local/cuda/compute-sanitizer/compute-sanitizer 2>/dev/null | head -n 1)
if [ -n "$sanitizer" ]; then
    for tool in memcheck racecheck; do
        part "$tool" 45 "$tool.txt" "$sanitizer" --tool "$tool" --target-processes all --error-exitcode 9 \
            "$cli" gpu-check --only kernels --quick --seed 1
        grep -h "SUMMARY" "$out/$tool.txt" | sort | uniq -c
    done
else
    echo "== no compute-sanitizer here"
fi

part compare 180 compare.txt "$python" "$here/compare.py" --dir "$work" --out "$out/compare.json" --budget-s 160
sed -n '/^checks /,$p' "$out/gpu_check.txt"
"$python" "$here/compare.py" --join "$out/gpu_check.json" "$out/compare.json" | tee "$out/results.md"
[ ${#failed[@]} -eq 0 ] || { echo "FAILED: ${failed[*]}"; exit 1; }
