#!/usr/bin/env bash
# Everything that only a GPU can tell, in one run of less than eight minutes: correctness, faults, speed, a training
# run, and PyTorch beside it. The machine with the GPU needs no Rust and no sources.
#
#   benches/gpu.sh build         where cargo is: puts the programs and this script into target/gpu
#   gpu.sh run DIR [RESULTS]     where the GPU is: runs the programs of DIR, a copy of target/gpu, and leaves logs and
#                                summary.md in RESULTS (gpu-results)
#
# TORCH_BASELINES=FOLDER names the folder of torch_gpu.py and torch_gpu_best.py (the build step takes them along, and
# then the run step needs no name), PYTHON the Python that has torch
# (python3). A part that fails stops no other, and is told by the exit code: 1 where a part failed, 0 where at most
# advice did.
set -euo pipefail

SECONDS_IN_ALL=470

die() {
    echo "gpu.sh: $*" >&2
    exit 2
}

# The path that cargo names for a target whose source file is $1, out of cargo's words in the file $2.
executable() {
    sed -n "s|.*Executable $1 (\(.*\)).*|\1|p" "$2"
}

build() {
    local programs=target/gpu said path
    cd "$(dirname "$0")/.."
    mkdir -p "$programs"
    said=$(mktemp)
    cargo build --release
    cp target/release/mtdnn-raw "$programs/mtdnn-raw"
    cargo test --release --test gpu --no-run 2>&1 | tee "$said"
    path=$(executable tests/gpu.rs "$said")
    cp "$path" "$programs/gpu-test"
    cargo bench --bench gpu --no-run 2>&1 | tee "$said"
    path=$(executable benches/gpu.rs "$said")
    cp "$path" "$programs/gpu-bench"
    cp benches/gpu.sh "$programs/gpu.sh"
    if [[ -n ${TORCH_BASELINES:-} ]]; then
        mkdir -p "$programs/torch"
        cp "$TORCH_BASELINES"/torch_gpu.py "$TORCH_BASELINES"/torch_gpu_best.py "$programs/torch/"
    fi
    rm -f "$said"
    if [[ $("$programs/mtdnn-raw" kernels list || true) != *"in the program"* ]]; then
        echo "warning: no kernels are embedded, so the machine with the GPU needs NVRTC, and MTDNN_CUDA to name" \
            "its folder; scripts/install-nvrtc.sh before the build spares it that"
    fi
    echo "the programs are in $programs"
}

# part KIND NAME SECONDS COMMAND...: runs a part with a limit of time; its words go to NAME.log, and a line to the
# summary. KIND is required, or advice for what may fail.
part() {
    local kind=$1 name=$2 limit=$3 left begin took code=0 outcome
    shift 3
    left=$((SECONDS_IN_ALL - SECONDS))
    if ((left < limit)); then limit=$left; fi
    if ((limit < 5)); then
        outcome="no time left"
        took=0
        code=1
    else
        begin=$SECONDS
        timeout --kill-after=5 "$limit" "$@" >"$results/$name.log" 2>&1 || code=$?
        took=$((SECONDS - begin))
        case $code in
        0) outcome=ok ;;
        124 | 137) outcome="stopped after $limit s" ;;
        *) outcome="FAILED ($code)" ;;
        esac
    fi
    if [[ $code != 0 && $kind == required ]]; then failed=1; fi
    printf '| %s | %s | %d s | %s |\n' "$name" "$kind" "$took" "$outcome" | tee -a "$results/parts.md"
}

# skip NAME REASON
skip() {
    printf '| %s | - | - | skipped: %s |\n' "$1" "$2" | tee -a "$results/parts.md"
}

# A part that checks the kernels by a tool of compute-sanitizer: the list of operations in odd sizes, those of a model
# one by one, and steps with graphs. The other tests take minutes under it.
sanitize() {
    local kind=$1 tool=$2 limit=$3
    part "$kind" "$tool" "$limit" "$sanitizer" --tool "$tool" --error-exitcode 9 \
        "$programs/gpu-test" --test-threads 1 every_case_agrees every_operation_agrees whole_steps_agree kernels_for_hopper_agree
}

run() {
    local python sanitizer torch
    programs=$(realpath "$1")
    mkdir -p "$2"
    results=$(realpath "$2")
    failed=0
    for program in mtdnn-raw gpu-test gpu-bench; do
        [[ -x $programs/$program ]] || die "no $programs/$program; benches/gpu.sh build makes it"
    done
    : >"$results/parts.md"
    export MTDNN_REQUIRE_GPU=1 XDG_CACHE_HOME=$results/cache
    cd "$results"
    SECONDS=0

    {
        date -u
        uname -srm
        nvidia-smi || true
        nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit --format=csv || true
    } >machine.log 2>&1

    sanitizer=$(command -v compute-sanitizer || true)
    if [[ -z $sanitizer && -x /usr/local/cuda/bin/compute-sanitizer ]]; then
        sanitizer=/usr/local/cuda/bin/compute-sanitizer
    fi
    python=$(command -v "${PYTHON:-python3}" || true)
    torch=${TORCH_BASELINES:-$programs/torch}

    part required doctor 30 "$programs/mtdnn-raw" doctor
    part required correctness 80 "$programs/gpu-test" --test-threads 1
    if [[ -n $sanitizer ]]; then
        sanitize required memcheck 80
    else
        skip memcheck "no compute-sanitizer"
    fi
    for precision in f32 bf16; do
        part required "check-$precision" 20 "$programs/mtdnn-raw" train --check --device cuda --precision "$precision"
    done
    part required bench 90 "$programs/gpu-bench"
    if nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -q '^9\.0'; then
        part advice check-hopper 30 env MTDNN_KERNELS=hopper "$programs/mtdnn-raw" train --check --device cuda --precision bf16
        part advice bench-hopper 90 env MTDNN_KERNELS=hopper "$programs/gpu-bench"
    else
        skip bench-hopper "no GPU of compute capability 9.0"
    fi
    part required train 40 "$programs/mtdnn-raw" train --device cuda --precision bf16 --output "$results/run"
    if [[ ! -d $torch ]]; then
        skip torch "TORCH_BASELINES names no folder"
    elif [[ -z $python ]] || ! "$python" -c 'import torch, transformers' >/dev/null 2>&1; then
        skip torch "no Python with torch and transformers"
    else
        part advice torch-kernels 30 "$python" "$torch/torch_gpu.py" kernels
        part advice torch-steps 80 "$python" "$torch/torch_gpu_best.py" --sizes minilm6,base
    fi
    if [[ -n $sanitizer ]]; then
        sanitize advice racecheck 60
        sanitize advice initcheck 60
    fi
    summarize
    exit "$failed"
}

summarize() {
    local fence='```' log
    {
        printf '# Results\n\n| part | kind | time | outcome |\n|---|---|---|---|\n'
        cat parts.md
        printf '\n%d s in all.\n\n## Speed\n\n' "$SECONDS"
        cat bench.log 2>/dev/null || true
        for log in check-f32 check-bf16 train torch-kernels torch-steps; do
            [[ -s $log.log ]] || continue
            printf '\n## %s\n\n%s\n' "$log" "$fence"
            tail -n 60 "$log.log"
            printf '%s\n' "$fence"
        done
    } >summary.md
    echo
    cat summary.md
}

case ${1:-} in
build) build ;;
run) run "${2:-target/gpu}" "${3:-gpu-results}" ;;
*)
    sed -n '2,11s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
