#!/bin/sh
# Fetch the programs that `make bench` measures muster against and that this machine lacks: redis-server and GNU parallel.
# On Debian and Ubuntu their packages are unpacked into build/bench/root: nothing is installed, nothing is started, and no root
# is needed. Elsewhere install them yourself; what is missing is named in the table and left out.
set -eu

cd "$(dirname "$0")/.."
root=build/bench/root
missing=
for program in redis-server parallel; do
    if ! command -v "$program" >/dev/null 2>&1 && [ ! -e "$root/usr/bin/$program" ]; then missing="$missing $program"; fi
done
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1 || ! command -v dpkg >/dev/null 2>&1; then
    echo "bench: not found, and no apt-get to fetch it:$missing" >&2
    exit 1
fi

wanted() {
    # What an installation would add, the packages it depends on included.
    # shellcheck disable=SC2086 -- a list of names
    apt-get -qq --simulate --no-install-recommends install $missing 2>/dev/null | awk '/^Inst / { print $2 }'
}

echo "bench: unpacking$missing into $root"
mkdir -p "$root" build/bench/packages
packages=$(wanted)
if [ -z "$packages" ] && [ "$(id -u)" = 0 ]; then
    apt-get -qq update >/dev/null 2>&1 || true
    packages=$(wanted)
fi
if [ -z "$packages" ]; then
    echo "bench: apt-get knows no packages for:$missing" >&2
    exit 1
fi
# apt drops its privileges to write, which needs a folder that everybody may write to; so it is told not to.
(cd build/bench/packages && timeout 120 apt-get -qq -o APT::Sandbox::User=root download $packages >/dev/null)
for package in build/bench/packages/*.deb; do dpkg -x "$package" "$root"; done
rm -rf build/bench/packages
