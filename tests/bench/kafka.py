#!/usr/bin/env python3
"""A topic into a blackhole, files, PostgreSQL and another topic: MB and rows per CPU-second of Tidemill's own process, and
from produced to committed in PostgreSQL beside a bare loop of a producer and a consumer. Writes Markdown to stdout.

    kafka.py --tidemill BINARY [--records 1000000] [--runs 3] [--sizes 300,1000] [--seconds 10] [--kinds blackhole,psql]
             [--work FOLDER]

Reads where the servers are from the environment: KAFKA_BROKERS, PG_URL (tests/services/up.sh writes them). Each case runs in
a process of its own, in turns; user and system time come from the kernel (wait4) and leave out broker and database. Rows are
counted in every sink before a time counts. `\\copy` of the same rows is timed by psql's own CPU and by the clock.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psycopg
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bench import run  # noqa: E402

BROKERS = os.environ["KAFKA_BROKERS"]
PG_URL = os.environ["PG_URL"]
PARTITIONS = 4
#: Nothing takes longer.
PATIENCE_S = 120

SOURCE = """
  in:
    type: kafka
    brokers: "{brokers}"
    topics: {topic}
    group: {group}
    codec: json
    schema: {{ seq: int64, sent_us: int64, status: int32, bytes: int64, agent: string, text: string }}
"""
STEPS = """
steps:
  - trim: [agent]
  - lowercase: [agent]
  - filter: status < 600
