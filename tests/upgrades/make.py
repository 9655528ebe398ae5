#!/usr/bin/env python3
"""Makes the fixtures of `tests/tests/e2e/upgrades.rs`: data dirs and sinks as one version of Tidemill leaves them.

    make.py BINARY NAME      # a debug build of the version, and the folder for its fixtures

Each fixture is a folder in which the daemon was killed in the middle of a batch, as a tar with times in nanoseconds: a
directory source knows its files by them. Paths in the jobs are relative, so it goes on wherever it is unpacked.
"""
import os, shutil, signal, socket, subprocess, sys, tempfile, time

BINARY, NAME = os.path.abspath(sys.argv[1]), sys.argv[2]
HERE = os.path.dirname(os.path.abspath(__file__))
DIRECTORY = "  in: { type: directory, path: in, settle: 0s, codec: json, schema: { n: int64 } }\n"
SOCKET = '  in: { type: socket, listen: "127.0.0.1:${PORT:-0}", ack: line, codec: json, schema: { n: int64 } }\n'
DB = "  db: { type: sqlite, path: out/rows.db, table: rows }\n"
FILES = "  files: { type: files, path: files, codec: json }\n"
NOWHERE = "  nowhere: { type: blackhole }\n"


def job(source, *sinks):
    return ("job: upgrade\ntrigger: asap\ntakeover_after: 1s\nbatch: { max_records: 10 }\nsources:\n"
            + source + "sinks:\n" + "".join(sinks))


def port():
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return any_port.getsockname()[1]


def publish(folder, start, end):
    os.makedirs(f"{folder}/in", exist_ok=True)
    hidden = f"{folder}/in/.{start:03}"
    with open(hidden, "w") as out:
        out.writelines(f'{{"n":{n}}}\n' for n in range(start, end))
    os.rename(hidden, f"{folder}/in/{start:03}.json")


def run(folder, failpoint=None, once=False, listen=None):
    env = {k: v for k, v in os.environ.items() if not k.startswith("TIDEMILL")}
    if failpoint:
        env["TIDEMILL_FAILPOINT"] = failpoint
    if listen:
        env["PORT"] = str(listen)
    command = [BINARY, "run", "job.yaml", "--data-dir", "data", "--http", f"127.0.0.1:{port()}"]
    return subprocess.Popen(command + (["--once"] if once else []), cwd=folder, env=env)


def killed(process):
    code = process.wait(60)
    assert code == -signal.SIGKILL, f"exit {code}: the failpoint was not reached"


def send(listen, numbers):
    for _ in range(200):
        try:
            with socket.create_connection(("127.0.0.1", listen)) as peer:
                peer.sendall("".join(f'{{"n":{n}}}\n' for n in numbers).encode())
                acked, answers = 0, peer.makefile()
                while acked < len(numbers):
                    acked = int(answers.readline().split()[-1])
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise SystemExit("the daemon does not listen")


def directory(failpoint, *sinks):
    def make(folder):
        with open(f"{folder}/job.yaml", "w") as out:
            out.write(job(DIRECTORY, *sinks))
        publish(folder, 0, 25)
        assert run(folder, once=True).wait(60) == 0
        publish(folder, 25, 60)
        killed(run(folder, failpoint))
    return make


def moving(folder):
    """The anchor's place goes from the ledger to a sink that was added; one of the two has the plan."""
    directory("after-sinks:2:kill", NOWHERE)(folder)
    with open(f"{folder}/job.yaml", "w") as out:
        out.write(job(DIRECTORY, NOWHERE, DB))
    killed(run(folder, "mark:2:kill"))


def spool(folder):
    with open(f"{folder}/job.yaml", "w") as out:
        out.write(job(SOCKET, DB, FILES))
    listen = port()
    process = run(folder, listen=listen)
    send(listen, range(25))
    time.sleep(2)
    process.terminate()
    assert process.wait(60) == 0
    # Everything is in the spool and acknowledged; of the batches one is in the anchor alone, the rest is planned by nobody.
    process = run(folder, "plan:1:error+", listen=listen)
    send(listen, range(25, 60))
    process.kill()
    process.wait()
    killed(run(folder, "after-anchor:2:kill", listen=listen))


def main():
    target = f"{HERE}/{NAME}"
    shutil.rmtree(target, ignore_errors=True)
    os.makedirs(target)
    for name, make in {
        "directory-to-sqlite": directory("before-anchor:2:kill", DB),
        "directory-to-files": directory("before-anchor:2:kill", FILES),
        "directory-to-both": directory("after-anchor:2:kill", DB, FILES),
        "socket-to-both": spool,
        "ledger-as-anchor": directory("after-sinks:2:kill", NOWHERE),
        "anchor-on-its-way": moving,
    }.items():
        with tempfile.TemporaryDirectory() as folder:
            make(folder)
            for path in ["data/control.sock", "data/upgrade/job-file"]:
                if os.path.exists(f"{folder}/{path}"):
                    os.remove(f"{folder}/{path}")
            archive = f"{target}/{name}.tar.gz"
            subprocess.run(f"tar --format=posix --sort=name --owner=0 --group=0 -c . | gzip -9n > {archive}",
                           shell=True, cwd=folder, check=True)
            print(f"{name}: {os.path.getsize(archive)} bytes")


main()
