# shellcheck shell=bash disable=SC2034,SC2154
# MariaDB, with TLS for those who ask for it. Read by up.sh.

# shellcheck source=SCRIPTDIR/mysql_account.sh
. "$here/mysql_account.sh"

needs() {
    if ! has mariadbd || ! has mariadb-install-db || ! has mariadb; then
        echo "MariaDB. Install it: apt-get install mariadb-server"
        return 1
    fi
    [ -e "$dir/tls/server.pem" ] || { echo "openssl. Install it: apt-get install openssl"; return 1; }
}

configure() { write_account; }

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

environment() { account_environment "$dir/tls/ca.pem"; }
