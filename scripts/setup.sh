#!/bin/sh
# Make .venv and fill it from the hashed lock files. Called by `make setup`; safe to run again.
#
#   PYTHON=python3.12 make setup     picks the interpreter
#
# Nothing is installed outside this folder, and nothing that is not in a lock file is downloaded.
set -eu

cd "$(dirname "$0")/.."
venv=.venv

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

pick_python() {
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" || fail "PYTHON=$PYTHON does not run or is older than Python 3.11."
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if new_enough "$candidate"; then echo "$candidate"; return; fi
    done
    fail "no Python 3.11 or newer found; name one with PYTHON=/path/to/python3 make setup."
}

# Stock Debian and Ubuntu leave `ensurepip` out of python3, so that `python3 -m venv` fails half-way. An environment without
# pip can still be made there; this finds a pip to fill it with, in the order of how little it needs.
find_pip_elsewhere() {
    if "$python" -m pip --python "$venv/bin/python" --version >/dev/null 2>&1; then
        pip_kind=host
        return
    fi
    if command -v uv >/dev/null 2>&1; then
        pip_kind=uv
        return
    fi
    pip_wheel=$(ls /usr/share/python-wheels/pip-*.whl 2>/dev/null | tail -n 1 || true)
    if [ -z "$pip_wheel" ] && command -v apt-get >/dev/null 2>&1 && command -v dpkg >/dev/null 2>&1; then
        # Needs no root and changes nothing outside build/: fetch Debian's own pip wheel and unpack it here.
        mkdir -p build/pip
        (cd build/pip && apt-get -qq download python3-pip-whl && dpkg -x python3-pip-whl_*.deb .) >/dev/null 2>&1 || true
        pip_wheel=$(ls "$PWD"/build/pip/usr/share/python-wheels/pip-*.whl 2>/dev/null | tail -n 1 || true)
    fi
    [ -n "$pip_wheel" ] || fail "found no pip and no uv either: install the package named above, then run make setup again."
    pip_kind=wheel
}

install() {
    case "$pip_kind" in
        own) "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" ;;
        host) "$python" -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check "$@" ;;
        wheel) PYTHONPATH="$pip_wheel" "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" ;;
        uv) uv pip install --quiet --python "$venv/bin/python" "$@" ;;
    esac
}

make_venv() {
    if new_enough "$venv/bin/python"; then return; fi
    rm -rf "$venv"
    say "making $venv with $("$python" -c 'import platform, sys; print(sys.executable, platform.python_version())')"
    if "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        "$python" -m venv "$venv"
        return
    fi
    say "this Python cannot make a complete environment (Debian, Ubuntu: apt-get install python3-venv); trying without that package"
    if "$python" -c 'import venv' >/dev/null 2>&1; then
        "$python" -m venv --without-pip "$venv"
    elif command -v uv >/dev/null 2>&1; then
        uv venv --quiet --python "$python" "$venv"
    else
        fail "the venv module is missing: install the package named above, then run make setup again."
    fi
}

lock=${1:-dev}
python=$(pick_python)
make_venv
if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then pip_kind=own; else find_pip_elsewhere; fi

say "installing requirements/$lock.txt (every file is checked against its hash)"
install --require-hashes --only-binary :all: -r "requirements/$lock.txt"
if [ "$lock" = dev ]; then
    say "installing muster itself, editable"
    # The build backend comes from the lock above: no build isolation, so nothing unlocked is fetched.
    install --no-deps --no-build-isolation --editable .
fi
say "done"
