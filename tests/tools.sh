#!/usr/bin/env bash
# What building and testing need beside Rust. Installs what it can, says by name what it cannot.
#
#   tests/tools.sh --build   a C compiler: building stops without one
#   tests/tools.sh           what tests need: without it they are skipped by name, or fail where CI=true
#   tests/tools.sh --lint    cargo-deny and the toolchain's own linters
#   tests/tools.sh --bench   DuckDB, the other side of `make bench`
#
# Debian packages are installed where this is root on Debian or Ubuntu; everything else goes to target/tools.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$PWD/target/tools
python=$tools/python/bin/python3
export PATH=$tools/bin:$PATH

say() { echo "tools: $*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }
can_apt() { has apt-get && [ "$(id -u)" = 0 ]; }

apt_lists_are_fresh=
apt_lists() {
    [ -n "$apt_lists_are_fresh" ] || apt-get -qq update || return 1
    apt_lists_are_fresh=yes
}

# install PACKAGE WHY: a Debian package, where this may install one.
install() {
    can_apt || return 1
    say "installing $1 ($2)"
    apt_lists && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$1" >/dev/null
}

# want COMMAND PACKAGE WHY: installs a Debian package for a command, or names it.
want() {
    has "$1" && return 0
    install "$2" "$3" && return 0
    say "missing: $1, for $3. Install it: apt-get install $2 (Debian, Ubuntu), or your system's package of that name"
    return 1
}

# promtool comes in Debian's package of the whole server; only the tool is wanted, and no service is started.
want_promtool() {
    has promtool && return 0
    if has apt-get && has dpkg-deb; then
        say "fetching promtool (the tests of deploy/prometheus)"
        local folder
        folder=$(mktemp -d)
        can_apt && { apt_lists || true; }
        if (cd "$folder" && apt-get -qq download prometheus && dpkg-deb -x prometheus_*.deb unpacked) 2>/dev/null; then
            mkdir -p "$tools/bin"
            mv "$folder/unpacked/usr/bin/promtool" "$tools/bin/"
        fi
        rm -rf "$folder"
        has promtool && return 0
    fi
    say "missing: promtool, for the tests of deploy/prometheus. It comes with Prometheus: apt-get install prometheus"
    return 1
}

# want_module MODULE PACKAGE==VERSION WHY: a Python package, in an environment of its own.
want_module() {
    [ -x "$python" ] && "$python" -c "import $1" 2>/dev/null && return 0
    python3 -c 'import venv, ensurepip' 2>/dev/null || install python3-venv "Python environments" || true
    say "fetching $2 ($3)"
    if { [ -x "$python" ] || python3 -m venv "$tools/python"; } && "$python" -m pip -q install --disable-pip-version-check "$2"; then
        return 0
    fi
    say "missing: the Python package $2, for $3 (python3 -m venv needs Debian's python3-venv)"
    return 1
}

# OpenSSL is the one TLS library here: librdkafka knows no other.
want_openssl() {
    pkg-config --exists openssl && return 0
    install libssl-dev "TLS to brokers and databases" && return 0
    say "missing: OpenSSL's headers. Install them: apt-get install libssl-dev (Debian, Ubuntu), openssl-devel (Fedora)"
    return 1
}

for_build() {
    want cc gcc "the C parts of SQLite, Zstandard and librdkafka" && want ld binutils "linking" &&
        want make make "building librdkafka" && want pkg-config pkg-config "finding OpenSSL" && want_openssl && return 0
    say "building stops here: Tidemill's dependencies hold C code"
    return 1
}

for_tests() {
    local missing=0
    want python3 python3 "the other side of many tests" || missing=1
    want sqlite3 sqlite3 "looking at databases as a person does" || missing=1
    want nc netcat-openbsd "the classic job's other end" || missing=1
    want script bsdutils "a terminal for the progress bar" || missing=1
    want systemd-analyze systemd "the test of deploy/systemd" || missing=1
    want_promtool || missing=1
    want_module kubernetes_validate kubernetes-validate==1.37.0 "the test of deploy/kubernetes" || missing=1
    want_module jsonschema jsonschema==4.26.0 "the test of \`tidemill schema\`" || missing=1
    [ "$missing" = 0 ] || say "tests that need what is missing are skipped by name, or fail where CI=true"
    return 0
}

for_lint() {
    local missing=0
    cargo fmt --version >/dev/null 2>&1 || { say "missing: rustfmt. Install it: rustup component add rustfmt"; missing=1; }
    cargo clippy --version >/dev/null 2>&1 || { say "missing: clippy. Install it: rustup component add clippy"; missing=1; }
    if ! has cargo-deny; then
        # An unoptimised build is ready in a third of the time, and runs for a second.
        say "building cargo-deny (once, some minutes)"
        CARGO_TARGET_DIR=$tools/build cargo install -q --locked --debug --root "$tools" --version '^0.20' cargo-deny
        rm -rf "$tools/build"
    fi
    return "$missing"
}

for_bench() {
    want python3 python3 "the generator and the comparison" || return 1
    want_module duckdb duckdb==2.0.0 "the other side of job W"
}

case "${1:-}" in
--build) for_build ;;
--lint) for_lint ;;
--bench) for_bench ;;
"") for_tests ;;
*) say "unknown argument $1"; exit 2 ;;
esac
