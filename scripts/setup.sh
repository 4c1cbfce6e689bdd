#!/bin/sh
# Builds the environment in $1 from the hash-pinned lock file: with uv where it is installed, with
# pip otherwise.
set -eu
venv=$1

python=
fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'
found=
for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
    if [ -n "$candidate" ] && version=$("$candidate" --version 2>/dev/null); then
        if "$candidate" -c "$fits" 2>/dev/null; then
            python=$candidate
            break
        fi
        found="${found:+$found, }$candidate, which is $version"
        [ "$candidate" != "${PYTHON:-}" ] || break # as it was asked for, or not at all
    fi
done
if [ -z "$python" ]; then
    echo "gradpath needs Python 3.11, 3.12 or 3.13 (Hydra 1.3 does not start on 3.14) and found ${found:-none}. Install one" \
        "(Debian, Ubuntu: apt install python3 python3-venv), or say where it is: make setup PYTHON=/path/to/python3.12" >&2
    exit 1
fi
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    echo "$python has no venv module. Install it (Debian, Ubuntu: apt install python3-venv)." >&2
    exit 1
fi

echo "Building the environment in $venv with $("$python" --version); this takes a minute or two."
"$python" -m venv "$venv"
if command -v uv >/dev/null 2>&1; then
    uv pip install --quiet --python "$venv/bin/python" --compile-bytecode --require-hashes -r requirements.lock
    uv pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation -e .
else
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
fi
if ! "$venv/bin/python" -c 'import gradpath.engine._replay' 2>/dev/null; then
    echo "No C compiler, or no Python headers: the loop over time runs in Python, and small networks train up to three"
    echo "times more slowly. (Debian, Ubuntu: apt install gcc python3-dev, then make clean setup.)"
fi
echo "Ready: $venv/bin/gradpath"
