#!/usr/bin/env python3
"""Job W beside DuckDB: the same input, the same rows, seconds of CPU. Writes a Markdown table to stdout.

    bench.py --tidemill BINARY [--size-mb 1000] [--runs 3] [--log apache_logs] [--work FOLDER] [--only duckdb]

Each side runs in a process of its own, in turns; user and system time and the peak of resident memory come from the
kernel (wait4). Before any time counts, the rows of both sides are compared: all of them, as multisets.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import weblog  # noqa: E402

#: Lines made up where there is no log to repeat.
MADE_UP = 10_000


def make_input(path, size, log):
    """Repeats the log's lines as JSON up to `size` bytes. Kept between runs."""
    if path.exists() and path.stat().st_size >= size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = weblog.parse(log) if log else weblog.made_up(MADE_UP)
    block = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows).encode()
    with open(path, "wb") as file:
        while file.tell() < size:
            file.write(block)


def high_water_kib(pid):
    """The most memory that a process had so far."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def run(command, env, folder):
    """Runs a command; returns seconds of CPU, seconds of the clock and the peak of memory in MiB."""
    begun = time.monotonic()
    peak, status = 0, None
    with open(folder / "said", "w") as said:
        child = subprocess.Popen(command, env={**os.environ, **env}, cwd=folder, stdout=said, stderr=said)
        # The kernel's `ru_maxrss` begins with what this script had when it forked.
        while status is None:
            peak = max(peak, high_water_kib(child.pid))
            done, code, used = os.wait4(child.pid, os.WNOHANG)
            if done:
                status = code
            else:
                time.sleep(0.002)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{command} ended with {child.returncode}:\n{(folder / 'said').read_text()}")
    return {"cpu": used.ru_utime + used.ru_stime, "clock": time.monotonic() - begun, "peak": peak / 1024}


def tidemill(binary, source, folder):
    out = folder / "out"
    env = {"W_INPUT": str(source.parent), "W_OUTPUT": str(out)}
    job = folder / "w.yaml"
    shutil.copy(HERE / "w.yaml", job)
    used = run([binary, "run", job, "--once", "--data-dir", folder / "data"], env, folder)
    return used, sorted(path for path in out.rglob("*.json") if "_tidemill" not in path.parts)


def duckdb(python, source, folder):
    out = folder / "out.json"
    return run([python, HERE / "duck.py", source, out], {}, folder), [out]


def canonical(row):
    """What both sides agree on: a text, whatever the order of fields and the spelling of a time without fractions."""
    row["time"] = row["time"].replace("+00:00", "Z").replace(".000000Z", "Z").replace(".000Z", "Z")
    return json.dumps(row, sort_keys=True, ensure_ascii=False).encode()


def fingerprint(files):
    """The count of rows and the sum of their hashes: equal for equal multisets."""
    count, total, known = 0, 0, {}
    for file in files:
        with open(file, "rb") as lines:
            for line in lines:
                value = known.get(line)
                if value is None:
                    digest = hashlib.blake2b(canonical(json.loads(line)), digest_size=16).digest()
                    value = known[line] = int.from_bytes(digest)
                count += 1
                total = (total + value) % 2**128
    return count, total


def table(source, sides, runs):
    size = source.stat().st_size / 1e6
    print(f"Job W, {size:.0f} MB of JSON lines, {runs} runs each in turns, the best of them; rows are the same on all sides.\n")
    print("| | MB per CPU-second | CPU s | clock s | peak MiB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, results in sides.items():
        best = min(results, key=lambda used: used["cpu"])
        peak = max(used["peak"] for used in results)
        print(f"| {name} | {size / best['cpu']:.1f} | {best['cpu']:.2f} | {best['clock']:.2f} | {peak:.0f} |")
    listed = "; ".join(f"{name} " + ", ".join(f"{used['cpu']:.2f}" for used in results) for name, results in sides.items())
    print(f"\nAll runs, CPU s: {listed}")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tidemill", type=Path)
    arguments.add_argument("--size-mb", type=int, default=1000)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--log", type=Path)
    arguments.add_argument("--work", type=Path, default=Path("target/bench"))
    arguments.add_argument("--only", choices=["tidemill", "duckdb"])
    given = arguments.parse_args()
    work = given.work.resolve()
    log = given.log if given.log and given.log.is_file() else None
    if not log:
        print("no web log: lines are made up from a seed", file=sys.stderr)
    source = work / f"in-{given.size_mb}-{'log' if log else 'seed'}" / "weblog.json"
    make_input(source, given.size_mb * 1_000_000, log)

    sides = {"DuckDB, one thread": lambda folder: duckdb(sys.executable, source, folder)}
    if given.tidemill:
        sides["Tidemill"] = lambda folder: tidemill(given.tidemill.resolve(), source, folder)
    if given.only:
        sides = {name: side for name, side in sides.items() if name.lower().startswith(given.only)}
    results = {name: [] for name in sides}
    prints = {}
    for turn in range(given.runs):
        for name, side in sides.items():
            folder = work / "run"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            used, files = side(folder)
            print(f"run {turn + 1}: {name}: {used['cpu']:.2f} s of CPU, {used['peak']:.0f} MiB", file=sys.stderr)
            results[name].append(used)
            if name not in prints:
                prints[name] = fingerprint(files)
                print(f"{name}: {prints[name][0]} rows, fingerprint {prints[name][1]:032x}", file=sys.stderr)
    if len(set(prints.values())) != 1 or next(iter(prints.values()))[0] == 0:
        sys.exit(f"the sides do not give the same rows, so no time counts: {prints}")
    table(source, results, given.runs)


if __name__ == "__main__":
    main()