"""


# Kept for as long as answers are awaited: they end with their client.
ADMIN = AdminClient({"bootstrap.servers": BROKERS})


def make_topic(name, partitions=PARTITIONS):
    for made in ADMIN.create_topics([NewTopic(name, partitions, 1)]).values():
        made.result()


def record(seq, size, text):
    body = {"seq": seq, "sent_us": time.time_ns() // 1000, "status": 200 + seq % 300, "bytes": seq * 7919 % 10007,
            "agent": " Mozilla/5.0 (X11; Linux) "}
    line = json.dumps(body, separators=(",", ":"))
    return f'{line[:-1]},"text":"{text[:max(0, size - len(line) - 10)]}"}}'.encode()


def fill(topic, records, size):
    """Records of about `size` bytes each; the bytes in all."""
    text = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz ", k=size))
    producer = Producer({"bootstrap.servers": BROKERS, "linger.ms": 20, "batch.num.messages": 10000,
                         "queue.buffering.max.messages": 200000, "acks": "all"})
    total = 0
    for seq in range(records):
        value = record(seq, size, text)
        total += len(value)
        while True:
            try:
                producer.produce(topic, value, str(seq))
                break
            except BufferError:
                producer.poll(0.1)
        if seq % 1000 == 0:
            producer.poll(0)
    producer.flush()
    return total


def sinks(kind, names):
    loose = ", guarantee: at_least_once" if kind.endswith("off") else ""
    return {
        "blackhole": "  out: { type: blackhole }\n",
        "files": "  out: { type: files, path: out, codec: json }\n",
        "postgres": f'  out: {{ type: postgres, url: "{names["url"]}", table: rows{loose} }}\n',
        "kafka": f'  out: {{ type: kafka, brokers: "{BROKERS}", topic: {names["out"]}, key: seq{loose} }}\n',
    }[kind.split()[0]]


def job(topic, kind, names, trigger="asap"):
    source = SOURCE.format(brokers=BROKERS, topic=topic, group=names["group"])
    return f"job: {names['job']}\nlanes: single\ntrigger: {trigger}\nsources:{source}{STEPS}sinks:\n{sinks(kind, names)}"


def counted_to(records, kind, names, folder):
    """How many rows the sink has, once it has them: the broker answers a commit before its markers are in the topic."""
    until = time.monotonic() + 10
    while (rows := counted(kind, names, folder)) not in (None, records) and time.monotonic() < until:
        time.sleep(0.2)
    return rows


def counted(kind, names, folder):
    """How many rows the sink has now."""
    kind = kind.split()[0]
    if kind == "postgres":
        with psycopg.connect(PG_URL) as connection:
            return connection.execute(f"SELECT count(DISTINCT seq) FROM {names['schema']}.rows").fetchone()[0]
    if kind == "files":
        paths = [path for path in (folder / "out").rglob("*.json") if "_tidemill" not in path.parts]
        return sum(path.read_bytes().count(b"\n") for path in paths)
    if kind == "kafka":
        consumer = Consumer({"bootstrap.servers": BROKERS, "group.id": "none", "isolation.level": "read_committed",
                             "enable.partition.eof": True, "enable.auto.commit": False})
        consumer.assign([TopicPartition(names["out"], partition, 0) for partition in range(PARTITIONS)])
        rows = ended = 0
        while ended < PARTITIONS:
            for message in consumer.consume(10000, 30):
                if message.error():
                    ended += 1
                else:
                    rows += 1
        consumer.close()
        return rows
    return None


def fresh(work):
    """A folder, and names in the servers that nobody has used."""
    folder = work / "kafka-run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tag = uuid.uuid4().hex[:12]
    # A job of its own: the marks of another run would say that its rows are there.
    names = {"job": f"bench-{tag}", "schema": f"bench_{tag}", "out": f"bench-out-{tag}", "group": f"bench-{tag}"}
    with psycopg.connect(PG_URL, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {names['schema']}")
    names["url"] = f"{PG_URL}?options=-c%20search_path%3D{names['schema']}"
    make_topic(names["out"])
    return folder, names


def clean_up(names):
    with psycopg.connect(PG_URL, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA {names['schema']} CASCADE")
    for gone in ADMIN.delete_topics([names["out"]]).values():
        gone.result()


def one(binary, work, topic, kind, records):
    folder, names = fresh(work)
    (folder / "job.yaml").write_text(job(topic, kind, names))
    used = run([binary, "run", folder / "job.yaml", "--once", "--data-dir", folder / "data"], {}, folder)
    rows = counted_to(records, kind, names, folder)
    if rows is not None and rows != records:
        sys.exit(f"{kind}: {rows} rows of {records}, so no time counts")
    clean_up(names)
    return used


def copy(work, topic, records):
    """The same rows by psql's \\copy from a CSV file: its CPU, and the clock."""
    folder, names = fresh(work)
    consumer = Consumer({"bootstrap.servers": BROKERS, "group.id": "none", "enable.partition.eof": True,
                         "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    ended = 0
    with open(folder / "rows.csv", "w") as file:
        while ended < PARTITIONS:
            for message in consumer.consume(10000, 30):
                if message.error():
                    ended += 1
                    continue
                row = json.loads(message.value())
                row["agent"] = row["agent"].strip().lower()
                file.write(",".join(f'"{value}"' for value in row.values()) + "\n")
    consumer.close()
    table = f"{names['schema']}.rows"
    with psycopg.connect(PG_URL, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE {table} (seq bigint, sent_us bigint, status int, bytes bigint, agent text, text text)")
    psql = [f"{os.environ['PG_BIN']}/psql", "-X", "-q", "-d", PG_URL, "-c", f"\\copy {table} FROM 'rows.csv' WITH (FORMAT csv)"]
    used = run(psql, {}, folder)
    rows = counted("postgres", names, folder)
    if rows != records:
        sys.exit(f"\\copy: {rows} rows of {records}")
    clean_up(names)
    return used


def throughput(given, work):
    for size in [int(text) for text in given.sizes.split(",")]:
        topic = f"bench-in-{uuid.uuid4().hex[:12]}"
        make_topic(topic)
        total = fill(topic, given.records, size)
        results = {kind: [] for kind in given.kinds.split(",")}
        for turn in range(given.runs):
            for kind in results:
                used = copy(work, topic, given.records) if kind == "psql" else one(given.tidemill.resolve(), work, topic, kind, given.records)
                results[kind].append(used)
                print(f"{size} B, run {turn + 1}: {kind}: {used['cpu']:.2f} s of CPU, {used['clock']:.2f} s, {used['peak']:.0f} MiB", file=sys.stderr)
        print(f"\n{given.records:,} records of {total / given.records:.0f} bytes, {given.runs} runs each in turns, the best of them.\n")
        print("| kafka to | MB per CPU-second | rows per CPU-second | CPU s | clock s | peak MiB |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for kind, runs in results.items():
            best = min(runs, key=lambda used: used["cpu"])
            name = {"psql": "(psql `\\copy` of the rows, from a CSV file)"}.get(kind, kind.replace(" off", ", at least once"))
            print(f"| {name} | {total / 1e6 / best['cpu']:.1f} | {given.records / best['cpu']:,.0f} | {best['cpu']:.2f} "
                  f"| {best['clock']:.2f} | {max(used['peak'] for used in runs):.0f} |")
        for gone in ADMIN.delete_topics([topic]).values():
            gone.result()


def quantiles(values):
    values = sorted(values)
    return values[len(values) // 2] * 1000, values[min(len(values) - 1, int(len(values) * 0.99))] * 1000


def produce_at(topic, rate, seconds):
    """Sends `rate` records a second, each with the time of its sending in it."""
    text = "x" * 300
    producer = Producer({"bootstrap.servers": BROKERS, "linger.ms": 5, "acks": "all"})
    begun, seq = time.monotonic(), 0
    while seq < rate * seconds:
        due = begun + seq / rate
        now = time.monotonic()
        if due > now:
            producer.poll(0)
            time.sleep(min(due - now, 0.001))
            continue
        producer.produce(topic, record(seq, 300, text), str(seq))
        seq += 1
    producer.flush()


def bare(rate, seconds):
    """Produced to consumed, with nothing between."""
    topic = f"bench-bare-{uuid.uuid4().hex[:12]}"
    make_topic(topic)
    consumer = Consumer({"bootstrap.servers": BROKERS, "group.id": "none", "enable.auto.commit": False, "fetch.wait.max.ms": 10})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    consumer.poll(1)
    took = []
    sender = multiprocessing.Process(target=produce_at, args=(topic, rate, seconds))
    sender.start()
    until = time.monotonic() + seconds + PATIENCE_S
    while len(took) < rate * seconds and time.monotonic() < until:
        for message in consumer.consume(1000, 0.01):
            if not message.error():
                took.append(time.time() - json.loads(message.value())["sent_us"] / 1e6)
    sender.join()
    consumer.close()
    return quantiles(took)


def committed(binary, work, rate, seconds):
    """Produced to committed: when another connection sees the row."""
    folder, names = fresh(work)
    topic = f"bench-latency-{uuid.uuid4().hex[:12]}"
    make_topic(topic)
    (folder / "job.yaml").write_text(job(topic, "postgres", names))
    with open(folder / "said", "w") as said:
        daemon = subprocess.Popen([binary, "run", folder / "job.yaml", "--data-dir", folder / "data", "--http", "127.0.0.1:0"],
                                  stdout=said, stderr=said)
    took, warmup = [], 20
    producer = Producer({"bootstrap.servers": BROKERS})
    for seq in range(warmup):
        producer.produce(topic, record(-1 - seq, 300, "x" * 300))
    producer.flush()
    with psycopg.connect(PG_URL, autocommit=True) as reader:
        until = time.monotonic() + PATIENCE_S
        while True:
            exists = reader.execute("SELECT to_regclass(%s)", [f"{names['schema']}.rows"]).fetchone()[0]
            if exists and reader.execute(f"SELECT count(*) FROM {names['schema']}.rows").fetchone()[0] == warmup:
                break
            if time.monotonic() > until or daemon.poll() is not None:
                sys.exit(f"the daemon does not work:\n{(folder / 'said').read_text()}")
            time.sleep(0.05)
        reader.execute(f"CREATE INDEX ON {names['schema']}.rows (seq)")
        sender = multiprocessing.Process(target=produce_at, args=(topic, rate, seconds))
        sender.start()
        seen = set()
        until = time.monotonic() + seconds + PATIENCE_S
        # Partitions are committed in one transaction, but a batch need not have the records in the order of their numbers.
        query = f"SELECT seq, sent_us FROM {names['schema']}.rows WHERE seq >= %s"
        low = 0
        while len(seen) < rate * seconds and time.monotonic() < until:
            found = reader.execute(query, [low]).fetchall()
            now = time.time()
            for seq, sent_us in found:
                if seq not in seen:
                    seen.add(seq)
                    took.append(now - sent_us / 1e6)
            while low in seen:
                low += 1
        sender.join()
    daemon.terminate()
    daemon.wait()
    clean_up(names)
    if len(seen) != rate * seconds:
        sys.exit(f"{len(seen)} rows of {rate * seconds} after {PATIENCE_S} s")
    return quantiles(took)


def latency(given, work):
    print("\nFrom produced to committed in PostgreSQL (`trigger: asap`, seen by another connection), beside a bare loop of a producer"
          "\nand a consumer in the same run; milliseconds.\n")
    print("| records a second | committed p50 | p99 | bare p50 | p99 | ratio p50 | p99 |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for rate in (1, 100, 5000):
        seconds = given.seconds * 3 if rate == 1 else given.seconds
        ours, theirs = committed(given.tidemill.resolve(), work, rate, seconds), bare(rate, seconds)
        print(f"| {rate:,} | {ours[0]:.1f} | {ours[1]:.1f} | {theirs[0]:.1f} | {theirs[1]:.1f} | {ours[0] / theirs[0]:.1f} | {ours[1] / theirs[1]:.1f} |", flush=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tidemill", type=Path, required=True)
    arguments.add_argument("--records", type=int, default=1_000_000)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--sizes", default="1000,300")
    arguments.add_argument("--seconds", type=int, default=10, help="of latency at each rate; 0: no latency")
    arguments.add_argument("--kinds", default="blackhole,files,postgres,postgres off,kafka,kafka off,psql")
    arguments.add_argument("--work", type=Path, default=Path("target/bench"))
    given = arguments.parse_args()
    work = given.work.resolve()
    throughput(given, work)
    if given.seconds:
        latency(given, work)


if __name__ == "__main__":
    main()
