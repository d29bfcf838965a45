#!/usr/bin/env bash
# An environment with onnxruntime-training and without onnxruntime or torch, for `edgetune export --format ort-training`,
# tests/benchmarks/test_ort_training.py and benchmarks/ort_training.py.
#
#   scripts/ort_training_env.sh [FOLDER]      default: .venv-ort-training in the checkout
#   PYTHON=python3.11 scripts/ort_training_env.sh
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$root/.venv-ort-training}
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || {
    echo "onnxruntime-training has wheels for Python 3.12 and older only; name one with PYTHON=python3.11." >&2
    exit 2
}
"$python" -m venv --clear "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
    --requirement "$root/requirements/ort-training.txt" --editable "$root"
echo "made: $folder"
