# shellcheck shell=bash disable=SC2034,SC2154
# What MariaDB and MySQL 8 have in common: one account, and MariaDB's client to see whether it may come in. Read by mariadb.sh
# and mysql.sh.

port_count=1
# It wants to be told that root is meant.
as=()
[ "$(id -u)" != 0 ] || as=(--user=root)

# The server runs it at every start.
write_account() {
    cat >"$home/init.sql" <<END
CREATE DATABASE IF NOT EXISTS tidemill;
CREATE USER IF NOT EXISTS tidemill@'%' IDENTIFIED BY 's3cret';
GRANT ALL ON *.* TO tidemill@'%' WITH GRANT OPTION;
END
}

ready() {
    MYSQL_PWD=s3cret mariadb --no-defaults -h 127.0.0.1 -P "${port[0]}" -u tidemill -e 'SELECT 1' tidemill >/dev/null 2>&1
}

address() { echo "127.0.0.1:${port[0]}"; }

# account_environment CA
account_environment() {
    cat <<END
MYSQL_HOST=127.0.0.1
MYSQL_PORT=${port[0]}
MYSQL_USER=tidemill
MYSQL_PASSWORD=s3cret
MYSQL_DATABASE=tidemill
MYSQL_URL=mysql://tidemill:s3cret@127.0.0.1:${port[0]}/tidemill
MYSQL_CA='$1'
MYSQL_PID=$pid
END
}
