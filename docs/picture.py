#!/usr/bin/env python3
"""The picture of the README, from a real run: `tidemill demo | docs/picture.py > docs/demo.svg` (make picture).

Long stretches of like lines are cut, and said to be; nothing else is changed.
"""

import re
import sys
from html import escape

LINE_PX, CHAR_PX, MARGIN_PX, BAR_PX = 20, 8.4, 20, 36
#: Of the lines that a batch prints, so many are shown.
SHOWN = 4
#: Batches shown before and after the kill.
BEFORE, AFTER = 2, 2
BATCH = re.compile(r"^\d\d:\d\d:\d\d · batch ")
STYLES = [
    (BATCH, "batch"),
    (re.compile(r"^✗"), "bad"),
    (re.compile(r"^✓"), "good"),
    (re.compile(r"^  (lost|doubled) +0 +0$"), "good"),
    (re.compile(r"^  …"), "dim"),
]


def cut(lines):
    """The lines of the picture: the prompt, some batches, the kill, some batches, the count."""
    yield "$ make demo"
    batches, shown, rows, more, killed = 0, 0, 0, 0, False
    for line in lines:
        if line.startswith("Look around"):
            return
        if line.startswith("✗"):
            batches, killed = 0, True
        is_batch, is_row = bool(BATCH.match(line)), line.startswith("#")
        if is_batch:
            batches, shown = batches + 1, 0
        too_many = batches > (AFTER if killed else BEFORE)
        if is_row:
            shown += 1
            if too_many or shown > SHOWN:
                rows += not too_many
                continue
        elif rows:
            yield f"  … {rows} more"
            rows = 0
        if is_batch and too_many:
            more += 1
            continue
        if more:
            yield f"  … {more} batches more"
            more = 0
        yield line


def style(line):
    return next((name for pattern, name in STYLES if pattern.search(line)), "text")


def main():
    lines = [line for line in cut(sys.stdin.read().splitlines())]
    while lines and not lines[-1].strip():
        lines.pop()
    width = round(max(len(line) for line in lines) * CHAR_PX + 2 * MARGIN_PX)
    height = BAR_PX + len(lines) * LINE_PX + 2 * MARGIN_PX
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        'aria-label="A terminal: tidemill demo prints batches of posts, is killed, goes on, and counts: lost 0, doubled 0">',
        "<style>text{font:14px ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;white-space:pre}"
        ".text{fill:#c9d6df}.batch{fill:#6cc3d5;font-weight:bold}.bad{fill:#ff8a80;font-weight:bold}"
        ".good{fill:#9ccc65;font-weight:bold}.dim{fill:#78909c}</style>",
        f'<rect width="{width}" height="{height}" rx="10" fill="#10212b"/>',
        *(f'<circle cx="{MARGIN_PX + 20 * n}" cy="{BAR_PX // 2}" r="6" fill="#37505e"/>' for n in range(3)),
    ]
    for number, line in enumerate(lines):
        y = BAR_PX + MARGIN_PX + number * LINE_PX
        out.append(f'<text class="{style(line)}" x="{MARGIN_PX}" y="{y}" xml:space="preserve">{escape(line)}</text>')
    print("\n".join([*out, "</svg>"]))


if __name__ == "__main__":
    main()
