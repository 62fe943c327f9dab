#!/usr/bin/env bash
# Usage: tools/setup.sh PYTHON DIRECTORY
# Builds the virtual environment DIRECTORY: the pinned requirements and localmix itself, editable.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 venv=$2

fail() {
    echo "setup: $*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# An interrupted set-up leaves a directory without pip, which is built again.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    "$python" -c '' 2>/dev/null || fail "no Python at '$python': install Python 3.10 or newer, or name one: make setup PYTHON=/path/to/python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$("$python" --version 2>&1) is too old: name a Python 3.10 or newer: make setup PYTHON=/path/to/python3"

    # Debian and Ubuntu ship the module that puts pip into a virtual environment as a package of its own.
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        echo "setup: installing $package"
        { as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes "$package"; } ||
            fail "'$python' cannot build virtual environments: run 'sudo apt-get install $package', then try again"
    fi
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi

"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/uv.txt
export VIRTUAL_ENV=$PWD/$venv
"$venv/bin/uv" pip install --require-hashes --requirement requirements/test.txt
# The pinned setuptools builds localmix, so no version is left to chance.
"$venv/bin/uv" pip install --no-deps --no-build-isolation --editable .
