#!/usr/bin/env bash
# What the arm64 lanes share; sourced by test_arm64.sh and test_images.sh. No arm64 machine is needed: qemu-user runs the
# programs of an arm64 Debian, and mmdebstrap, uv and buildah put files together without running any.
#
#     ARM64_CACHE   where roots, base images and wheels are kept between runs (default: edgetune/arm64 in the cache folder)
#     ARM64_CPU     the processor to emulate (default: cortex-a72, a Raspberry Pi 4)
#     ARM64_MIRROR  the Debian mirror (default: this machine's, or mmdebstrap's own)
#     UV            the uv to use (default: the one in .venv, or in PATH)
set -euo pipefail

CANNOT=77 # exit status: this machine can't run the lane; nothing was tested
SUITE=bookworm SUITE_PYTHON=3.11
PLATFORM=aarch64-manylinux_2_28
# The oldest torch that pyproject.toml allows, and the newest onnxruntime that starts under emulation (1.32.0 ends in a
# segmentation fault on import there). A test holds the first against pyproject.toml.
OLDEST=(torch==2.4.1 onnxruntime==1.23.2)

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${ARM64_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/edgetune/arm64}
cpu=${ARM64_CPU:-cortex-a72}
export QEMU_CPU=$cpu

cannot() {
    printf 'arm64: not run: %s\n' "$*" >&2
    exit "$CANNOT"
}

# Say what a step does and how long it took.
step() {
    local step_began=$SECONDS what=$1
    shift
    printf 'arm64: %s\n' "$what"
    "$@"
    printf 'arm64: %s took %d s\n' "$what" "$((SECONDS - step_began))"
}

# Root, the packages named, and a kernel that hands arm64 programs to qemu; else the lane can't run here.
need() {
    local tool missing=()
    [ "$(id -u)" = 0 ] || cannot "chroot and mount need root (try: sudo make $1)"
    shift
    for tool in mmdebstrap unshare "$@"; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    uv=${UV:-$checkout/.venv/bin/uv}
    [ -x "$uv" ] || uv=$(command -v uv) || missing+=("uv (pip install uv)")
    ((${#missing[@]} == 0)) || cannot "missing here: ${missing[*]} (see docs/containers.md)"
    uv=$(realpath "$uv")
    if [ "$(uname -m)" != aarch64 ]; then
        command -v qemu-aarch64-static >/dev/null ||
            cannot "missing here: qemu-aarch64-static (apt-get install qemu-user-static binfmt-support)"
        mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc 2>/dev/null ||
            cannot "the kernel's binfmt_misc can't be mounted"
        [ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || update-binfmts --enable qemu-aarch64 2>/dev/null || true
        # F: the kernel holds qemu open, so that it works in a root that has none
        grep -q '^flags:.*F' /proc/sys/fs/binfmt_misc/qemu-aarch64 2>/dev/null ||
            cannot "arm64 programs are not handed to qemu (apt-get install binfmt-support, or see docs/containers.md)"
    fi
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock --nonblock 9 || cannot "another run uses $cache"
    unshare --mount true 2>/dev/null || cannot "this container may not make mounts of its own"
}

mirror() {
    if [ -n "${ARM64_MIRROR:-}" ]; then
        printf '%s\n' "$ARM64_MIRROR"
    elif grep -qx 'ID=debian' /etc/os-release; then
        apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null | sed -n 1p
    fi
}

# A tar archive of an arm64 Debian, made once: debian ARCHIVE MMDEBSTRAP-OPTION...
debian() {
    local archive=$1
    shift
    [ -e "$archive" ] && return
    mkdir -p "$(dirname "$archive")"
    # shellcheck disable=SC2046
    mmdebstrap --quiet --arch=arm64 "$@" "$SUITE" "$archive.new.tar" $(mirror) >"$archive.log" 2>&1 ||
        cannot "arm64 packages of Debian $SUITE could not be had ($archive.log)"
    mv "$archive.new.tar" "$archive"
}

# The wheels and the sdist of this checkout, as `make build` left them.
distribution() {
    local version
    version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$checkout/edgetune/__about__.py")
    wheel=$checkout/dist/edgetune-$version-py3-none-any.whl
    sdist=$checkout/dist/edgetune-$version.tar.gz
    [ -e "$wheel" ] && [ -e "$sdist" ] || { echo "dist/ holds no edgetune $version: run make build." >&2; exit 2; }
}

# Install packages for the target without running any of its code: for_arm64 FOLDER REQUIREMENT...
for_arm64() {
    "$uv" pip install --quiet --no-config --python-platform "$PLATFORM" --python-version "$SUITE_PYTHON" \
        --only-binary :all: --link-mode copy --target "$@"
}
