#!/bin/sh
# Makes a virtual environment with the newest Python that can, and installs into it exactly the pinned versions.
# Called by the Makefile from the repository's root:
#     PYTHON=optional-interpreter tools/venv.sh DIRECTORY PIP-ARGUMENT...
# Written for a bare machine: nothing but sh and a Python is there yet.
set -eu

venv=$1
shift

# Prints the version and succeeds for an interpreter that we support.
version_of() {
    "$1" -c 'import sys
v = sys.version_info[:2]
print("%d.%d" % v)
sys.exit(0 if (3, 10) <= v and sys.implementation.name == "cpython" else 1)' 2>/dev/null
}

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python='' seen='' no_venv=''
    for candidate in ${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3.10 python3}; do
        version=$(version_of "$candidate") || { [ -z "$version" ] || seen="$seen $candidate ($version)"; continue; }
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            python=$candidate
            break
        fi
        no_venv=${no_venv:-$candidate}
    done
    if [ -z "$python" ] && [ -n "$no_venv" ]; then
        echo "error: '$no_venv -m venv' does not work: its ensurepip module is missing." >&2
        echo "On Debian and Ubuntu: apt install ${no_venv##*/}-venv. Then run make again." >&2
        exit 1
    elif [ -z "$python" ]; then
        echo "error: RaftKV needs Python 3.10 or newer; found:${seen:- none that works}." >&2
        echo "Install one, or name one: make PYTHON=/path/to/python3.12" >&2
        exit 1
    fi
    echo "==> Making $venv with Python $version"
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi

# A Python newer than the newest pinned one takes the newest pins.
pins=constraints/py$(version_of "$venv/bin/python").txt
[ -f "$pins" ] || pins=constraints/py3.14.txt

echo "==> Installing into $venv: $*"
"$venv/bin/python" -m pip install --quiet --upgrade --constraint "$pins" pip setuptools
exec "$venv/bin/python" -m pip install --progress-bar on --no-build-isolation --constraint "$pins" "$@"
