#!/usr/bin/env bash
# The arm64 lane: the wheel and the sdist in a clean arm64 Debian, run as the processor of a Raspberry Pi 4 would run them.
#
#     make test-arm64                                  # builds dist/ and calls this; as root
#     bash scripts/test_arm64.sh tests/device -k memory   # other tests, dist/ as it is
#     LOSSES=1 make test-arm64                         # and ten steps of the ONNX engine, held against this machine's
#
# Exit status: 0 passed, 77 this machine can't run it (the reason is printed), anything else a failure.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/arm64_root.sh"

began=$SECONDS
limit_s=${ARM64_LIMIT_S:-450} # for the tests, so that the whole lane ends within ten minutes
# One process: starting Python and torch again is what emulation makes dear. Left out are tests that hold a time which
# emulation can't keep, and one that alone takes 40 s.
tests=(tests/selftest tests/device tests/plan/test_plan.py tests/plan/test_levers.py)
slow="not under_50_ms and not under_a_second and not imports_neither and not one_percent"
(($# == 0)) || tests=("$@")

need test-arm64
distribution

make_root() {
    local wanted
    wanted=$(printf '%s\n' "$SUITE" "${OLDEST[@]}" "$(sed -n '/^dependencies/,/^# What `make test`/p' "$checkout/pyproject.toml")" | cksum | cut -d' ' -f1)
    root=$cache/root-$wanted
    [ -e "$root/.whole" ] && return
    rm -rf "$cache"/root-*
    debian "$cache/extract-$SUITE.tar" --variant=extract --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
        --include=python3-minimal,python3,libc-bin,coreutils,dash,bash,libgomp1,libstdc++6,base-files,ca-certificates
    mkdir -p "$root"
    tar -C "$root" --exclude='./dev/*' -xf "$cache/extract-$SUITE.tar"
    for_arm64 "$root/opt/site" "edgetune[onnx,torch] @ file://$wheel" "${OLDEST[@]}" pytest hypothesis \
        --constraint "$checkout/requirements/cpu-aarch64.txt" || cannot "arm64 wheels could not be had"
    rm -rf "$root"/opt/site/edgetune "$root"/opt/site/edgetune-*.dist-info # each run installs its own
    local host
    for host in "$checkout/.venv/bin/python" "python$SUITE_PYTHON"; do # the same release writes the same bytecode
        "$host" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$SUITE_PYTHON')" 2>/dev/null || continue
        env -u PYTHONDONTWRITEBYTECODE "$host" -m compileall -q -j2 -s "$root" --invalidation-mode unchecked-hash \
            "$root/opt/site" "$root/usr/lib/python$SUITE_PYTHON" >/dev/null || true
        break
    done
    touch "$root/.whole"
}

install_here() {
    rm -rf "$root"/opt/{wheel,sdist,checkout}
    for_arm64 "$root/opt/wheel" --no-deps "$wheel"
    # the only package that has to be built, which needs no arm64 either
    "$uv" pip install --quiet --no-config --python-version "$SUITE_PYTHON" --no-deps --target "$root/opt/sdist" "$sdist"
    mkdir -p "$root/opt/checkout" "$root/tmp" "$root/sys" "$root/proc" "$root/dev"
    # the tests, and nothing that could stand in for what is installed
    cp -a "$checkout"/{tests,benchmarks,pyproject.toml} "$root/opt/checkout/"
}

# Run a command in the root with file systems of its own that vanish with it: inside PYTHONPATH COMMAND...
inside() {
    # shellcheck disable=SC2016
    unshare --mount --pid --fork --kill-child bash -c '
        set -e
        root=$1 path=$2
        shift 2
        mount -t proc proc "$root/proc"
        mount --rbind /sys "$root/sys"
        mount --rbind /dev "$root/dev"
        mount -t tmpfs tmpfs "$root/tmp"
        cd /
        exec chroot "$root" env -i PATH=/usr/bin:/bin HOME=/tmp LANG=C.UTF-8 QEMU_CPU="$QEMU_CPU" PYTHONPATH="$path" \
            OMP_NUM_THREADS=2 EMULATED_CPU="$QEMU_CPU" PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis \
            bash -c "cd /opt/checkout && exec \"\$@\"" bash "$@"' bash "$root" "$@"
}

# What is installed answers, is what was built, and knows the board of a fixture.
answers() {
    inside "/opt/$1:/opt/site" python3 -c "import platform, edgetune
assert platform.machine() == 'aarch64' and edgetune.__file__.startswith('/opt/$1/'), edgetune.__file__"
    inside "/opt/$1:/opt/site" python3 -m edgetune --version
    inside "/opt/$1:/opt/site" python3 -m edgetune profile --root tests/fixtures/devices/rpi5 --json |
        grep -q '"family": "raspberry-pi-5"'
}

# The first failure ends it, so that a run cut off by its time has had none; that is no pass either, and is said.
run_tests() {
    local status=0
    inside /opt/wheel:/opt/site timeout "$limit_s" python3 -m pytest -p no:cacheprovider --exitfirst -k "$slow" \
        "${tests[@]}" || status=$?
    ((status != 124)) || cannot "cut off after $limit_s s without a failure: this machine is too slow or too busy"
    return "$status"
}

# Ten steps without torch, here and there: the losses must agree within 1e-4.
same_losses() {
    local words=(--model vit_nano_patch8_64 --engine onnx --method last-2 --epochs 1 --batch-size 8 --seed 0 --threads 2)
    local python=$checkout/.venv/bin/python
    rm -rf "$root/opt/checkout/losses"
    mkdir "$root/opt/checkout/losses"
    (cd "$root/opt/checkout/losses" && PYTHONPATH=$checkout "$python" - <<'END'
from pathlib import Path

from edgetune.data.samples import unpack

unpack("digits", Path("digits"), per_class=8)
END
    )
    (cd "$root/opt/checkout/losses" && PYTHONPATH=$checkout "$python" -m edgetune fit digits "${words[@]}" --quiet --out here)
    inside /opt/wheel:/opt/site python3 -m edgetune fit losses/digits "${words[@]}" --quiet --out losses/there
    PYTHONPATH=$checkout/benchmarks "$python" - "$root/opt/checkout/losses" "$QEMU_CPU" <<'END'
import json
import sys
from pathlib import Path

from machine import append


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


here, there = (losses(Path(sys.argv[1]) / name) for name in ("here", "there"))
apart = max(abs(left - right) for left, right in zip(here, there, strict=True))
print(f"arm64: {len(here)} steps, losses at most {apart:.1e} apart")
append("onnx_engine", {"what": "arm64", "emulated": sys.argv[2], "steps": len(here), "largest_difference": apart})
sys.exit(len(here) < 10 or apart > 1e-4)
END
}

step "an arm64 root with ${OLDEST[*]}" make_root
step "wheel and sdist installed" install_here
step "the sdist answers" answers sdist
step "the wheel answers" answers wheel
step "tests on an emulated $cpu" run_tests
if [ -n "${LOSSES:-}" ]; then step "the same losses without torch, here and there" same_losses; fi
printf 'arm64: passed in %d s\n' "$((SECONDS - began))"
