# Sourced by scripts that try gradpath on several Pythons: a folder $scratch, gone at the end, the lines to be
# said again at the end in $told, and how many combinations have run and failed.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
told=$scratch/told
failed=0 ran=0

# Where the Python of version $1 is; nothing where it is not installed.
interpreter() {
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
        if [ "$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$1" ]; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
}

say() {
    echo "$1" | tee -a "$told"
}
