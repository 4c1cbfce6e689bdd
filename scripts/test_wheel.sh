#!/bin/sh
# Builds gradpath as it is released and tries it as a user has it: for every Python given (3.11 3.12 3.13), an sdist, a
# wheel from it and one without a C compiler, in a new environment and an empty folder. What is not installed on this
# machine is said; the status is 0 where everything else has passed.
set -eu
. "$(dirname "$0")/pythons.sh"
[ $# -gt 0 ] || set -- 3.11 3.12 3.13

refuse() {
    echo "$1" >&2
    exit 1
}

# Everything for the Python $1, which is $python, in the folder $2.
try() (
    set -eu
    mkdir "$2"
    cd "$2"
    pip="-m pip --quiet --disable-pip-version-check"
    "$python" -m venv builder
    builder/bin/python $pip install build
    builder/bin/python -m build --outdir from_sdist "$scratch/checkout" >build.log || refuse "$(cat build.log)"
    "$python" $pip wheel --no-deps --wheel-dir from_checkout "$scratch/checkout"
    CC=/bin/false "$python" $pip wheel --no-deps --wheel-dir without_compiler "$scratch/checkout"
    tag=cp$(echo "$1" | tr -d .)
    compiled=$(echo from_checkout/gradpath-*-"$tag-$tag"-*.whl)
    pure=$(echo without_compiler/gradpath-*-py3-none-any.whl)
    [ -f "$compiled" ] || refuse "The wheel with the compiled loop is $(ls from_checkout)."
    [ -f "$pure" ] || refuse "The wheel without a compiler is $(ls without_compiler)."
    cmp "$compiled" "from_sdist/$(basename "$compiled")"
    for other in 3.11 3.12 3.13; do
        other_python=$(interpreter "$other")
        if [ "$other" != "$1" ] && [ -n "$other_python" ] &&
            "$other_python" $pip install --no-deps --target other "$compiled" 2>/dev/null; then
            refuse "Python $other has installed $(basename "$compiled")."
        fi
    done

    "$python" -m venv user
    user/bin/python $pip install "$compiled"
    cp "$scratch/checkout/scripts/try_installed.py" .
    mkdir empty
    (cd empty && ../user/bin/python ../try_installed.py all)
    for numpy in $oldest newest; do
        [ "$numpy" = newest ] || [ -z "${oldest_tried:-}" ] || continue
        mkdir "numpy_$numpy"
        if [ "$numpy" = newest ]; then
            user/bin/python $pip install --upgrade --no-deps --only-binary numpy numpy
        else
            user/bin/python $pip install --no-deps --only-binary numpy "numpy==$numpy" 2>/dev/null || continue
        fi
        (cd "numpy_$numpy" && ../user/bin/python ../try_installed.py compiled)
        [ "$numpy" = newest ] || oldest_tried=$numpy
    done
    [ -n "${oldest_tried:-}" ] || refuse "No old NumPy could be installed."

    user/bin/python $pip install --force-reinstall --no-deps "$pure"
    mkdir pure
    (cd pure && ../user/bin/python ../try_installed.py pure)
    cmp empty/readings pure/readings # the bits of every run's measurements
)
oldest="2.0.2 2.1.2 2.2.0" # the first of them that there is for a Python

mkdir "$scratch/checkout"
git ls-files -z --cached --others --exclude-standard | tar -c --null -T - | tar -x -C "$scratch/checkout"
for version in "$@"; do
    python=$(interpreter "$version")
    if [ -z "$python" ]; then
        say "not run: Python $version, which is not installed here"
        continue
    fi
    ran=$((ran + 1))
    set +e # errexit holds inside `try`, which is no part of a condition
    try "$version" "$scratch/$version"
    status=$?
    set -e
    [ "$status" -eq 0 ] && say "passed: Python $version" || { failed=$((failed + 1)) && say "FAILED: Python $version"; }
    rm -rf "${scratch:?}/$version"
done

echo
cat "$told"
[ "$failed" -eq 0 ] && [ "$ran" -gt 0 ]
