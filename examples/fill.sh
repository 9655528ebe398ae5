#!/usr/bin/env bash
# Topics, tables and a few rows for the examples that need servers. Addresses come from the environment:
#
#   make services-up            # its last lines are `export` lines: paste them
#   examples/fill.sh
#
# Once: what is there already is an error.
set -euo pipefail
kafka() {
    java -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$KAFKA_CLASSPATH" "org.apache.kafka.tools.$1" \
        --bootstrap-server "$KAFKA_BROKERS" "${@:2}"
}
for topic in orders products views; do
    kafka TopicCommand --create --topic "$topic" --partitions 3
done
kafka ConsoleProducer --topic orders <<'END'
{"id":10,"at":"2026-03-01T10:00:00Z","customer":7,"amount":"19.90"}
{"id":11,"at":"2026-03-01T10:00:01Z","customer":8,"amount":"5.00"}
END
kafka ConsoleProducer --topic views <<'END'
{"at":"2026-03-01T23:59:59Z","user":1,"page":"/a","ms":12}
{"at":"2026-03-02T00:00:01Z","user":2,"page":"/b","ms":7}
END
psql --quiet "$PG_URL" --command "
    CREATE TABLE customers (id bigint PRIMARY KEY, name text, country text);
    INSERT INTO customers VALUES (7, 'Ada', 'IS'), (8, 'Kurt', 'DE');
    CREATE TABLE products (id bigint PRIMARY KEY, name text, price numeric(12,2), updated_at timestamptz);
    INSERT INTO products VALUES (1, ' Cup ', 4.50, now()), (2, 'Pot', 12, now())"
mysql --host="$MYSQL_HOST" --port="$MYSQL_PORT" --user="$MYSQL_USER" --password="$MYSQL_PASSWORD" "$MYSQL_DATABASE" --execute "
    CREATE TABLE items (id varchar(20) PRIMARY KEY, price decimal(10,2));
    INSERT INTO items VALUES ('cup', 4.50), ('pot', 12)"
REDISCLI_AUTH=$REDIS_PASSWORD redis-cli -h "$REDIS_HOST" -p "$REDIS_PORT" HSET session:s1 campaign spring
