#!/usr/bin/env bash
# Builds, tests and measures everything that needs a GPU, in about 10 minutes on a bare machine whose
# python3 has torch, CuPy, numba-cuda, mpi4py, ml_dtypes, nanobind, CMake, ninja and pytest:
#   bash bench/gpu_all.sh [FOLDER]
# The table, and a log of each step, go to FOLDER; without it to $OUT, or to build/gpu.
# A step that fails does not keep the others from running; the exit code says how many did.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-${OUT:-build/gpu}}")
python=${PYTHON:-python3}
PATH=$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH  # ninja, for CMake
mkdir -p "$folder"
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
failed=0
summary=$folder/table.txt
: >"$summary"

# step NAME SECONDS COMMAND…: its output goes to NAME.txt, its verdict into the table.
step() {
  local name=$1 limit=$2 start=$SECONDS verdict=passed
  shift 2
  timeout -k 5 "$limit" "$@" >"$folder/$name.txt" 2>&1 || {
    verdict="FAILED ($?)"
    failed=$((failed + 1))
    tail -n 25 "$folder/$name.txt"
  }
  printf '%-12s %-14s %4d s   %s\n' "$name" "$verdict" $((SECONDS - start)) \
    "$(grep -v '^$' "$folder/$name.txt" | tail -n 1 | cut -c 1-100)" | tee -a "$summary"
}

# sanitize TOOL: the short tests under compute-sanitizer.
sanitize() {
  step "$1" 60 compute-sanitizer --tool "$1" --error-exitcode 9 --report-api-errors no \
    --target-processes all "$python" -m pytest -q -p no:cacheprovider -x tests/gpu/test_table.py
}

workers=()
if "$python" -c 'import xdist' 2>/dev/null; then workers=(-n 6); fi

step build 80 "$python" setup.py -q build_ext --inplace
step tests 140 "$python" -m pytest -q -p no:cacheprovider "${workers[@]}" tests/gpu
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
for ranks in 1 2 4; do
  if command -v mpirun >/dev/null; then
    step "ranks-$ranks" 60 mpirun -np "$ranks" "$python" -m pytest -q -p no:cacheprovider \
      --color=no tests/mpi/test_device_on_gpu.py
  else
    printf '%-12s not run: there is no mpirun on PATH\n' "ranks-$ranks" | tee -a "$summary"
  fi
done
step kernels 130 "$python" bench/kernels.py --sizes 4K:1G:8 --seconds 0.02 \
  --json "$folder/kernels.json" --plot "$folder/kernels.png"
sanitize memcheck
sanitize racecheck

{
  echo
  grep '^# \(commit\|versions\|machine\|a launch\)' "$folder/kernels.txt"
  sed -n '/^#op .*of copy/,$p' "$folder/kernels.txt"
} >>"$summary"
cat "$summary"
exit "$failed"
