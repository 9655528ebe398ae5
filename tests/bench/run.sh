#!/usr/bin/env bash
# make bench: builds the release binary, runs job W beside DuckDB, then small batches beside a bare fdatasync.
#
#   SIZE_MB=1000  RUNS=3  TIDEMILL_BIN=path (skips the build)  PROFILE=release
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
"$python" tests/bench/bench.py --tidemill "$binary" \
    --size-mb "${SIZE_MB:-1000}" --runs "${RUNS:-3}" --log "$data/weblog-apache/apache_logs"
echo
"$python" tests/bench/latency.py --tidemill "$binary" --records "${RECORDS:-500}"
