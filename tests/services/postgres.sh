# shellcheck shell=bash disable=SC2034,SC2154
# PostgreSQL, with TLS and passwords. It refuses to be root, and so is somebody else. Read by up.sh.

port_count=1
as=()

postgres_bin() {
    local found
    found=$(compgen -G '/usr/lib/postgresql/*/bin/initdb' | sort -V | tail -1) || true
    [ -n "$found" ] || found=$(command -v initdb) || return 1
    dirname "$(readlink -f "$found")"
}

# Sets `as`, what a command is started with so that it is not root's, nor that of a number without a name. Best is a user
# namespace: outside of it the server is still the owner of its files, wherever they lie. Where there are none, it is another
# user.
unprivileged() {
    local user users=(postgres nobody)
    if [ "$(id -u)" != 0 ] && id -un >/dev/null 2>&1; then return 0; fi
    for user in "${users[@]}"; do
        as=(unshare --user "--map-user=$(id -u "$user" 2>/dev/null)" --)
        "${as[@]}" true 2>/dev/null && return 0
    done
    for user in "${users[@]}"; do
        as=(setpriv "--reuid=$user" "--regid=$(id -g "$user" 2>/dev/null)" --clear-groups --)
        if "${as[@]}" true 2>/dev/null; then
            chmod o+x "$dir"
            mkdir -p "$home/data" && chown -R "$user" "$home"
            "${as[@]}" test -w "$home/data" && return 0
            echo "a folder that the user $user can reach, since PostgreSQL refuses to be root: not $dir"
            return 1
        fi
    done
    echo "somebody to be, since PostgreSQL refuses to be root: a user namespace, or setpriv and a user \`postgres\`"
    return 1
}

needs() {
    bin=$(postgres_bin) || { echo "PostgreSQL. Install it: apt-get install postgresql"; return 1; }
    [ -e "$dir/tls/server.pem" ] || { echo "openssl. Install it: apt-get install openssl"; return 1; }
    # Only its owner may read the key.
    (umask 077 && cat "$dir/tls/server.key" >"$home/server.key") && cp "$dir/tls/server.pem" "$dir/tls/ca.pem" "$home/"
    unprivileged
}

configure() {
    cat >"$home/tidemill.conf" <<END
listen_addresses = '127.0.0.1'
port = ${port[0]}
unix_socket_directories = ''
ssl = on
ssl_cert_file = '$home/server.pem'
ssl_key_file = '$home/server.key'
password_encryption = 'scram-sha-256'
fsync = on
shared_buffers = 32MB
max_connections = 200
max_prepared_transactions = 0
jit = off
timezone = 'UTC'
log_line_prefix = '%m [%p] %a '
END
}

prepare() {
    echo s3cret >"$home/password"
    "${as[@]}" "$bin/initdb" -D "$home/data" -U tidemill "--pwfile=$home/password" --auth=scram-sha-256 --encoding=UTF8 \
        --locale=C --no-sync >"$home/log" 2>&1 || return 1
    echo "include '$home/tidemill.conf'" >>"$home/data/postgresql.conf"
    echo 'CREATE DATABASE tidemill' | "${as[@]}" "$bin/postgres" --single -D "$home/data" postgres >>"$home/log" 2>&1
}

start() { launch "${as[@]}" "$bin/postgres" -D "$home/data"; }

ready() {
    PGPASSWORD=s3cret PGCONNECT_TIMEOUT=5 "$bin/psql" -X -h 127.0.0.1 -p "${port[0]}" -U tidemill -d tidemill -Atc 'SELECT 1' >/dev/null 2>&1
}

# After a kill of the first process alone, the others need a moment to notice. A pid file that names somebody else's process
# is from before a reboot.
try_again() {
    if grep -q 'lock file "postmaster.pid" already exists' "$home/log" &&
        [ "$(cat "/proc/$(head -1 "$home/data/postmaster.pid")/comm" 2>/dev/null)" != postgres ]; then
        rm -f "$home/data/postmaster.pid"
        return 0
    fi
    grep -qE 'pre-existing shared memory block|lock file "postmaster.pid" already exists' "$home/log"
}

address() { echo "127.0.0.1:${port[0]}"; }

environment() {
    cat <<END
PG_HOST=127.0.0.1
PG_PORT=${port[0]}
PG_USER=tidemill
PG_PASSWORD=s3cret
PG_DATABASE=tidemill
PG_URL=postgres://tidemill:s3cret@127.0.0.1:${port[0]}/tidemill
PG_CA='$dir/tls/ca.pem'
PG_BIN='$bin'
PG_PID=$pid
END
}
