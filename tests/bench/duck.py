#!/usr/bin/env python3
"""Job W as DuckDB does it, with one thread: duck.py INPUT OUTPUT. Says its version and seconds of CPU as JSON."""

import json
import resource
import sys

import duckdb

STRINGS = ["ip", "ident", "user", "time", "request", "response", "bytes", "referrer", "agent"]

QUERY = r"""
COPY (
    SELECT
        ip, ident, "user",
        strftime(strptime("time", '%d/%b/%Y:%H:%M:%S %z') AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%SZ') AS "time",
        request,
        CAST(nullif(response, '-') AS INTEGER) AS response,
        CAST(nullif(bytes, '-') AS BIGINT) AS bytes,
        referrer,
        lower(trim(agent)) AS agent,
        concat(CAST(CAST(response AS INTEGER) // 100 AS VARCHAR), 'xx') AS status_class,
        regexp_matches(lower(agent), 'bot|crawl|spider') AS is_bot,
        split_part(request, ' ', 1) AS method,
        split_part(request, ' ', 2) AS path,
        split_part(request, ' ', 3) AS protocol
    FROM read_json('{input}', format = 'newline_delimited', columns = {columns})
    WHERE response <> '-' AND CAST(nullif(response, '-') AS INTEGER) < 500
) TO '{output}' (FORMAT json)
"""


def main():
    source, target = sys.argv[1:]
    columns = "{" + ", ".join(f"'{name}': 'VARCHAR'" for name in STRINGS) + "}"
    database = duckdb.connect(config={"threads": 1, "preserve_insertion_order": True})
    database.execute(QUERY.format(input=source, output=target, columns=columns))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"version": duckdb.__version__, "cpu": used.ru_utime + used.ru_stime}))


if __name__ == "__main__":
    main()
