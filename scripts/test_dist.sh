#!/usr/bin/env bash
# The wheel and the sdist of dist/, each in a clean environment of this machine: what a user does after `pip install`.
#
#     make test-dist              # builds dist/ and calls this
#
# EXTRA names the engine (default: torch). On a PC the index's torch is large; UV_FIND_LINKS or UV_INDEX_URL name another.
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
uv=$(realpath "${UV:-$(command -v uv)}")
extra=${EXTRA:-torch}
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$checkout/edgetune/__about__.py")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH

"$uv" venv --quiet --python "${PYTHON:-python3}" "$work/clean"
for package in "$checkout/dist/edgetune-$version-py3-none-any.whl" "$checkout/dist/edgetune-$version.tar.gz"; do
    began=$SECONDS
    "$uv" pip install --quiet --python "$work/clean" --reinstall-package edgetune "edgetune[$extra] @ file://$package"
    cd "$work" # away from the checkout, which must not stand in for what is installed
    edgetune=$work/clean/bin/edgetune
    [ "$("$edgetune" --version)" = "edgetune $version" ]
    "$edgetune" profile --root "$checkout/tests/fixtures/devices/rpi5" | grep 'Raspberry Pi 5'
    "$edgetune" selftest
    printf 'dist: %s passed in %d s\n' "${package##*/}" "$((SECONDS - began))"
done
