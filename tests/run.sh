#!/usr/bin/env bash
# Builds once, runs every test, and closes with a summary. Arguments go to cargo.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

log=target/test.log
mkdir -p target

# Real servers start while the build goes on, and end with this script, also where it is interrupted or killed. They are not
# those of `make services-up`. Where TIDEMILL_SERVICES names some, these are used, and left.
owner=()
if [ -z "${TIDEMILL_SERVICES:-}" ]; then
    export TIDEMILL_SERVICES=$PWD/target/services-of-make-test
    trap 'tests/services/down.sh' EXIT
    trap 'exit 130' INT TERM
    owner=(--owner $$)
fi
tests/services/up.sh "${owner[@]}" >target/services.log 2>&1 &
services=$!
started=$SECONDS

# The binary and the tests share one build, so that no test starts a compiler.
cargo build "$@" --package tidemill && cargo test "$@" --workspace --no-run || exit 1
wait "$services"
cat target/services.log
built=$SECONDS
# Most tests wait for a server, a clock or a child: more of them than there are cores keep the cores busy.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-4}
TIDEMILL_BIN=$PWD/target/debug/tidemill cargo test "$@" --workspace --no-fail-fast 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

# Cargo says one line per test program; here is the sum, and what was not run.
awk -v build=$((built - started)) -v run=$((SECONDS - built)) '
    /^test result:/ { passed += $4; failed += $6; ignored += $8 }
    /^skipped: /    { skipped[$0] = 1 }
    END {
        for (line in skipped) print line
        printf "built in %d s, ran in %d s\n", build, run
        printf "%d passed, %d failed, %d skipped\n", passed, failed, ignored + length(skipped)
    }' "$log"
exit "$status"
