#!/usr/bin/env bash
# Usage: [PYTHON=python3] [MINUTES=9] [JOBS=N] [DRY_RUN=1] tools/check_gpu.sh OUT
# Checks the kernels on the GPU of this machine and times them, the most important first, into the empty folder OUT.
# Every part has a share of the minutes, and what those before it left over; a part that does not end is stopped.
# PYTHON needs PyTorch, pytest, pytest-xdist, timm, rich and matplotlib, which may lie on PYTHONPATH, and not the package
# itself.
# Ends with a summary, and with status 1 if a part failed or was stopped; DRY_RUN=1 only prints what would run.
set -euo pipefail

fail() {
    echo "check_gpu: $*" >&2
    exit 1
}

[ $# = 1 ] || fail "expected one argument, the folder for results, got $#"
[ -z "$(ls -A "$1" 2>/dev/null)" ] || fail "OUT: expected an empty folder, got $1 with files"
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} dry_run=${DRY_RUN:-}
seconds=$(awk -v minutes="${MINUTES:-9}" 'BEGIN { print int(60 * minutes) }')
[ "$seconds" -gt 0 ] || fail "MINUTES: expected a positive number, got ${MINUTES:-}"
jobs=${JOBS:-$(($(nproc) < 12 ? $(nproc) : 12))} # each holds the tensors of its problem on the GPU

export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TRITON_INTERPRET=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [ -z "$dry_run" ]; then
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || fail "PyTorch of $python sees no GPU"
fi
start=$(date +%s)

# localmix in the folder of the first argument, so that no path of this machine is in its results, with the times of all
# tiles that it measures in tiles.log
logged='
import logging, os, sys
os.chdir(sys.argv.pop(1))
log = logging.getLogger("localmix.kernels.triton.tuning")
log.addHandler(logging.FileHandler("tiles.log"))
log.setLevel(logging.DEBUG)
sys.argv[0] = "localmix"
from localmix.cli import main
sys.exit(main())
'
# one step of a network and one batch for inference, so that all that they launch is compiled
step='
import sys, torch
from localmix import models
net = models.create_model(sys.argv[1]).cuda()
images = torch.randn(128, 3, 224, 224, device="cuda")
with torch.autocast("cuda", torch.bfloat16):
    net(images).float().logsumexp(1).sum().backward()
with torch.inference_mode():
    models.fold(net).bfloat16()(images.bfloat16())
'
run_localmix=("$python" -c "$logged" "$out")
# the fastest of what operators are compared with, and the official way; those to compile before
peers=(conv2d-channels-last unfold predict-then-apply grouped-conv1d)
compiled_peers=(conv2d-compiled grouped-conv2d-compiled shifted-sum-compiled partition-sdpa-compiled flex-attention)
# without the plugins that pyproject.toml sets up; pytest-benchmark, where it is, has no part in parallel tests
run_tests=("$python" -m pytest -p no:cacheprovider -p no:benchmark --override-ini addopts=--import-mode=importlib
    -W 'ignore:Unknown config option' -rfE --durations 20 --numprocesses "$jobs" --dist load)

# Percent of the time of each part, in their order.
declare -A shares=([tests]=24 [warm_up]=20 [operators]=26 [projected]=12 [networks]=14 [info]=4)
parts=(tests warm_up operators projected networks info)
declare -A statuses durations

# limit PART: seconds that are left to it, less those that a part gets to write down what it has
limit() {
    local later=0 reached='' name left grace=$((seconds < 400 ? 1 + seconds / 40 : 10))
    for name in "${parts[@]}"; do
        if [ -n "$reached" ]; then later=$((later + shares[$name])); fi
        if [ "$name" = "$1" ]; then reached=yes; fi
    done
    left=$((start + seconds - $(date +%s) - seconds * later / 100 - grace))
    echo $((left > 1 ? left : 1)) $grace
}

# part NAME SIGNAL COMMAND...: runs it into OUT/NAME.log, and stops it by the signal
part() {
    local name=$1 signal=$2 most grace began status=0
    shift 2
    read -r most grace <<<"$(limit "$name")"
    echo "== $name: at most $most s"
    if [ -n "$dry_run" ]; then
        printf '%q ' "$@"
        echo
        start=$((start - most - grace)) # as if it took all of its time
        return
    fi
    began=$(date +%s)
    timeout --signal="$signal" --kill-after="$grace" "$most" "$@" >"$out/$name.log" 2>&1 || status=$?
    statuses[$name]=$status durations[$name]=$(($(date +%s) - began))
    tail -n 8 "$out/$name.log"
}

