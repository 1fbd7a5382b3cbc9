#!/usr/bin/env python3
"""Draws the bars of README: processor time an operation over http, as multiples of a bare libcurl loop's.

    bars.py ROWS.md OUT.svg [NOTE]     ROWS.md: the Markdown table of `bench table`
"""

import html
import re
import sys

SCALE_MAX = 4.0  # longer bars are cut, and say their number
LEFT, WIDTH, BAR, GAP = 250, 420, 12, 12
COLOURS = {'s3cache': '#2f6fb3', 'libs3': '#9a9a9a', 'boto3': '#d0a040'}


def rows(path):
    """(work, {who: multiple}) of each row that compares time with another client's."""
    for line in open(path, encoding='utf-8'):
        cells = [cell.strip() for cell in line.strip().strip('|').split('|')]
        if len(cells) < 8 or cells[1] != 'http' or not re.search(r'\d (us|ms|s)$', cells[2]):
            continue
        multiples = {'s3cache': float(cells[4].split()[0])}
        for who in ('libs3', 'boto3'):
            found = re.search(who + r'[^,]*?x\s*([\d.]+)', cells[7])
            if found:
                multiples[who] = float(found[1])
        if len(multiples) > 1:
            yield cells[0].split(' (')[0], multiples


def bar(y, who, multiple):
    length = min(multiple, SCALE_MAX) / SCALE_MAX * WIDTH
    return ('<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d">%s %g%s</text>'
            % (LEFT, y, length, BAR, COLOURS[who], LEFT + length + 5, y + 10, who, multiple,
               ', cut' if multiple > SCALE_MAX else ''))


def picture(table, note):
    parts, y = [], 40
    for work, multiples in table:
        parts.append('<text x="%d" y="%d" text-anchor="end">%s</text>' % (LEFT - 10, y + 10, html.escape(work)))
        for who, multiple in multiples.items():
            parts.append(bar(y, who, multiple))
            y += BAR + 2
        y += GAP
    one = LEFT + WIDTH / SCALE_MAX
    parts.append('<path d="M%.1f 30V%d" stroke="#c03030" stroke-dasharray="4 3"/>' % (one, y))
    head = '<text x="%.1f" y="22" text-anchor="middle" fill="#c03030">a bare libcurl loop</text>' % one
    foot = '<text x="10" y="%d" fill="#666">%s</text>' % (y + 16, html.escape(note))
    return ('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">'
            '<rect width="100%%" height="100%%" fill="#fff"/>%s%s%s</svg>\n'
            % (LEFT + WIDTH + 110, y + 28, head, '\n'.join(parts), foot))


def main():
    table = list(rows(sys.argv[1]))
    if not table:
        return 'bars: no row of that table compares time with other clients over http'
    note = sys.argv[3] if len(sys.argv) > 3 else 'Processor time an operation over http; shorter is better. libs3 hashes no payload.'
    with open(sys.argv[2], 'w', encoding='utf-8') as out:
        out.write(picture(table, note))
    return 0


if __name__ == '__main__':
    sys.exit(main())
