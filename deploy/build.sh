#!/bin/sh
# Make the virtual environment and put the package into it, editable, with its compiled modules.
#
#   deploy/build.sh package VENV PYTHON   the environment, the package and what it needs
#   deploy/build.sh extras VENV NAME...   what the named extras of pyproject.toml need
set -eu
here=$(dirname "$0")

# The strings of one list of pyproject.toml, one a line: `requirements build-system requires`.
requirements() {
    "$venv/bin/python" - "$@" <<'PYTHON'
import sys, tomllib
node = tomllib.load(open("pyproject.toml", "rb"))
for key in sys.argv[1:]:
    node = node[key]
print("\n".join(node))
PYTHON
}

pip_install() {
    "$venv/bin/python" -m pip --disable-pip-version-check install -qq "$@"
}

make_venv() {
    if "$venv/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        return
    fi
    python=$("$here/find_python.sh" "$1")
    echo "making $venv with $python"
    rm -rf "$venv"
    "$python" -m venv "$venv"
}

# There is no slow mode: without the compiled modules nothing runs, so a build that lacks one has failed.
check_modules() {
    modules=$("$venv/bin/python" -c 'import tomllib
for module in tomllib.load(open("pyproject.toml", "rb"))["tool"]["setuptools"]["ext-modules"]:
    print(module["name"])')
    # shellcheck disable=SC2086  # a list of words
    (cd / && "$python_of_venv" -c 'import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)' $modules)
}

build_package() {
    make_venv "$1"
    python_of_venv=$(cd "$venv/bin" && pwd)/python
    requirements build-system requires >"$venv/build-requires.txt"
    pip_install -r "$venv/build-requires.txt"
    echo "compiling"
    { pip_install --no-build-isolation --editable . && check_modules; } || {
        echo "standoff: the compiled modules did not build; the compiler's message is above." >&2
        echo "standoff: there is no slow mode without them: mend the build and run make again." >&2
        exit 1
    }
}

install_extras() {
    for extra; do
        requirements project optional-dependencies "$extra" >"$venv/$extra-requires.txt"
        pip_install -r "$venv/$extra-requires.txt"
    done
}

[ $# -ge 2 ] || {
    echo "usage: deploy/build.sh package VENV PYTHON | extras VENV NAME..." >&2
    exit 2
}
action=$1
venv=$2
shift 2
case $action in
    package) build_package "${1:-}" ;;
    extras) install_extras "$@" ;;
esac