# Commands that have everything compiled, a process for each operator and stage. They share the GPU, so what they measure
# of tiles is worth nothing: it goes to a folder of its own, and what is compiled to the caches of Triton and PyTorch.
warm_up_commands() {
    local names name stage
    names=$("$python" -c 'from localmix.reports.benchmarks.problems import NAMES; print(*NAMES)')
    for name in i_dynamic_dwnet_tiny dynamic_dwnet_tiny dwnet_tiny localswin_tiny; do
        printf '%q ' "$python" -c "$step" "$name" && printf '\0'
    done
    for stage in 1 2 3 4; do
        for name in $names; do
            printf '%q ' "$python" -m localmix bench ops --ops "$name" --stages "$stage" --device cuda --graph \
                --dtype bfloat16 --impls triton "${compiled_peers[@]}" --rounds 1 --seconds 0.001 && printf '\0'
        done
    done
}

warm_up() {
    local most grace began status=0
    read -r most grace <<<"$(limit warm_up)"
    echo "== warm_up: at most $most s, $jobs processes"
    if [ -n "$dry_run" ]; then
        warm_up_commands | tr '\0' '\n'
        start=$((start - most - grace))
        return
    fi
    began=$(date +%s)
    # every one is stopped at the same time, and none begins after it
    warm_up_commands |
        LOCALMIX_CACHE=$scratch/tiles TORCHINDUCTOR_COMPILE_THREADS=1 END=$((began + most)) GRACE=$grace \
            xargs -0 -P "$jobs" -I{} bash -c \
            'left=$((END - $(date +%s))); [ $left -le 0 ] || timeout --kill-after=$GRACE $left {}' \
            >"$out/warm_up.log" 2>&1 || status=$?
    statuses[warm_up]=$status durations[warm_up]=$(($(date +%s) - began))
}

described() {
    case $1 in
        0) echo passed ;;
        124 | 137) echo "stopped at its limit" ;;
        123) echo "done in part" ;; # by xargs
        *) echo "failed ($1)" ;;
    esac
}

# number of compiled kernels in Triton's cache
kernels() {
    find "${TRITON_CACHE_DIR:-$HOME/.triton/cache}" -name '*.cubin' 2>/dev/null | wc -l || true
}

before=$(kernels)
# PyTorch's compiler would start as many processes for each of the tests'
LOCALMIX_CACHE=$scratch/tests TORCHINDUCTOR_COMPILE_THREADS=1 part tests INT "${run_tests[@]}" -v tests/kernels/test_gpu.py
[ -n "$dry_run" ] || echo "kernels: $before were there, the tests compiled $(($(kernels) - before))"
warm_up
export LOCALMIX_CACHE=$out/tiles
bench=("${run_localmix[@]}" bench ops --graph --device cuda --rounds 3 --impls triton "${peers[@]}" "${compiled_peers[@]}")
part operators TERM "${bench[@]}" --dtype bfloat16 --output operators_gpu
part projected TERM "${bench[@]}" --dtype float32 --ops projected_inhomogeneous_convolution --output projected_float32_gpu
part networks TERM "${run_localmix[@]}" bench models --device cuda --dtype bfloat16 --rounds 3 --modes eager \
    --output networks_gpu
part info TERM "$python" -m localmix bench --info
[ -z "$dry_run" ] || exit 0

if [ -s "$out/tiles.log" ]; then
    echo "== tiles"
    cat "$out/tiles.log"
fi
echo "== summary, $(($(date +%s) - start)) of $seconds s"
failed=0
for name in "${parts[@]}"; do
    printf '%-10s %5d s  %s\n' "$name" "${durations[$name]}" "$(described "${statuses[$name]}")" | tee -a "$out/summary.txt"
    # what a process of the warm-up cannot do, the part itself will tell
    if [ "${statuses[$name]}" != 0 ] && [ "$name" != warm_up ]; then failed=1; fi
done
exit $failed
