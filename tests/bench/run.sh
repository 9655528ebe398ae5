#!/usr/bin/env bash
# make bench: builds the release binary, runs job W beside DuckDB, small batches beside a bare fdatasync, then topics into each
# kind of sink beside psql and a bare loop of a producer and a consumer, with servers of its own.
#
#   SIZE_MB=1000  RUNS=3  RECORDS=1000000  ONLY=kafka  TIDEMILL_BIN=path (skips the build)  PROFILE=release
set -euo pipefail
cd "$(dirname "$0")/../.."

profile=${PROFILE:-release}
binary=${TIDEMILL_BIN:-target/$profile/tidemill}
if [ -z "${TIDEMILL_BIN:-}" ]; then
    echo "bench: building the $profile binary (long the first time) ..." >&2
    cargo build "$@" --profile "$profile" -p tidemill
fi
data=${TIDEMILL_DATA:-../shared/data}
python=target/tools/python/bin/python3
if [ "${ONLY:-}" != kafka ]; then
    "$python" tests/bench/bench.py --tidemill "$binary" \
        --size-mb "${SIZE_MB:-1000}" --runs "${RUNS:-3}" --log "$data/weblog-apache/apache_logs"
    echo
    "$python" tests/bench/latency.py --tidemill "$binary" --records 500
fi

services=$PWD/target/services-of-make-bench
tests/services/up.sh --dir "$services" --owner $$ kafka postgres >&2
if [ ! -e "$services/kafka.env" ] || [ ! -e "$services/postgres.env" ]; then
    echo "bench: without Kafka and PostgreSQL no topic is measured" >&2
    exit 1
fi
set -a
# shellcheck source=/dev/null
. "$services/kafka.env" && . "$services/postgres.env"
set +a
"$python" tests/bench/kafka.py --tidemill "$binary" --records "${RECORDS:-1000000}" --runs "${RUNS:-3}"
