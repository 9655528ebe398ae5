# shellcheck shell=bash disable=SC2034,SC2154
# MariaDB, with TLS for those who ask for it. Read by up.sh.

port_count=1
# It wants to be told that root is meant.
as=()
[ "$(id -u)" != 0 ] || as=(--user=root)

needs() {
    if ! has mariadbd || ! has mariadb-install-db || ! has mariadb; then
        echo "MariaDB. Install it: apt-get install mariadb-server"
        return 1
    fi
    [ -e "$dir/tls/server.pem" ] || { echo "openssl. Install it: apt-get install openssl"; return 1; }
}

# Run at every start.
configure() {
    cat >"$home/init.sql" <<END
CREATE DATABASE IF NOT EXISTS tidemill;
CREATE USER IF NOT EXISTS tidemill@'%' IDENTIFIED BY 's3cret';
GRANT ALL ON *.* TO tidemill@'%' WITH GRANT OPTION;
END
}

prepare() {
    mariadb-install-db --no-defaults "${as[@]}" "--datadir=$home/data" --auth-root-authentication-method=normal \
        --skip-test-db --skip-name-resolve >"$home/log" 2>&1
}

# The socket's path is relative to the data, since a socket's path may not be long.
start() {
    launch mariadbd --no-defaults "${as[@]}" "--datadir=$home/data" --socket=mariadb.sock --pid-file=mariadb.pid \
        --bind-address=127.0.0.1 "--port=${port[0]}" "--init-file=$home/init.sql" --skip-name-resolve --max-connections=200 \
        --innodb-buffer-pool-size=64M --innodb-log-file-size=32M --character-set-server=utf8mb4 \
        "--ssl-ca=$dir/tls/ca.pem" "--ssl-cert=$dir/tls/server.pem" "--ssl-key=$dir/tls/server.key"
}

ready() {
    MYSQL_PWD=s3cret mariadb --no-defaults -h 127.0.0.1 -P "${port[0]}" -u tidemill -e 'SELECT 1' tidemill >/dev/null 2>&1
}

address() { echo "127.0.0.1:${port[0]}"; }

environment() {
    cat <<END
MYSQL_HOST=127.0.0.1
MYSQL_PORT=${port[0]}
MYSQL_USER=tidemill
MYSQL_PASSWORD=s3cret
MYSQL_DATABASE=tidemill
MYSQL_URL=mysql://tidemill:s3cret@127.0.0.1:${port[0]}/tidemill
MYSQL_CA='$dir/tls/ca.pem'
MYSQL_PID=$pid
END
}
