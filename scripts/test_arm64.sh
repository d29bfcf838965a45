#!/usr/bin/env bash
# The arm64 lane: the wheel and the sdist in a clean arm64 Debian, run as the processor of a Raspberry Pi 4 would run them.
#
#     make test-arm64                                  # builds dist/ and calls this; as root
#     bash scripts/test_arm64.sh tests/device -k memory   # other tests, dist/ as it is
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

step "an arm64 root with ${OLDEST[*]}" make_root
step "wheel and sdist installed" install_here
step "the sdist answers" answers sdist
step "the wheel answers" answers wheel
step "tests on an emulated $cpu" run_tests
printf 'arm64: passed in %d s\n' "$((SECONDS - began))"
