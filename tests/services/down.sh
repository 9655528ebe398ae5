#!/usr/bin/env bash
# Stops what up.sh started, and removes it with its data.
#
#   tests/services/down.sh [--dir DIR] [--keep] [kafka postgres mariadb mysql redis registry]
#
# With --keep the logs stay for a look: DIR/NAME/log.
set -euo pipefail
# shellcheck source=SCRIPTDIR/lib.sh
. "$(dirname "$0")/lib.sh"

arguments "$@"
lock

# The data goes too, so there is nothing to shut down in order. PostgreSQL alone would leave shared memory behind: it is told
# to end at once.
stop() {
    local signal=KILL
    [ "$1" != postgres ] || signal=QUIT
    # shellcheck disable=SC2046
    kill -CONT $(family "$pid") 2>/dev/null || true
    kill "-$signal" "$pid" 2>/dev/null || true
    for _ in {1..100}; do
        alive "$dir/$1" || return 0
        sleep 0.05
    done
    # shellcheck disable=SC2046
    kill -KILL $(family "$pid") 2>/dev/null || true
    for _ in {1..100}; do
        alive "$dir/$1" || return 0
        sleep 0.05
    done
    say "$1 (process $pid) does not end"
    return 1
}

# What a process that is just ending wrote meanwhile is in the way once.
remove() {
    for _ in {1..20}; do
        rm -rf "$@" 2>/dev/null && return 0
        sleep 0.1
    done
    rm -rf "$@"
}

for name in "${names[@]}"; do
    home=$dir/$name
    if alive "$home"; then stop "$name"; fi
    rm -f "$dir/$name.env" "$dir/.$name.env" "$dir/$name.absent"
    [ -d "$home" ] || continue
    if [ -s "$home/ports" ]; then
        read -ra port <"$home/ports"
        rm -f "${port[@]/#/$reservations/}"
    fi
    if [ -n "$keep" ]; then
        find "$home" -mindepth 1 -maxdepth 1 ! -name 'log*' -exec rm -rf {} +
    else
        remove "$home"
    fi
done
compgen -G "$dir/*.env" >/dev/null || remove "$dir/tls"
