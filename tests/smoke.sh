#!/usr/bin/env bash
# The main jobs on the real binary, counted with other tools: the demo, and a directory to SQLite and files that is killed
# at each step of the protocol. Prints a line a check and a summary.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
cargo build --package tidemill || exit 1
binary=${CARGO_TARGET_DIR:-$PWD/target}/debug/tidemill
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
passed=0 failed=0
check() { # NAME COMMAND...
    local name=$1
    shift
    if "$@" >"$place/said" 2>&1; then
        passed=$((passed + 1))
        echo "ok      $name"
    else
        failed=$((failed + 1))
        echo "FAILED  $name"
        tail -n 40 "$place/said"
    fi
}

mkdir -p "$place/job/in"
cat >"$place/job/job.yaml" <<'YAML'
job: smoke
trigger: asap
batch: { max_records: 10 }
sources:
  in: { type: directory, path: in, settle: 10ms, codec: json, schema: { n: int64, text: string } }
steps:
  - lowercase: [text]
  - filter: n % 7 <> 3
sinks:
  files: { type: files, path: files, codec: json }
  rolling: { type: files, path: rolling, codec: json, roll: { bytes: 4KiB } }
  db: { type: sqlite, path: rows.db, table: rows }
dead_letters: { type: files, path: dead, codec: json }
YAML
python3 - "$place/job/in" <<'PYTHON'
import sys
for part in range(4):
    with open(f"{sys.argv[1]}/{part}.json", "w") as file:
        for n in range(part * 100, part * 100 + 100):
            file.write('{"n": %d, broken\n' % n if n % 50 == 49 else '{"n": %d, "text": "Line %d \u2713"}\n' % (n, n))
PYTHON

counted() { # the rows of every sink are those of the input, each once
    python3 - "$place/job" <<'PYTHON'
import glob, json, sqlite3, sys
folder = sys.argv[1]
wanted = [(n, f"line {n} \u2713") for n in range(400) if n % 50 != 49 and n % 7 != 3]
for sink in ("files", "rolling"):
    rows = [json.loads(line) for name in glob.glob(f"{folder}/{sink}/*.json") for line in open(name)]
    assert sorted((row["n"], row["text"]) for row in rows) == wanted, f"{sink}: {len(rows)} rows, not {len(wanted)}"
rows = sqlite3.connect(f"{folder}/rows.db").execute("SELECT n, text FROM rows ORDER BY n").fetchall()
assert rows == wanted, f"sqlite: {len(rows)} rows, not {len(wanted)}"
dead = [line for name in glob.glob(f"{folder}/dead/*.json") for line in open(name)]
assert len(dead) == 8, f"{len(dead)} dead letters, not 8"
PYTHON
}

killed_at() { # PHASE: five kills in one job's life, then the rest, then the count
    (cd "$place/job" && rm -rf data files rolling dead rows.db*)
    for kill in 1 2 3 4 5; do
        TIDEMILL_FAILPOINT="$1:$((kill + 1)):kill" "$binary" run "$place/job/job.yaml" --once --data-dir "$place/job/data"
        [ $? -eq 137 ] || return 1
    done
    "$binary" run "$place/job/job.yaml" --once --data-dir "$place/job/data" && counted
}

for phase in plan read computing compute before-anchor after-anchor after-sinks after-close after-release; do
    check "five kills at $phase: 0 lost, 0 doubled" killed_at "$phase"
done
check "demo: fed, killed, counted" "$binary" demo --seconds 6 --dir "$place/demo"
check "validate names what is wrong" bash -c "printf 'job: X\n' >'$place/wrong.yaml'; '$binary' validate '$place/wrong.yaml'; [ \$? -eq 78 ]"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
