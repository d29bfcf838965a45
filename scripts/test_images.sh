#!/usr/bin/env bash
# The image lane: both container files really built for arm64 with buildah, and used, where there is no Docker engine, no
# board and no NVIDIA registry.
#
#     make test-images                       # builds dist/ and calls this; as root
#     bash scripts/test_images.sh pi-onnx    # one of pi-onnx, pi-torch, jetson
#
# The bases are stand-ins: a Debian as slim as Docker's for a Pi, and on top of it, for a Jetson, a Python with a torch that
# calls itself NVIDIA's. Exit status: 0 passed, 77 this machine can't run it (the reason is printed), else a failure.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/arm64_root.sh"

began=$SECONDS
images=("$@")
((${#images[@]})) || images=(pi-onnx pi-torch jetson)
most_bytes=400000000 # of the Pi image without torch, unpacked
nv_torch=2.5.0a0+872d972e41.nv24.8
name=localhost/edgetune-test

need test-images buildah
distribution
work=$(mktemp -d)
export CONTAINERS_STORAGE_CONF=$work/storage.conf
driver=${ARM64_STORAGE:-overlay} # vfs where overlay can't be mounted; it copies every layer whole
printf '[storage]\ndriver = "%s"\ngraphroot = "%s/graph"\nrunroot = "%s/run"\n' "$driver" "$work" "$work" >"$work/storage.conf"
trap 'umount "$work"/graph/overlay 2>/dev/null || true; rm -rf "$work"' EXIT

# What pip finds in the builds: wheels for the target and nothing else. The container files know nothing of it.
printf '[global]\nno-index = true\nfind-links = /wheels\ndisable-pip-version-check = true\nroot-user-action = ignore\n' >"$work/pip.conf"

# wheels FOLDER REQUIREMENT...: what the requirements resolve to on the target, as files.
wheels() {
    local folder=$1
    shift
    [ "$(cat "$folder/.whole" 2>/dev/null)" != "$*" ] || return 0
    rm -rf "$folder"
    mkdir -p "$folder"
    printf '%s\n' "$@" "hatchling>=1.26" |
        "$uv" pip compile --quiet --no-config --no-header --no-annotate --python-platform "$PLATFORM" \
            --python-version "$SUITE_PYTHON" --only-binary :all: --constraint "$checkout/requirements/cpu-aarch64.txt" - |
        grep -v '^edgetune' >"$folder/pins.txt" || cannot "the requirements could not be resolved for arm64"
    local tag platforms=()
    for tag in manylinux_2_{28,27,26,24,17}_aarch64 manylinux2014_aarch64; do platforms+=(--platform "$tag"); done
    "$checkout/.venv/bin/python" -m pip --version >/dev/null 2>&1 && host=$checkout/.venv/bin/python || host=python3
    "$host" -m pip download --quiet --quiet --no-deps --only-binary :all: "${platforms[@]}" --python-version "$SUITE_PYTHON" \
        --implementation cp --abi cp311 --abi abi3 --abi none --requirement "$folder/pins.txt" --dest "$folder" ||
        cannot "arm64 wheels could not be had"
    printf '%s\n' "$*" >"$folder/.whole"
}

# import_base IMAGE ARCHIVE [FOLDER PLACE]: an image of one layer, and one more with a folder's content.
import_base() {
    local container
    container=$(buildah from --arch arm64 scratch)
    buildah add --quiet "$container" "$2" / >/dev/null
    (($# == 2)) || buildah add --quiet "$container" "$3" "$4" >/dev/null
    buildah config --cmd /bin/bash --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    buildah commit --quiet --format docker --rm "$container" "$1" >/dev/null
}

slim_base() {
    debian "$cache/slim-$SUITE.tar" --variant=minbase --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-include=/usr/share/doc/*/copyright'
    import_base "$name-slim" "$cache/slim-$SUITE.tar"
}

# A stand-in for NVIDIA's image: real code of torch under the name and version of a Jetson's build.
jetson_base() {
    local site=$cache/jetson-site
    if [ ! -e "$site/.whole" ]; then
        rm -rf "$site"
        mkdir -p "$site"
        for_arm64 "$site" "${OLDEST[0]}" "numpy<2.4" || cannot "arm64 wheels could not be had"
        local old=$site/torch-${OLDEST[0]#torch==}.dist-info
        mv "$old" "$site/torch-$nv_torch.dist-info"
        sed -i "s/^Version: .*/Version: $nv_torch/" "$site/torch-$nv_torch.dist-info/METADATA"
        sed -i "s/^__version__ = .*/__version__ = '$nv_torch'/" "$site/torch/version.py"
        touch "$site/.whole"
    fi
    # Unpacked and not configured, which takes seconds and runs nothing; only the users have to be there.
    # shellcheck disable=SC2016
    debian "$cache/python-$SUITE.tar" --variant=extract --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
        --include=python3-minimal,python3,python3-pip,python3-venv,libc-bin,coreutils,dash,bash,grep,sed,libgomp1,libstdc++6 \
        --include=base-files,base-passwd,passwd,ca-certificates \
        --extract-hook='cd "$1/usr/share/base-passwd" && for name in passwd group; do cp $name.master "$1/etc/$name"; done'
    import_base "$name-nvidia" "$cache/python-$SUITE.tar" "$site" /usr/local/lib/python3.11/dist-packages
}

# build IMAGE FILE WHEELS BUILD-ARGUMENT...
build() {
    local image=$1 file=$2 folder=$3
    shift 3
    local words=()
    for word; do words+=(--build-arg "$word"); done
    buildah bud --quiet --isolation chroot --arch arm64 --layers --format docker "${words[@]}" --build-arg VERSION=test \
        -v "$folder:/wheels:ro" -v "$work/pip.conf:/etc/pip.conf:ro" -t "$name-$image" -f "$checkout/$file" "$checkout" \
        >"$work/build.log" 2>&1 || { tail -30 "$work/build.log"; return 1; }
}

# Sizes of an image: what its files take unpacked, and each layer that the container file adds to the base.
sizes() {
    local container mounted
    container=$(buildah from --arch arm64 --pull-never "$1" 2>/dev/null | tail -1)
    mounted=$(buildah mount "$container")
    bytes=$(du -sxB1 --apparent-size "$mounted" | cut -f1)
    buildah umount "$container" >/dev/null
    buildah rm "$container" >/dev/null
    printf 'arm64: %s: %d bytes unpacked, %s layers\n' "$1" "$bytes" \
        "$(buildah inspect --type image --format '{{len .OCIv1.RootFS.DiffIDs}}' "$1")"
}

# The image's own onnxruntime doesn't start under emulation: an older one is put before it for the fit. On arm64 itself the
# folder stays empty.
older_onnxruntime() {
    [ "$(cat "$cache/onnxruntime/.whole" 2>/dev/null)" != "${OLDEST[1]}" ] || return 0
    rm -rf "$cache/onnxruntime"
    mkdir -p "$cache/onnxruntime"
    [ "$(uname -m)" = aarch64 ] || for_arm64 "$cache/onnxruntime" "${OLDEST[1]}" || cannot "arm64 wheels could not be had"
    chmod -R a+rX "$cache/onnxruntime"
    echo "${OLDEST[1]}" >"$cache/onnxruntime/.whole"
}

# used IMAGE FIT: the commands a user would run, as the image's user, in one container with a folder of its own.
used() {
    local container fitted=$2
    container=$(buildah from --arch arm64 --pull-never "$1" 2>/dev/null | tail -1)
    cp -r "$checkout/tests/fixtures/devices/rpi5" "$work/board"
    older_onnxruntime
    cp -r "$cache/onnxruntime" "$work/older"
    chmod -R a+rX "$work/board"
    buildah run --isolation chroot -v "$work/board:/board:ro" -v "$work/older:/older:ro" "$container" -- bash -c "
        set -euo pipefail
        [ \$(id -u) = 1000 ] && id -Gn | grep -qw video
        edgetune --version
        edgetune profile --root /board | grep 'Raspberry Pi 5'
        edgetune profile --quick --out profile.json
        edgetune sample-data digits digits
        edgetune plan digits --model vit_nano_patch8_64 --image-size 32 --profile profile.json --memory 900MB --out plan.json
        $fitted" || { buildah rm "$container" >/dev/null; return 1; }
    rm -rf "$work/board" "$work/older"
    buildah rm "$container" >/dev/null
}

described() {
    local found
    found=$(buildah inspect --type image --format '{{.Docker.Architecture}} {{.Docker.Config.User}} {{index .Docker.Config.Labels "org.opencontainers.image.title"}} {{.Docker.Config.Entrypoint}} {{.Docker.Config.Healthcheck.Test}}' "$1")
    [ "$found" = "arm64 1000 edgetune [edgetune] [CMD edgetune --version]" ] || { echo "$1 is described as: $found" >&2; return 1; }
}

# Digests of every file of the base's torch: installing beside it must leave each byte as it was.
torch_files() {
    local container mounted
    container=$(buildah from --arch arm64 --pull-never "$1" 2>/dev/null | tail -1)
    mounted=$(buildah mount "$container")
    (cd "$mounted/usr/local/lib/python3.11/dist-packages" && find torch torch-*.dist-info numpy numpy-*.dist-info -type f \
        ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum | sha256sum)
    buildah umount "$container" >/dev/null
    buildah rm "$container" >/dev/null
}

fit='for part in train val; do for class in 0 1 2; do mkdir -p few/$part/$class; (cd digits/$part/$class; cp $(ls | head -n 8) ../../../few/$part/$class/); done; done
        [ ENGINE != onnx ] || export PYTHONPATH=/older
        edgetune fit few --model vit_nano_patch8_64 --image-size 32 --batch-size 6 --epochs 1 --workers 0 --profile profile.json --out run --quiet --engine ENGINE
        test -s run/best.safetensors && test -s run/report.html'

step "base images" slim_base
for image in "${images[@]}"; do
    case $image in
    pi-*)
        engine=${image#pi-}
        step "wheels for $image" wheels "$cache/wheels-$engine" "edgetune[$engine] @ file://$wheel"
        step "$image built" build "$image" Dockerfile.pi "$cache/wheels-$engine" "BASE_IMAGE=$name-slim" "ENGINE=$engine"
        step "$image used" used "$name-$image" "${fit//ENGINE/$engine}"
        ;;
    jetson)
        step "the stand-in for NVIDIA's image" jetson_base
        step "wheels for $image" wheels "$cache/wheels-onnx" "edgetune[onnx] @ file://$wheel"
        step "$image built" build "$image" Dockerfile.jetson "$cache/wheels-onnx" "BASE_IMAGE=$name-nvidia"
        [ "$(torch_files "$name-nvidia")" = "$(torch_files "$name-$image")" ] || { echo "torch of the base has changed" >&2; exit 1; }
        echo "arm64: every file of the base's torch $nv_torch is as it was"
        step "$image used" used "$name-$image" "python3 -c 'import torch; assert torch.__version__ == \"$nv_torch\", torch.__version__'
        ${fit//ENGINE/torch}"
        ;;
    *) echo "there is no image $image: pi-onnx, pi-torch or jetson" >&2 && exit 2 ;;
    esac
    described "$name-$image"
    sizes "$name-$image"
    [ "$image" != pi-onnx ] || ((bytes < most_bytes)) || { echo "the Pi image has $bytes bytes, more than $most_bytes" >&2; exit 1; }
done
sizes "$name-slim"
printf 'arm64: images passed in %d s\n' "$((SECONDS - began))"
