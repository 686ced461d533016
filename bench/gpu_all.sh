#!/usr/bin/env bash
# Builds, tests and measures everything that needs a GPU, on a bare machine whose python3 has torch,
# CuPy, numba-cuda, mpi4py, ml_dtypes, nanobind, CMake, ninja, pytest, rich, scikit-learn and tqdm, and
# whose mpirun is on PATH:
#   bash bench/gpu_all.sh [FOLDER]
#   PARTS=ranks bash bench/gpu_all.sh      only what takes several ranks (PARTS=kernels: the rest)
# The kernels take up to 8 minutes, the ranks about 10. The tables, and a log of each step, go to
# FOLDER; without it to bench/results/<date>-<GPU>. If $OUT is set they go there, too, in one archive.
# A step that fails does not keep the others from running; the exit code says how many did.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
PATH=$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH  # ninja, mpirun
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe PRTE_MCA_hwloc_default_binding_policy=none
failed=0

# step NAME SECONDS COMMAND…: its output goes to NAME.txt, its verdict into the table.
step() {
  local name=$1 limit=$2 start=$SECONDS verdict=passed
  shift 2
  timeout -k 5 "$limit" "$@" >"$folder/$name.txt" 2>&1 || {
    verdict="FAILED ($?)"
    failed=$((failed + 1))
    tail -n 25 "$folder/$name.txt"
  }
  printf '%-14s %-14s %4d s   %s\n' "$name" "$verdict" $((SECONDS - start)) \
    "$(grep -v '^$' "$folder/$name.txt" | tail -n 1 | cut -c 1-100)" | tee -a "$summary"
}

# sanitize TOOL: the short tests under compute-sanitizer.
sanitize() {
  step "$1" 60 compute-sanitizer --tool "$1" --error-exitcode 9 --report-api-errors no \
    --target-processes all "$python" -m pytest -q -p no:cacheprovider -x tests/gpu/test_table.py
}

kernels() {
  local workers=()
  if "$python" -c 'import xdist' 2>/dev/null; then workers=(-n 6); fi
  step tests 140 "$python" -m pytest -q -p no:cacheprovider "${workers[@]}" tests/gpu
  step kernels 130 "$python" bench/kernels.py --sizes 4K:1G:8 --seconds 0.02 \
    --json "$folder/kernels.json" --plot "$folder/kernels.png"
  sanitize memcheck
  sanitize racecheck
  {
    echo
    grep '^# \(commit\|versions\|machine\|a launch\)' "$folder/kernels.txt"
    sed -n '/^#op .*of copy/,$p' "$folder/kernels.txt"
  } >>"$summary"
}

# measure SCRIPT RANKS SECONDS OPTIONS…: its JSON, and its rows in the table.
measure() {
  local name=$1-$2 ranks=$2 limit=$3 script=bench/$1.py
  shift 3
  step "$name" "$limit" mpirun -np "$ranks" "$python" "$script" --device cuda \
    --json "$folder/$name.json" "$@"
  {
    echo
    echo "$name"
    grep -v '^# \(argv\|affinity\)' "$folder/$name.txt"
  } >>"$folder/ranks.txt"
}

# ahead SCRIPT RANKS: time and bandwidth as a figure, and how far pycomm is from peers and limits.
ahead() {
  step "$1-$2-ahead" 60 "$python" bench/plot.py "$folder/$1-$2.json" --out "$folder/$1-$2.png"
  cat "$folder/$1-$2-ahead.txt" >>"$folder/ranks.txt"
}

ranks() {
  local number
  if ! command -v mpirun >/dev/null; then
    echo "ranks          not run: there is no mpirun on PATH" | tee -a "$summary"
    failed=$((failed + 1))
    return
  fi
  : >"$folder/ranks.txt"
  for number in 1 2 4; do
    step "tests-$number" 60 mpirun -np "$number" "$python" -m pytest -q -p no:cacheprovider \
      --color=no tests/mpi/test_device_on_gpu.py
    measure collectives "$number" 120 --sizes 4K,64K,1M,16M,64M,256M --seconds 0.1
    ahead collectives "$number"
    measure trainers "$number" 100 --seconds 0.5 --plot "$folder/trainers-$number.png"
  done
  for number in 2 4; do
    measure p2p "$number" 60 --sizes 4K,1M,64M --seconds 0.1
    ahead p2p "$number"
  done
  cat "$folder/ranks.txt" >>"$summary"
}

folder=${1:-$("$python" -m bench.gpu)} || exit 1
folder=$(realpath -m "$folder")
mkdir -p "$folder"
summary=$folder/table.txt
: >"$summary"

step build 80 "$python" setup.py -q build_ext --inplace
for part in ${PARTS:-kernels ranks}; do "$part"; done
cat "$summary"
if [ -n "${OUT:-}" ]; then
  cp "$summary" "$OUT"
  tar -C "$(dirname "$folder")" -czf "$OUT/gpu.tar.gz" "$(basename "$folder")"
fi
exit "$failed"
