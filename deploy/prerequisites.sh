#!/bin/sh
# Make sure that what lies below Python is there, and change nothing where it is.
#
#   deploy/prerequisites.sh build [PYTHON]   C compiler, Python's headers, venv: installed with apt when root or with
#                                            sudo, else named
#   deploy/prerequisites.sh test             etcd, dnsperf, dig, spin, groff, systemd-nspawn, other name servers to
#                                            compare with, and the like: unpacked into .cache/tools, never installed, so
#                                            that no daemon starts and nothing of the machine changes; works without root
set -eu
here=$(dirname "$0")
export DEBIAN_FRONTEND=noninteractive

fail() {
    echo "standoff: $*" >&2
    exit 1
}

have() {
    command -v "$1" >/dev/null 2>&1
}

# ---------------------------------------------------------------- build

compiles() {
    dir=$(mktemp -d)
    printf '#include <stdatomic.h>\n#include <sys/socket.h>\nint main(void) { return 0; }\n' >"$dir/a.c"
    result=0
    "${CC:-gcc}" -o "$dir/a" "$dir/a.c" >/dev/null 2>&1 || result=1
    rm -rf "$dir"
    return $result
}

has_venv() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null
}

has_headers() {
    "$1" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null
}

# The distribution's Python takes what it lacks from packages; any other brings it along or never will.
is_the_distributions() {
    case $("$1" -c 'import sys; print(sys.base_prefix)') in
        /usr) return 0 ;;
        *) return 1 ;;
    esac
}

missing_for_build() {
    compiles || printf ' gcc libc6-dev'
    python=$("$here/find_python.sh" "$1" 2>/dev/null) || {
        printf ' python3 python3-venv python3-dev'
        return
    }
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    has_venv "$python" || printf ' %s-venv' "$version"
    has_headers "$python" || printf ' %s-dev' "$version"
}

apt_install() {
    have apt-get || fail "these packages are missing (names as in Debian): $*"
    as_root=
    if [ "$(id -u)" -ne 0 ]; then
        { have sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; }; } ||
            fail "these packages are missing: $*; as root: apt-get install $*"
        as_root="sudo DEBIAN_FRONTEND=noninteractive"
    fi
    echo "installing: $*"
    # Package lists may be absent or old: try with what is there, then once more with fresh ones.
    $as_root apt-get install -qq -y --no-install-recommends "$@" >/dev/null 2>&1 || {
        $as_root apt-get update -qq
        $as_root apt-get install -qq -y --no-install-recommends "$@" >/dev/null
    }
}

prepare_build() {
    packages=$(missing_for_build "$1")
    [ -n "$packages" ] || return 0
    if python=$("$here/find_python.sh" "$1" 2>/dev/null) && ! is_the_distributions "$python"; then
        { has_venv "$python" && has_headers "$python"; } ||
            fail "$python lacks its headers or the venv module; name another with PYTHON=/usr/bin/python3"
    fi
    # shellcheck disable=SC2086  # a list of words
    apt_install $packages
    packages=$(missing_for_build "$1")
    [ -z "$packages" ] || fail "still missing after the installation:$packages"
}

# ---------------------------------------------------------------- test

# One line a tool: the command, and the packages that it takes (`|` = the older name of the same thing).
TEST_TOOLS="etcd etcd-server
etcdctl etcd-client
dnsperf dnsperf
dig bind9-dnsutils|dnsutils
spin spin
systemd-nspawn systemd-container
systemd-analyze systemd
debootstrap debootstrap
wget wget
groff groff-base
named bind9
nsd nsd
knotd knot
pdns_server pdns-server pdns-backend-bind"

missing_tools() {
    echo "$TEST_TOOLS" | while read -r tool packages; do
        PATH="$tools/bin:$PATH:/usr/sbin:/sbin" command -v "$tool" >/dev/null || echo "$tool $packages"
    done
}

# apt with lists and a cache of our own when the machine has none (a fresh container) or is not ours to refresh.
apt_own() {
    apt-get -o Dir::State::Lists="$cache/apt/lists" -o Dir::Cache="$cache/apt" -o Debug::NoLocking=1 \
        -o APT::Sandbox::User= "$@"
}

