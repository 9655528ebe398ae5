# shellcheck shell=bash disable=SC2034,SC2154
# What up.sh and down.sh share. Sourced; sets `root`, and by `arguments` also `dir`, `names`, `owner`, `keep`.
# A function for one service has its folder in `home`.
#
# DIR/NAME/ is a server's home: `data`, `log` (and `log.old`), `ports`, `pid`, `prepared`. DIR/NAME.env says how to reach it;
# DIR/NAME.absent says why it cannot be had. Ports are chosen once and kept, so that a server that was killed comes back at
# its old address with its old data.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PATH=$PATH:/usr/sbin:/sbin
all_services=(kafka postgres mariadb mysql redis registry)

say() { echo "services: $*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

# arguments "$@": [--dir DIR] [--owner PID] [--keep] [NAMES].
arguments() {
    dir=${TIDEMILL_SERVICES:-$root/target/services} owner='' keep='' names=()
    while [ $# -gt 0 ]; do
        case "$1" in
        --dir) dir=${2:?--dir needs a folder} && shift ;;
        --owner) owner=${2:?--owner needs a process id} && shift ;;
        --keep) keep=yes ;;
        kafka | postgres | mariadb | mysql | redis | registry) names+=("$1") ;;
        *)
            say "unknown argument $1; services are: ${all_services[*]}"
            exit 2
            ;;
        esac
        shift
    done
    [ ${#names[@]} -gt 0 ] || names=("${all_services[@]}")
    mkdir -p "$dir" && dir=$(cd "$dir" && pwd -P)
}

# One at a time in a folder, until this process ends. Servers must not inherit it: `launch` closes it.
lock() {
    exec 9>"$dir/.lock"
    flock 9
}

# identity PID: a running process, told from a later one of the same number, also after a reboot. Fails where it has ended,
# or is about to: SIGKILL is sent before it is obeyed, and a dead process stays visible until its parent looks.
identity() {
    local stat boot pending
    { read -r stat <"/proc/$1/stat" && read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null || return 1
    pending=$(awk '/^(SigPnd|ShdPnd)/ { print $2 }' "/proc/$1/status" 2>/dev/null) || return 1
    # The program's name may hold spaces; after it come the state, ..., the flags (7th), ..., the start time (20th).
    read -ra stat <<<"${stat##*) }"
    [[ ${stat[0]} != [ZX] ]] && ! ((stat[6] & 0x4)) || return 1
    for mask in $pending; do
        ! ((0x$mask & 0x100)) || return 1
    done
    echo "$1 ${stat[19]} $boot"
}

# alive HOME: whether the server that was started there runs. Sets `pid`.
alive() {
    local saved
    pid=
    [ -s "$1/pid" ] && saved=$(<"$1/pid") && [ "$(identity "${saved%% *}")" = "$saved" ] && pid=${saved%% *}
}

# A server's process and its children: a PostgreSQL is many.
family() { echo "$1 $(cat /proc/"$1"/task/*/children 2>/dev/null)"; }

# Ports, reserved on this machine as long as HOME/ports exists: a server that is down for a moment keeps its own.
# They are below the range from which the kernel gives out ports, so that no client takes one meanwhile.
reservations=${TMPDIR:-/tmp}/tidemill-ports-$(id -u)

in_use() { grep -qsi ":$(printf %04X "$1") " /proc/net/tcp /proc/net/tcp6; }
listened_to() { grep -qsi "^ *[0-9]*: [0-9A-F]*:$(printf %04X "$1") [0-9A-F:]* 0A " /proc/net/tcp /proc/net/tcp6; }

reserve_port() {
    local port home_of
    for _ in {1..1000}; do
        port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
        home_of=$(cat "$reservations/$port" 2>/dev/null || true)
        if ! in_use "$port" && { [ -z "$home_of" ] || [ ! -e "$home_of/ports" ]; }; then
            echo "$home" >"$reservations/$port"
            echo "$port"
            return
        fi
    done
    say "no free port between 20000 and 31999"
    return 1
}

# ports COUNT: sets the array `port` from HOME/ports, chosen the first time.
ports() {
    if [ ! -s "$home/ports" ]; then
        mkdir -p "$reservations"
        (
            flock 8
            chosen=()
            for ((i = 0; i < $1; i++)); do
                chosen+=("$(reserve_port)") || exit 1
            done
            echo "${chosen[*]}" >"$home/ports"
        ) 8>"$reservations/.lock" || return 1
    fi
    read -ra port <"$home/ports"
}

# DIR/tls: an authority (ca.pem), and a certificate by it for 127.0.0.1 and localhost (server.pem, server.key).
make_certificates() {
    [ ! -e "$dir/tls/server.pem" ] || return 0
    has openssl || return 0
    local new=$dir/tls.new
    rm -rf "$new" && mkdir -p "$new"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj '/CN=Tidemill tests' \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign \
        -keyout "$new/ca.key" -out "$new/ca.pem" 2>"$new/log"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost \
        -keyout "$new/server.key" -out "$new/server.csr" 2>>"$new/log"
    openssl x509 -req -in "$new/server.csr" -CA "$new/ca.pem" -CAkey "$new/ca.key" -CAcreateserial -days 3650 \
        -extfile <(printf '%s\n' basicConstraints=critical,CA:FALSE keyUsage=critical,digitalSignature \
            extendedKeyUsage=serverAuth subjectAltName=IP:127.0.0.1,DNS:localhost) \
        -out "$new/server.pem" 2>>"$new/log"
    rm -rf "$dir/tls" && mv "$new" "$dir/tls"
}

# launch COMMAND...: starts a server apart from this script, in a session of its own and with none of our open files, so that
# neither a Ctrl-C nor somebody who waits for our output to end has to do with it. Sets `pid`.
launch() {
    [ ! -e "$home/log" ] || mv -f "$home/log" "$home/log.old"
    (
        cd "$home/data" || exit
        for fd in /proc/self/fd/*; do
            fd=${fd##*/}
            if [ "$fd" -gt 2 ] && [ "$fd" != 255 ]; then eval "exec $fd>&-"; fi
        done
        exec setsid "$@"
    ) </dev/null >"$home/log" 2>&1 &
    pid=$!
    identity "$pid" >"$home/pid" || true
}
