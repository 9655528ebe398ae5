#!/usr/bin/env python3
"""What Python's csv and json make of a file, as JSON lines: the other side of tests with real data.

    reference.py csv OUT DELIMITER ENCODING NULL FILE...    rows by the header's names; texts, NULL and the empty one are null
    reference.py json OUT FILE                              the objects of JSON lines, as they are
    reference.py same THEIRS OURS                           two files of JSON lines, in order: equal but for nulls, which
                                                            may be missing, and values kept as the text of their JSON
    reference.py sql QUERY TABLE FILE...                    a query over CSV files that SQLite has imported as text
"""

import csv
import json
import sqlite3
import sys


def write(rows, out):
    with open(out, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_csv(files, delimiter=",", encoding="utf-8", null=""):
    csv.field_size_limit(1 << 30)
    for name in files:
        with open(name, encoding=encoding, newline="") as file:
            for row in csv.DictReader(file, delimiter=delimiter):
                yield {key: None if value in ("", null) else value for key, value in row.items()}


def pruned(value):
    if isinstance(value, dict):
        return {key: pruned(inner) for key, inner in value.items() if inner is not None}
    return [pruned(inner) for inner in value] if isinstance(value, list) else value


def is_same(theirs, ours):
    if isinstance(ours, str) and not isinstance(theirs, str):
        try:
            ours = pruned(json.loads(ours))
        except ValueError:
            return False
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return theirs.keys() == ours.keys() and all(is_same(theirs[key], ours[key]) for key in theirs)
    if isinstance(theirs, list) and isinstance(ours, list):
        return len(theirs) == len(ours) and all(map(is_same, theirs, ours))
    return theirs == ours and isinstance(theirs, bool) == isinstance(ours, bool)


def lines(name):
    with open(name, encoding="utf-8") as file:
        return [pruned(json.loads(line)) for line in file if line.strip()]


def same(theirs, ours):
    theirs, ours = lines(theirs), lines(ours)
    if len(theirs) != len(ours):
        sys.exit(f"{len(theirs)} records against {len(ours)}")
    for number, (one, other) in enumerate(zip(theirs, ours)):
        for key in one.keys() | other.keys():
            if not is_same(one.get(key), other.get(key)):
                sys.exit(f"record {number}, {key}:\n{json.dumps(one.get(key))[:2000]}\n{json.dumps(other.get(key))[:2000]}")


def sql(query, table, files):
    database = sqlite3.connect(":memory:")
    for number, row in enumerate(read_csv(files)):
        if number == 0:
            database.execute(f"CREATE TABLE {table} ({', '.join(f'[{name}]' for name in row)})")
        database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", list(row.values()))
    cursor = database.execute(query)
    for row in cursor:
        print(json.dumps(dict(zip([column[0] for column in cursor.description], row))))


def main():
    match sys.argv[1:]:
        case ["csv", out, delimiter, encoding, null, *files]:
            write(read_csv(files, delimiter, encoding, null), out)
        case ["json", out, file]:
            write(lines(file), out)
        case ["same", theirs, ours]:
            same(theirs, ours)
        case ["sql", query, table, *files]:
            sql(query, table, files)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
