# SPDX-License-Identifier: MIT
"""Which kernels can hand over to which: a table with the reasons below it, a document, a picture."""

from __future__ import annotations

import json
import textwrap
import xml.etree.ElementTree as ElementTree

import click

from safemem.boot import record
from safemem.boot.printable import printable
from safemem.outgoing.pairs import Pair, Pairs
from safemem.render.text import width

#: Outcome -> how a cell says it, in few letters.
_WORDS = {
    "accepted": "yes", "none": "nothing", "rejected": "rejected", "unsupported": "no KHO", "panic": "panics", "unknown": "unknown"
}  # fmt: skip
#: Where the outcome does not say it.
_CODES = {"other-arch": "other arch", "page-size": "page size"}
_COLOURS = {"compatible": "green", "incompatible": "red", "cannot tell": "yellow"}
#: What a letter takes in a picture at 14 px, and the sizes of a cell; px.
_LETTER, _CELL, _ROW, _TOP = 8.4, 104, 40, 60


def _word(pair: Pair) -> str:
    found = pair.prediction
    if found.code in _CODES:
        return _CODES[found.code]
    return "in part" if found.outcome == "accepted" and found.lost else _WORDS[found.outcome]


def _why(pair: Pair) -> str:
    lost = f"; lost: {', '.join(pair.prediction.lost)}" if pair.prediction.lost else ""
    return f"{pair.prediction.why}{lost}"


def pairs_text(found: Pairs) -> str:
    """Return a table, a row for each kernel that hands over, and why a pair is anything but `yes`."""
    names = [printable(name) for name in found.kernels]
    rows = _rows(found)
    size = max(len(name) for name in ("from", *names))
    columns = [max(len(name), *(len(_word(row[place])) for row in rows)) for place, name in enumerate(names)]
    if size + sum(columns) + 2 * len(columns) <= width():
        lines = ["  ".join(["from".ljust(size), *(n.ljust(s) for n, s in zip(names, columns, strict=True))]).rstrip()]
        for name, row in zip(names, rows, strict=True):
            cells = (_cell(pair, space) for pair, space in zip(row, columns, strict=True))
            lines.append("  ".join([name.ljust(size), *cells]).rstrip())
    else:
        lines = [f"{printable(pair.of)} to {printable(pair.to)}: {_cell(pair, 0)}" for row in rows for pair in row]
    reasons: dict[str, list[Pair]] = {}
    for pair in found.pairs:
        if pair.verdict != "compatible":
            reasons.setdefault(printable(_why(pair)), []).append(pair)
    for why, those in reasons.items():
        places = ", ".join(f"{printable(pair.of)} to {printable(pair.to)}" for pair in those)
        lines += [
            "",
            *textwrap.wrap(f"{places}:", width()),
            *textwrap.wrap(why, width(), initial_indent="  ", subsequent_indent="  "),
        ]
    return "\n".join(lines)


def _rows(found: Pairs) -> list[tuple[Pair, ...]]:
    step = len(found.kernels)
    return [found.pairs[at : at + step] for at in range(0, len(found.pairs), step)]


def _cell(pair: Pair, size: int) -> str:
    return click.style(_word(pair).ljust(size), fg=_COLOURS[pair.verdict])


def pairs_json(found: Pairs, code: int) -> str:
    """Return the kernels and their pairs, schema 1."""
    kernels = {
        name: {"path": kernel.path, "profile": kernel.profile or None, "release": kernel.release, "arch": kernel.arch}
        for name, kernel in found.kernels.items()
    }
    pairs = [
        {
            "from": pair.of, "to": pair.to, "verdict": pair.verdict, "outcome": pair.prediction.outcome,
            "why": pair.prediction.why, "lost": list(pair.prediction.lost), "untold": list(pair.prediction.untold),
        }
        for pair in found.pairs
    ]  # fmt: skip
    document = {"schema": record.SCHEMA, "kind": "kernel-matrix", "exit_code": code, "kernels": kernels, "pairs": pairs}
    return json.dumps(document, indent=1)


_STYLE = """
text { font: 14px ui-monospace, monospace; fill: #1f2328; }
.head { font-weight: bold; }
.page { fill: #ffffff; }
.compatible { fill: #b7ebc4; } .incompatible { fill: #ffc9c4; } .cannot-tell { fill: #fbe5a3; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f3f6; } .page { fill: #0d1117; }
  .compatible { fill: #14532d; } .incompatible { fill: #7f1d1d; } .cannot-tell { fill: #5c4300; }
}
"""


def pairs_svg(found: Pairs) -> str:
    """Return a picture of the table: a file that needs no other, for light and dark pages, with the reasons as tooltips."""
    names = [printable(name) for name in found.kernels]
    left = int(max(len(name) for name in (*names, "from")) * _LETTER) + 24
    cell = max(_CELL, int(max(map(len, names)) * _LETTER) + 24)
    wide, high = left + cell * len(names), _TOP + _ROW * len(names) + 12
    svg = ElementTree.Element(
        "svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {wide} {high}", "width": str(wide),
                "height": str(high), "role": "img", "aria-labelledby": "title desc"},
    )  # fmt: skip
    yes = sum(pair.verdict == "compatible" for pair in found.pairs)
    ElementTree.SubElement(svg, "title", {"id": "title"}).text = "Which kernel can hand over to which"
    told = f"{yes} of {len(found.pairs)} ordered pairs are compatible. " + " ".join(
        f"{printable(pair.of)} to {printable(pair.to)}: {_word(pair)}." for pair in found.pairs
    )
    ElementTree.SubElement(svg, "desc", {"id": "desc"}).text = told
    ElementTree.SubElement(svg, "style").text = _STYLE
    ElementTree.SubElement(svg, "rect", {"class": "page", "width": str(wide), "height": str(high)})
    _text(svg, 12, 24, "from \\ to", "head")
    for place, name in enumerate(names):
        _text(svg, left + cell * place + cell // 2, 44, name, "head", middle=True)
    for line, (name, row) in enumerate(zip(names, _rows(found), strict=True)):
        top = _TOP + _ROW * line
        _text(svg, 12, top + 25, name, "head")
        for place, pair in enumerate(row):
            group = ElementTree.SubElement(svg, "g")
            ElementTree.SubElement(
                group, "title"
            ).text = f"{printable(pair.of)} to {printable(pair.to)}: {printable(_why(pair))}"
            box = {
                "x": str(left + cell * place + 2),
                "y": str(top + 2),
                "width": str(cell - 4),
                "height": str(_ROW - 4),
            }
            ElementTree.SubElement(group, "rect", {**box, "rx": "6", "class": pair.verdict.replace(" ", "-")})
            _text(group, left + cell * place + cell // 2, top + 25, _word(pair), middle=True)
    ElementTree.indent(svg)
    return ElementTree.tostring(svg, encoding="unicode")


def _text(parent: ElementTree.Element, x: int, y: int, text: str, kind: str = "", *, middle: bool = False) -> None:
    more = {"text-anchor": "middle"} if middle else {}
    ElementTree.SubElement(
        parent, "text", {"x": str(x), "y": str(y), **({"class": kind} if kind else {}), **more}
    ).text = text
