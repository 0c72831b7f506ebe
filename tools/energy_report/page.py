"""The report as one HTML file: readable without JavaScript, without a network, and on paper.

Beside each figure stands its table, and what its numbers are, in words.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from tools.energy_report.words import MEANINGS

Row = dict[str, Any]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
  color: #111; background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.5rem }
figure { margin: 0; display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: flex-start }
figure img { max-width: 100%; flex: 0 1 46rem } figcaption { flex: 1 1 16rem; max-width: 40rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; margin: .8rem 0 }
th, td { padding: .15rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th { vertical-align: bottom; background: #f4f4f4 } th:first-child, td:first-child { text-align: left }
.text.text { text-align: left } .unknown { color: #666 } .note { border-left: 4px solid #D55E00; padding-left: .8rem }
@media print { body { max-width: none } h2 { break-after: avoid } }
"""
# No script could run even if a name in a file smuggled one in.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, parts: Iterable[str]) -> str:
    """Return the whole file."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def section(title: str, words: str, figure: str | None, tables: Sequence[str]) -> str:
    """Return a heading, a figure (SVG text) with what it shows in words, and its tables."""
    image = "<p><b>No figure</b>: not enough of it is known.</p>"
    if figure is not None:
        data = base64.b64encode(figure.encode()).decode()
        image = f'<img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}">'
    return (
        f"<h2>{escape(title)}</h2>\n<figure>{image}<figcaption>{escape(words)}</figcaption></figure>\n"
        + "\n".join(tables)
    )


def notes(texts: Iterable[str]) -> str:
    """Return what must be known before any figure is looked at."""
    return "".join(f'<p class="note">{escape(text)}</p>' for text in texts)


def meanings(kinds: Iterable[str]) -> str:
    """Return what each kind that occurs means."""
    items = "".join(
        f"<li><b>{escape(kind)}</b>: {escape(MEANINGS[kind])}</li>" for kind in sorted(set(kinds))
    )
    return f"<ul>{items}</ul>"


def table(rows: Sequence[Row], columns: dict[str, str]) -> str:
    """Return rows as a table; `columns` is the heading of each key.

    A figure whose row holds its uncertainty is shown with it. None is "unknown", never an empty cell.
    """
    texts = {key for key in columns if rows and isinstance(rows[0][key], str)}
    head = "".join(
        f'<th scope="col"{" class=text" if key in texts else ""}>{escape(heading)}</th>'
        for key, heading in columns.items()
    )
    body = "".join(f"<tr>{''.join(_cell(row, key) for key in columns)}</tr>\n" for row in rows)
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'
    )


def _cell(row: Row, key: str) -> str:
    value = row[key]
    if value is None:
        return '<td class="unknown">unknown</td>'
    if isinstance(value, str):
        return f'<td class="text">{escape(value)}</td>'
    stem, _, unit = key.rpartition("_")
    error = row.get(f"{stem}_uncertainty_{unit}", row.get("uncertainty_j") if key == "energy_j" else None)
    return f"<td>{number(value)}{'' if error is None else f' ± {number(error, 2)}'}</td>"


def number(value: float, digits: int = 4) -> str:
    """Return a number as people read it: so many significant digits, thousands apart."""
    if isinstance(value, int):
        return f"{value:,}"
    if 1e-3 <= abs(value) < 1e6:
        return f"{float(f'{value:.{digits}g}'):,.10f}".rstrip("0").rstrip(".")
    return f"{value:.{digits}g}"
