#!/usr/bin/env bash
# Starts real servers for tests, on free ports of the loopback interface and in a folder of their own; no system service.
#
#   tests/services/up.sh [--dir DIR] [--owner PID] [kafka postgres mariadb mysql redis registry]
#
# Without names: all. DIR is $TIDEMILL_SERVICES or target/services. For each that runs there is DIR/NAME.env, and its log is
# DIR/NAME/log. What runs already is left alone; what was killed is started again, at its old address with its old data.
# With --owner they are stopped and removed when that process has ended, however it ended.
#
# What cannot be had is said by name, with the way out. That is no failure: tests are skipped by name, or fail where CI=true.
# Another folder is another set of servers, which a test can kill, pause or starve.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=SCRIPTDIR/lib.sh
. "$here/lib.sh"

# The longest wait for a server to be ready: a busy machine is slow.
patience_s=120

arguments "$@"
lock

# Stops a service when its owner has ended. It ends itself when the service's ports are given back.
watch_owner() {
    [ -n "$owner" ] || return 0
    (
        exec 9>&-
        # shellcheck disable=SC2016
        exec setsid bash -c '
            while kill -0 "$1" && [ -e "$2/ports" ]; do sleep 1; done
            [ ! -e "$2/ports" ] || exec "$3" --dir "$4" "$5"
        ' watch "$owner" "$home" "$here/down.sh" "$dir" "$1"
    ) </dev/null >/dev/null 2>&1 &
}

wait_until_ready() {
    local deadline=$((SECONDS + patience_s))
    until ready; do
        if ! alive "$home"; then
            try_again && [ "$SECONDS" -lt "$deadline" ] && sleep 0.2 && start && continue
            return 1
        fi
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.05
    done
}

# bring_up NAME: in a process of its own, for what NAME.sh defines.
bring_up() {
    local began=${EPOCHREALTIME/[.,]/}
    home=$dir/$1
    try_again() { false; }
    # shellcheck disable=SC1090,SC2154
    . "$here/$1.sh"
    if alive "$home" && [ -e "$dir/$1.env" ]; then
        ports "${port_count:?}"
        printf '  %-9s %-16s %s\n' "$1" "$(address)" "is up"
        return
    fi
    rm -f "$dir/$1.env" "$dir/$1.absent"
    mkdir -p "$home/data"
    if ! needs >"$home/needs"; then
        mv "$home/needs" "$dir/$1.absent"
        printf '  %-9s %-16s %s\n' "$1" "-" "cannot be had here; it needs $(<"$dir/$1.absent")"
        return
    fi
    [ -s "$home/ports" ] || local first=yes
    ports "$port_count"
    configure
    if [ ! -e "$home/prepared" ]; then
        find "$home/data" -mindepth 1 -delete
        prepare || { failed "$1" "cannot be prepared"; return 1; }
        touch "$home/prepared"
    fi
    [ -z "${first:-}" ] || watch_owner "$1"
    if ! alive "$home"; then
        # A process that was just killed may still hold its port.
        for _ in {1..200}; do
            listened_to "${port[0]}" || break
            sleep 0.05
        done
        start
    fi
    wait_until_ready || { failed "$1" "did not start"; return 1; }
    # The one that tests read appears at once and whole.
    environment >"$dir/.$1.env" && mv "$dir/.$1.env" "$dir/$1.env"
    printf '  %-9s %-16s %s\n' "$1" "$(address)" "started in $(((${EPOCHREALTIME/[.,]/} - began) / 1000)) ms"
}

failed() {
    echo "a $1 that starts: it $2, see $home/log" >"$dir/$1.absent"
    printf '  %-9s %-16s %s\n' "$1" "-" "$2: see $home/log"
    tail -n 20 "$home/log" >&2 || true
}

absent=()
for name in "${names[@]}"; do
    alive "$dir/$name" || absent+=("$name")
done
if [ ${#absent[@]} -gt 0 ]; then
    "$root/tests/tools.sh" --services "${absent[@]}" 9>&- || true
    make_certificates
fi

echo "services in $dir:"
jobs=()
for name in "${names[@]}"; do
    bring_up "$name" &
    jobs+=($!)
done
status=0
for job in "${jobs[@]}"; do
    wait "$job" || status=1
done
# To be pasted: what the addresses above do not say are users, passwords and databases.
echo "for a shell:"
for name in "${names[@]}"; do
    if [ -f "$dir/$name.env" ]; then
        sed -E '/^[A-Z0-9_]+_PID=/d; s/^/  export /' "$dir/$name.env"
    fi
done
exit "$status"