# The tool's package and all that it needs and the machine lacks.
closure() {
    apt_own install -s --no-install-recommends "$@" 2>/dev/null | sed -n 's/^Inst \([^ ]*\) .*/\1/p'
}

package_of() {
    for name in $(echo "$1" | tr '|' ' '); do
        if [ -n "$(apt-cache -o Dir::State::Lists="$cache/apt/lists" -o Dir::Cache="$cache/apt" \
            search --names-only "^$name\$" 2>/dev/null)" ]; then
            echo "$name"
            return
        fi
    done
}

# A link to the program if it runs as it is; else a script that finds its libraries and scripts below $tools/root and
# execs it, which keeps the pid for who starts it.
offer_tool() {
    tool=$1
    for dir in usr/bin usr/sbin bin sbin; do
        [ -x "$root/$dir/$tool" ] && break
    done
    program=$root/$dir/$tool
    [ -x "$program" ] || return 0
    if [ "$tool" = etcd ] || [ "$tool" = etcdctl ]; then # static
        ln -sf "$program" "$tools/bin/$tool"
        return
    fi
    libraries=$(find "$root" -name '*.so*' -printf '%h\n' | sort -u | tr '\n' ':')
    rm -f "$tools/bin/$tool"
    {
        echo '#!/bin/sh'
        case $tool in
            debootstrap) echo "export DEBOOTSTRAP_DIR='$root/usr/share/debootstrap'" ;;
            *) [ -z "$libraries" ] || echo "export LD_LIBRARY_PATH='$libraries'\${LD_LIBRARY_PATH:-}" ;;
        esac
        case $tool in
            pdns_server)
                # Its backends are modules that it loads from a fixed place.
                echo "set -- --module-dir='$(dirname "$(find "$root" -name libbindbackend.so)")' \"\$@\""
                ;;
            systemd-analyze)
                echo "export SYSTEMD_UNIT_PATH='$root/usr/lib/systemd/system:$root/lib/systemd/system:'"
                ;;
            groff)
                share=$(echo "$root"/usr/share/groff/[0-9]*)
                echo "export GROFF_BIN_PATH='$root/usr/bin' GROFF_FONT_PATH='$share/font'"
                echo "export GROFF_TMAC_PATH='$root/etc/groff:$share/tmac'"
                ;;
        esac
        echo "exec '$program' \"\$@\""
    } >"$tools/bin/$tool"
    chmod 755 "$tools/bin/$tool"
}

prepare_test() {
    cache=$(pwd)/.cache
    tools=$cache/tools
    root=$tools/root
    missing=$(missing_tools)
    [ -n "$missing" ] || return 0
    names=$(echo "$missing" | cut -d' ' -f1 | tr '\n' ' ')
    { have apt-get && have dpkg-deb; } || fail "the tests need these programs on the PATH: $names"
    echo "fetching for the tests, into .cache/tools: $names"
    mkdir -p "$cache/apt/lists/partial" "$cache/apt/archives/partial" "$tools/bin" "$root"
    apt_own update -qq
    packages=$(echo "$missing" | while read -r _ needed; do
        for alternatives in $needed; do package_of "$alternatives"; done
    done)
    # shellcheck disable=SC2046,SC2086  # lists of words
    (cd "$cache/apt/archives" && apt_own download -qq $(closure $packages) >/dev/null)
    for deb in "$cache"/apt/archives/*.deb; do
        dpkg-deb -x "$deb" "$root"
    done
    rm -f "$cache"/apt/archives/*.deb
    echo "$missing" | while read -r tool _; do offer_tool "$tool"; done
    missing=$(missing_tools)
    [ -z "$missing" ] || fail "could not fetch for the tests: $(echo "$missing" | cut -d' ' -f1 | tr '\n' ' ')"
}

case "${1:-}" in
    build) prepare_build "${2:-}" ;;
    test) prepare_test ;;
    *) fail "usage: deploy/prerequisites.sh build [PYTHON] | test" ;;
esac
