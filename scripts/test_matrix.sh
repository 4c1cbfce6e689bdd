#!/bin/sh
# Runs tests on every Python in $PYTHONS with the oldest and the newest NumPy that it has: $TESTS,
# as one would write them behind `pytest`, or without any the whole default suite. In a copy of the
# checkout, which is gone afterwards. What is not installed on this machine is said; the status is 0
# where everything else has run and passed.
set -eu
oldest="2.0.2 2.1.2 2.2.0 2.3.0" # the first of them that there is for a Python
. "$(dirname "$0")/pythons.sh"

# A combination: $1 the Python, in $venv, with the NumPy that is installed there.
combination() {
    numpy=$("$venv/bin/python" -c 'import numpy; print(numpy.__version__)')
    name="Python $1, NumPy $numpy"
    ran=$((ran + 1))
    rm -rf "$scratch/checkout"
    mkdir "$scratch/checkout"
    git ls-files -z --cached --others --exclude-standard | tar -c --null -T - | tar -x -C "$scratch/checkout"
    (
        cd "$scratch/checkout"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
        why=$("$venv/bin/python" -c 'from gradpath.engine.compiled import CHOICE; print(CHOICE.reason)')
        if [ -n "$why" ]; then
            echo "The compiled loop is $why." >&2
            exit 1
        fi
        eval "set -- ${TESTS:-}"
        "$venv/bin/python" -m pytest -q "$@"
    ) && say "passed: $name" || { failed=$((failed + 1)) && say "FAILED: $name"; }
}

for version in ${PYTHONS:-3.11 3.12 3.13}; do
    python=$(interpreter "$version")
    if [ -z "$python" ]; then
        say "not run: Python $version, which is not installed here"
        continue
    fi
    venv=$scratch/$version
    "$python" -m venv "$venv"
    pip="$venv/bin/python -m pip install --quiet --disable-pip-version-check"
    if ! $pip --require-hashes -r requirements.lock; then
        failed=$((failed + 1)) && say "FAILED: Python $version: requirements.lock does not install"
        continue
    fi
    $pip --upgrade --no-deps --only-binary numpy numpy
    combination "$version"
    for numpy in $oldest; do
        if $pip --no-deps --only-binary numpy "numpy==$numpy" 2>/dev/null; then
            combination "$version"
            break
        fi
        say "not run: Python $version, NumPy $numpy, which there is no wheel of"
    done
    rm -rf "$venv"
done

echo
cat "$told"
[ "$failed" -eq 0 ] && [ "$ran" -gt 0 ]
