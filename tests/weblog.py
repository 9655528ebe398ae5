#!/usr/bin/env python3
"""A web log in Apache's combined format: as JSON lines, as the rows that job W makes of it, and made up from a seed.

    weblog.py parse LOG OUT          the log's lines as JSON lines of string fields
    weblog.py expect LINES OUT       the rows that the job in bench/w.yaml should write for such lines
    weblog.py generate OUT COUNT     made-up lines, the same ones each time

This is the other side of tests and benches: nothing here is Tidemill's.
"""

import json
import random
import re
import sys
from datetime import datetime, timedelta, timezone

# The last quote is optional: one line of the well-known sample is cut off.
LINE = re.compile(r'^(\S+) (\S+) (\S+) \[(.*?)\] "(.*?)" (\S+) (\S+) "(.*?)" "(.*?)"?$')
FIELDS = ["ip", "ident", "user", "time", "request", "response", "bytes", "referrer", "agent"]
BOT = re.compile("bot|crawl|spider")


def parse(log):
    """Yields each line of a log as a dict of strings. A line of another form is an error."""
    with open(log, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            found = LINE.match(line.rstrip("\n"))
            if not found:
                sys.exit(f"{log}:{number}: not in the combined format: {line!r}")
            yield dict(zip(FIELDS, found.groups()))


def made_up(count, seed=1):
    """Yields lines of the same shape as a real log, with all that job W has to deal with."""
    chance = random.Random(seed)
    at = datetime(2015, 5, 17, 10, 5, tzinfo=timezone.utc)
    agents = [f" Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.{n} (KHTML, like Gecko) Chrome/{n} Safari/537.36 " for n in range(60)]
    agents += ["Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.example.com/bot.html)", "Baiduspider", "Example-Crawler/1.0"]
    for number in range(count):
        at += timedelta(milliseconds=chance.randrange(2000))
        yield {
            "ip": ".".join(str(chance.randrange(256)) for _ in range(4)),
            "ident": "-",
            "user": chance.choice(["-", "-", "-", "anna", "józef"]),
            "time": at.strftime("%d/%b/%Y:%H:%M:%S +0000"),
            "request": f"{chance.choice(['GET', 'GET', 'GET', 'POST'])} /shop/{chance.randrange(5000)}?q=%22{number}%22 HTTP/1.1",
            "response": chance.choice(["200"] * 16 + ["301", "304", "404", "500", "-"]),
            "bytes": chance.choice(["-", str(chance.randrange(200000))]),
            "referrer": chance.choice(["-", "http://www.example.com/a \"quoted\" path\\"]),
            "agent": chance.choice(agents),
        }


def expected(row):
    """The row that job W makes of one line, or None where it drops it."""
    number = lambda text: None if text == "-" else int(text)
    response = number(row["response"])
    if response is None or response >= 500:
        return None
    at = datetime.strptime(row["time"], "%d/%b/%Y:%H:%M:%S %z").astimezone(timezone.utc)
    agent = row["agent"].strip().lower()
    pieces = row["request"].split(" ", 2) + [None, None]
    return {
        **row,
        "time": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "response": response,
        "bytes": number(row["bytes"]),
        "agent": agent,
        "status_class": f"{response // 100}xx",
        "is_bot": BOT.search(agent) is not None,
        "method": pieces[0],
        "path": pieces[1],
        "protocol": pieces[2],
    }


def write(rows, out):
    with open(out, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


def main():
    match sys.argv[1:]:
        case ["parse", log, out]:
            write(parse(log), out)
        case ["generate", out, count]:
            write(made_up(int(count)), out)
        case ["expect", lines, out]:
            with open(lines, encoding="utf-8") as file:
                rows = (expected(json.loads(line)) for line in file)
                write((row for row in rows if row is not None), out)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
