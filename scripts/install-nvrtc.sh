#!/usr/bin/env bash
# Installs NVRTC, the compiler of the CUDA kernels, into .cuda/ from PyPI. It needs no GPU, no toolkit and no headers.
# Builds of the program embed compiled kernels from then on.
set -euo pipefail
cd "$(dirname "$0")/.."

version=13.0.88
if [ ! -e ".cuda/nvidia_cuda_nvrtc-$version.dist-info" ]; then
    rm -rf .cuda
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --target .cuda \
        "nvidia-cuda-nvrtc==$version"
    # A second build of the same library, half of the size.
    rm -f .cuda/nvidia/cu13/lib/*.alt.*
    # Cargo looks for what is new in kernels/ and nowhere else.
    touch kernels
fi
echo "NVRTC $version is in .cuda/"
