#!/usr/bin/env bash
# Install edgetune beside what an image already has, never over it: the way Dockerfile.jetson does.
#
#     bash scripts/install_beside.sh SOURCE TARGET [PIP OPTION...]
#
# A Jetson image's torch was built for its GPU; the package index has another one of the same name that was not. So
# edgetune gets an environment of its own (TARGET) that sees the base's packages but can't change them, and whatever the
# base has of torch, numpy and their kin is pinned while pip chooses the rest. PYTHON names the base's interpreter.
set -euo pipefail

source=$1 target=$2
shift 2
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "This image's Python is older than 3.10 (JetPack 5 and before); take a base image of JetPack 6 or later." >&2
    exit 2
}
# A path file rather than --system-site-packages: the base's Python may live in a virtual environment itself.
"$python" -m venv --without-pip "$target"
site=$("$target/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -c 'import sys; print("\n".join(path for path in sys.path if path.endswith("-packages")))' >"$site/base.pth"

pins=$target/base-constraints.txt
"$python" -m pip list --format=freeze --disable-pip-version-check |
    { grep -iE '^(torch|torchvision|torchaudio|triton|numpy|onnxruntime|onnxruntime-gpu|tensorrt)==' || true; } >"$pins"
# pip comes from the base too; run by the environment's Python, it installs into the environment.
"$target/bin/python" -m pip install --no-warn-script-location --disable-pip-version-check \
    --constraint "$pins" "$@" "$source" "pillow>=9.4"

while IFS='=' read -r name _ pinned; do
    now=$("$target/bin/python" -c "import importlib.metadata as m; print(m.version('$name'))")
    [ "$now" = "$pinned" ] || { echo "$name was $pinned in the base image and is $now now." >&2; exit 1; }
    echo "kept from the base image: $name $pinned"
done <"$pins"
"$target/bin/python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' ||
    echo "The base image has no torch: profile and plan work, training does not." >&2
