#!/usr/bin/env bash
# The whole loop on this machine: profile, plan under a cap, fine-tune, evaluate. `make demo` calls it.
#
#     bash scripts/demo.sh [EDGETUNE [FOLDER]]
set -euo pipefail

edgetune=${1:-edgetune}
folder=${2:-runs/demo}
cap=1GB

step() {
    printf '\n\033[1m$ edgetune %s\033[0m\n' "$*"
    "$edgetune" "$@"
}

# A run folder is never overwritten, so a second demo starts from an empty one.
if [ -e "$folder" ] && [ ! -e "$folder/digits" ]; then
    echo "$folder was not made by the demo; name another folder with DEMO=…" >&2
    exit 2
fi
rm -rf "$folder"
mkdir -p "$folder"

step sample-data digits "$folder/digits"
step profile --quick --out "$folder/profile.json"
step plan "$folder/digits" --model vit_nano_patch8_64 --profile "$folder/profile.json" --memory "$cap" --epochs 5 --lr 1e-3 --no-augment --out "$folder/plan.json"
step fit "$folder/digits" --plan "$folder/plan.json" --out "$folder/run"
step evaluate "$folder/run" "$folder/digits"

printf '\nThe report: %s\n' "$(cd "$folder/run" && pwd)/report.html"
