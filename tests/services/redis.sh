# shellcheck shell=bash disable=SC2034,SC2154
# Redis that keeps what it has said yes to. Read by up.sh.

port_count=1

needs() {
    has redis-server && has redis-cli && return
    echo "Redis. Install it: apt-get install redis-server"
    return 1
}

configure() { :; }
prepare() { :; }

# With `always` each write is in the log before its answer: a kill loses nothing.
start() {
    launch redis-server --bind 127.0.0.1 --port "${port[0]}" --requirepass s3cret --dir "$home/data" --daemonize no \
        --appendonly yes --appendfsync always --save ""
}

ready() { [ "$(REDISCLI_AUTH=s3cret redis-cli -h 127.0.0.1 -p "${port[0]}" ping 2>/dev/null)" = PONG ]; }

address() { echo "127.0.0.1:${port[0]}"; }

environment() {
    cat <<END
REDIS_URL=redis://:s3cret@127.0.0.1:${port[0]}/0
REDIS_HOST=127.0.0.1
REDIS_PORT=${port[0]}
REDIS_PASSWORD=s3cret
REDIS_PID=$pid
END
}
