#!/bin/sh
# The compiled loop under the sanitizers of addresses and of undefined behaviour, in the environment
# $1: its tests, and its fuzzer for $2 seconds from seed $3. The first report ends it, with a status
# that is not 0.
set -eu
python=$PWD/$1/bin/python
compiler=${CC:-gcc}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/src"
cp -r src/gradpath "$scratch/src/"
ln -s "$PWD/conf" "$scratch/conf"
rm -f "$scratch"/src/gradpath/engine/_replay.*.so
suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
includes=$("$python" -c 'import numpy, sysconfig; print("-I" + sysconfig.get_path("include"), "-I" + numpy.get_include())')
# shellcheck disable=SC2086 # two words
"$compiler" -shared -fPIC -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all \
    -Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers -Werror \
    $includes src/gradpath/engine/_replay.c -o "$scratch/src/gradpath/engine/_replay$suffix"

under_sanitizers() {
    env LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libubsan.so)" \
        ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 \
        PYTHONMALLOC=malloc PYTHONPATH="$scratch/src" "$python" "$@"
}
under_sanitizers -c 'import gradpath.engine._replay as built; print("Under the sanitizers:", built.__file__)'
under_sanitizers -m pytest -q -n0 -s -p no:cacheprovider tests/test_replay.py tests/test_replay_border.py
under_sanitizers -W ignore tests/fuzz/replay_border.py "${2:-60}" "${3:-0}"
