#!/usr/bin/env python3
"""Small batches: one record at a time, `asap`, socket -> SQLite. From sent to committed, beside a bare fdatasync.

    latency.py --tidemill BINARY [--records 500] [--work FOLDER]

After each record the clock runs until another connection to the database sees its row; then one small append to a file in
the same folder is synced and timed, so that both meet the same disk in the same moment. Writes a Markdown table to stdout.
"""

import argparse
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

JOB = """
job: latency
trigger: asap
sources:
  in: {{ type: socket, listen: "127.0.0.1:{port}", codec: json, schema: {{ n: int64, text: string }} }}
steps:
  - lowercase: [text]
sinks:
  db: {{ type: sqlite, path: rows.db, table: rows }}
"""
#: Records before the clock counts: the first ones make the table and warm both sides.
WARMUP = 20
#: How often the reader looks.
POLL_S = 0.0001
#: Nothing takes longer.
PATIENCE_S = 30


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def connect(port):
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            client = socket.create_connection(("127.0.0.1", port))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return client
        except ConnectionRefusedError:
            if time.monotonic() > until:
                sys.exit("the daemon does not listen")
            time.sleep(0.02)


def reader(path):
    until = time.monotonic() + PATIENCE_S
    while not path.exists():
        if time.monotonic() > until:
            sys.exit("the daemon makes no database")
        time.sleep(0.01)
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)


def rows(database):
    try:
        return database.execute("SELECT max(rowid) FROM rows").fetchone()[0] or 0
    except sqlite3.OperationalError:
        return 0


def measure(port, folder, count):
    client, database = connect(port), reader(folder / "rows.db")
    bare = open(folder / "bare", "wb", buffering=0)
    committed, synced = [], []
    for n in range(count + WARMUP):
        record = b'{"n": %d, "text": "One SMALL record"}\n' % n
        begun = time.perf_counter()
        client.sendall(record)
        while rows(database) <= n:
            if time.perf_counter() - begun > PATIENCE_S:
                sys.exit(f"record {n} is not committed")
            # A busy reader would take a core of its own, and be most of what is measured on two.
            time.sleep(POLL_S)
        seen = time.perf_counter()
        bare.write(record)
        os.fdatasync(bare.fileno())
        end = time.perf_counter()
        if n >= WARMUP:
            committed.append((seen - begun) * 1e3)
            synced.append((end - seen) * 1e3)
        time.sleep(0.005)
    return sorted(committed), sorted(synced)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tidemill", type=Path, required=True)
    arguments.add_argument("--records", type=int, default=500)
    arguments.add_argument("--work", type=Path, default=Path("target/bench/latency"))
    given = arguments.parse_args()
    folder = given.work.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    port = free_port()
    (folder / "job.yaml").write_text(JOB.format(port=port))
    command = [given.tidemill.resolve(), "run", "job.yaml", "--data-dir", "data", "--http", "127.0.0.1:0"]
    with open(folder / "said", "w") as said:
        daemon = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said)
        try:
            committed, synced = measure(port, folder, given.records)
        finally:
            daemon.terminate()
            daemon.wait()
    at = lambda values, share: values[min(int(len(values) * share), len(values) - 1)]  # noqa: E731
    print(f"One record at a time, socket -> SQLite, {given.records} records, milliseconds.\n")
    print("| | p50 | p99 |\n| --- | ---: | ---: |")
    print(f"| sent to committed | {at(committed, 0.5):.2f} | {at(committed, 0.99):.2f} |")
    print(f"| a bare fdatasync | {at(synced, 0.5):.2f} | {at(synced, 0.99):.2f} |")
    print(f"| ratio | {at(committed, 0.5) / at(synced, 0.5):.1f} | {at(committed, 0.99) / at(synced, 0.99):.1f} |")


if __name__ == "__main__":
    main()
