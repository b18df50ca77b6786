#!/bin/sh
# Install as a service, or remove it again. `make install` and `make uninstall` call this.
#
#   deploy/install.sh install|uninstall VENV PYTHON PREFIX BINDIR DESTDIR
#
# VENV     environment to build the package with
# PYTHON   interpreter that the service runs on; empty: the distribution's
# PREFIX   the service's own environment (/opt/standoff); BINDIR gets a link to its command
# DESTDIR  install below this folder instead of /, for packages and images: touches nothing that runs
#
# uninstall leaves /etc/standoff and /var/lib/standoff.
set -eu
cd "$(dirname "$0")/.."
[ $# -eq 6 ] || {
    echo "usage: deploy/install.sh install|uninstall VENV PYTHON PREFIX BINDIR DESTDIR" >&2
    exit 2
}
action=$1
venv=$2
asked=$3
prefix=$4
bindir=$5
destdir=${6%/}

# Where administrators' own software goes; systemd, sysusers, tmpfiles and man look there.
units=$destdir/usr/local/lib/systemd/system
sysusers=$destdir/usr/local/lib/sysusers.d
tmpfiles=$destdir/usr/local/lib/tmpfiles.d
man=$destdir/usr/local/share/man
configuration=$destdir/etc/standoff

fail() {
    echo "standoff: $*" >&2
    exit 1
}

# The service runs as a user of its own, with ProtectHome: it cannot reach an interpreter in somebody's home.
service_python() {
    python=$(deploy/find_python.sh "$asked" /usr/bin/python3)
    base=$("$python" -c 'import sys; print(sys.base_prefix)')
    case $base in
        /root/* | /home/*) fail "the service cannot use $base: name another Python, as PYTHON=/usr/bin/python3" ;;
    esac
    echo "$python"
}

# A new environment beside the old one, then two renames: at no time is there half an installation.
install_environment() {
    target=$destdir$prefix
    rm -rf "$target.new" "$target.old"
    mkdir -p "$(dirname "$target")"
    "$1" -m venv "$target.new"
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT INT TERM
    "$venv/bin/python" -c 'import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])' \
        "$scratch" >"$scratch/log" 2>&1 || {
        cat "$scratch/log"
        fail "no source archive"
    }
    "$target.new/bin/python" -m pip --disable-pip-version-check install -qq --no-compile "$scratch"/*.tar.gz ||
        fail "the package did not build; the message is above"
    # Upgrades make a new environment: this one needs no installer.
    "$target.new/bin/python" -m pip --disable-pip-version-check uninstall -qq --yes setuptools pip 2>/dev/null
    # Scripts name the interpreter by its path: by the one it will have.
    grep -rlI --exclude-dir=lib -e "$target.new" "$target.new" | while read -r file; do
        sed -i "s|$target.new|$prefix|g" "$file"
    done
    "$target.new/bin/python" -m compileall -q -s "$target.new" -p "$prefix" "$target.new/lib"
    [ ! -e "$target" ] || mv "$target" "$target.old"
    mv "$target.new" "$target"
    rm -rf "$target.old"
}

put() { # put FILE FOLDER [MODE]
    mkdir -p "$2"
    install -m "${3:-644}" "$1" "$2/"
}

put_new() { # put_new FILE FOLDER MODE: never over what is there
    if [ -e "$2/$(basename "$1")" ]; then
        echo "kept $2/$(basename "$1")"
    else
        put "$1" "$2" "$3"
    fi
}

install_files() {
    mkdir -p "$destdir$bindir"
    ln -sfn "$prefix/bin/standoff" "$destdir$bindir/standoff"
    for unit in deploy/standoff-server.service deploy/standoff-loader.service deploy/standoff.target; do
        put "$unit" "$units"
        sed -i "s|/opt/standoff/|$prefix/|g" "$units/$(basename "$unit")"
    done
    put deploy/sysusers.d/standoff.conf "$sysusers"
    put deploy/tmpfiles.d/standoff.conf "$tmpfiles"
    for page in docs/man/*.[1-8]; do
        [ ! -e "$page" ] || put "$page" "$man/man${page##*.}"
    done
    put_new deploy/sample/standoff.toml "$configuration" 644
    put_new deploy/sample/standoff.env "$configuration" 600
}

systemd_runs() {
    [ -z "$destdir" ] && [ -d /run/systemd/system ]
}

prepare_system() {
    [ -z "$destdir" ] || return 0
    if command -v systemd-sysusers >/dev/null; then
        systemd-sysusers "$sysusers/standoff.conf"
        systemd-tmpfiles --create "$tmpfiles/standoff.conf"
    fi
    if systemd_runs; then
        systemctl daemon-reload
    fi
}

remove_all() {
    if systemd_runs; then
        systemctl disable --now standoff.target standoff-server.service standoff-loader.service 2>/dev/null || true
    fi
    rm -rf "$destdir$prefix"
    rm -f "$destdir$bindir/standoff" "$sysusers/standoff.conf" "$tmpfiles/standoff.conf" \
        "$units/standoff-server.service" "$units/standoff-loader.service" "$units/standoff.target"
    for page in docs/man/*.[1-8]; do
        rm -f "$man/man${page##*.}/$(basename "$page")"
    done
    if systemd_runs; then
        systemctl daemon-reload
    fi
    echo "left in place: $configuration, $destdir/var/lib/standoff, the users standoff and standoff-loader"
}

case $action in
    install)
        python=$(service_python)
        deploy/prerequisites.sh build "$python"
        install_environment "$python"
        install_files
        prepare_system
        echo "installed $prefix; settings in $configuration"
        echo "start it:   systemctl enable --now standoff.target"
        echo "after an upgrade:   systemctl restart standoff-loader, then systemctl restart standoff-server"
        ;;
    uninstall) remove_all ;;
    *) fail "no such action: $action" ;;
esac
