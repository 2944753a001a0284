#!/usr/bin/env bash
# Installs the system packages that are missing, and only those (Debian, Ubuntu).
#
#   system.sh python PYTHON    a Python of 3.11 or later that can make virtual environments
#   system.sh broker           what `make run` needs: RabbitMQ and PCRE2
#   system.sh tests            the same, HAProxy and valgrind for the benchmarks, slapd, a C compiler for the scanner
set -euo pipefail

say() { echo "gatekeeper: $*" >&2; }

install() {
    if ! command -v apt-get >/dev/null; then
        say "missing: $*; install them with this system's package manager, then run make again"
        exit 1
    fi
    local root=()
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null; then
            say "missing: $*; as root: apt-get install $*"
            exit 1
        fi
        root=(sudo)
    fi
    say "installing $*"
    "${root[@]}" apt-get update -qq
    # Runlevel 1: the packages' own services stay off where there is no systemd.
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -qq --yes --no-install-recommends "$@" >/dev/null
}

have_library() { ldconfig -p 2>/dev/null | grep -q "$1" || /sbin/ldconfig -p | grep -q "$1"; }

case "${1:-}" in
python)
    python="${2:-}"
    if [ -z "$python" ]; then
        install python3 python3-venv
        python=python3
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        say "$python is older than 3.11; install Python 3.11 and run make PYTHON=python3.11"
        exit 1
    fi
    "$python" -c 'import ensurepip, venv' 2>/dev/null || install python3-venv
    ;;
broker | tests)
    missing=()
    command -v rabbitmq-server >/dev/null || [ -x /usr/sbin/rabbitmq-server ] \
        || missing+=(rabbitmq-server)
    have_library libpcre2-8.so.0 || missing+=(libpcre2-8-0)
    if [ "$1" = tests ]; then
        command -v haproxy >/dev/null || [ -x /usr/sbin/haproxy ] || missing+=(haproxy)
        command -v slapd >/dev/null || [ -x /usr/sbin/slapd ] || missing+=(slapd ldap-utils)
        command -v valgrind >/dev/null || missing+=(valgrind)
        command -v cc >/dev/null || command -v gcc >/dev/null || missing+=(gcc libc6-dev)
    fi
    [ ${#missing[@]} -eq 0 ] || install "${missing[@]}"
    ;;
*)
    say "usage: $0 python PYTHON | broker | tests"
    exit 2
    ;;
esac
