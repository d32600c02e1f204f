#!/bin/sh
# Write requirements/*.txt anew from pyproject.toml: hashes for every platform, no index addresses.
# Called by `make lock`. Needs uv for this only; if it is not there, it goes into an environment of its own under build/.
set -eu

cd "$(dirname "$0")/.."
uv=$(command -v uv || true)
if [ -z "$uv" ]; then
    if [ ! -x build/uv/bin/uv ]; then
        .venv/bin/python -m venv build/uv
        build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv
    fi
    uv=build/uv/bin/uv
fi

lock() {
    name=$1
    shift
    echo "lock: requirements/$name.txt"
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
        ${UPGRADE:+--upgrade} pyproject.toml "$@" --output-file "requirements/$name.txt"
}

lock core
# The others repeat the core's pins, so that any of the files can be installed alone or beside another.
lock dev --extra dev --constraints requirements/core.txt
lock bench --extra bench --constraints requirements/core.txt
lock fuzz --extra fuzz --constraints requirements/core.txt
