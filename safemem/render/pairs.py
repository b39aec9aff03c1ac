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
    "accepted": "yes", "none": "sends none", "rejected": "rejected", "unsupported": "no KHO", "panic": "panics", "unknown": "unknown"
}  # fmt: skip
#: Where the outcome does not say it.
_CODES = {"other-arch": "other arch", "page-size": "page size"}
#: What a word of a cell means.
_MEANS = {
    "yes": "all of it arrives",
    "in part": "accepted, and some of it is lost",
    "sends none": "the kernel has no KHO to hand over with",
    "no KHO": "the next kernel has no KHO to take it",
    "rejected": "another format: nothing arrives, and the next kernel uses all memory",
    "panics": "LUO's format is another one: the next kernel panics",
    "other arch": "a kernel for another architecture cannot be started",
    "page size": "a kernel with another page size cannot take it",
    "unknown": "the images do not tell",
}
_COLOURS = {"compatible": "green", "incompatible": "red", "cannot tell": "yellow"}
_CORNER = "from \\ to"
#: What a letter takes in a picture at 14 px, and the sizes of a cell; px.
_LETTER, _CELL, _ROW, _TOP, _LINE = 8.4, 104, 40, 60, 22


def _word(pair: Pair) -> str:
    found = pair.prediction
    if found.code in _CODES:
        return _CODES[found.code]
    return "in part" if found.outcome == "accepted" and found.lost else _WORDS[found.outcome]


def _why(pair: Pair) -> str:
    lost = f"; lost: {', '.join(pair.prediction.lost)}" if pair.prediction.lost else ""
    return f"{pair.prediction.why}{lost}"


def pairs_text(found: Pairs) -> str:
    """Return a table, a row for each kernel that hands over, what its words mean, and what stands against each pair."""
    names = [printable(name) for name in found.kernels]
    numbers = [str(number) for number in range(1, len(names) + 1)]
    # Names are too long for columns.
    rows = [f"{number.rjust(len(numbers[-1]))} {name}" for number, name in zip(numbers, names, strict=True)]
    size = max(len(_CORNER), *(len(row) for row in rows))
    space = max(len(_word(pair)) for pair in found.pairs)
    if size + (2 + space) * len(names) <= width():
        lines = ["  ".join([_CORNER.ljust(size), *(number.ljust(space) for number in numbers)]).rstrip()]
        for name, row in zip(rows, _rows(found), strict=True):
            lines.append("  ".join([name.ljust(size), *(_cell(pair, space) for pair in row)]).rstrip())
    else:
        lines = [line for name, row in zip(rows, _rows(found), strict=True) for line in (name, *_listed(row, numbers))]
    lines += ["", *(line for word in _words(found) for line in _folded(f"{word}: {_MEANS[word]}", ""))]
    number = dict(zip(found.kernels, numbers, strict=True))
    reasons: dict[str, list[str]] = {}
    for pair in found.pairs:
        if pair.verdict != "compatible" and pair.prediction.code not in _CODES:
            reasons.setdefault(printable(_why(pair)), []).append(f"{number[pair.of]} to {number[pair.to]}")
    for why, those in reasons.items():
        lines += ["", *_folded(why, ""), *_folded(", ".join(those), "  ")]
    return "\n".join(lines)


def _listed(row: tuple[Pair, ...], numbers: list[str]) -> list[str]:
    """Return a row that has no room for columns: a line for each word, with the numbers of those it is about."""
    groups: dict[str, list[str]] = {}
    for pair, number in zip(row, numbers, strict=True):
        groups.setdefault(_cell(pair, 0), []).append(number)
    return [f"  {word} to {', '.join(those)}" for word, those in groups.items()]


def _words(found: Pairs) -> list[str]:
    """Return the words that stand in cells, in the order of their meanings."""
    there = {_word(pair) for pair in found.pairs}
    return [word for word in _MEANS if word in there]


def _folded(text: str, indent: str) -> list[str]:
    """Return a text in lines; a name is never broken."""
    more = indent or "  "
    return textwrap.wrap(
        text, width(), initial_indent=indent, subsequent_indent=more, break_on_hyphens=False, break_long_words=False
    )


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
    left = int(max(len(name) for name in (*names, _CORNER)) * _LETTER) + 24
    cell = max(_CELL, int(max(map(len, names)) * _LETTER) + 24)
    legend = [f"{word}: {_MEANS[word]}" for word in _words(found)]
    wide = max(left + cell * len(names), int(max(map(len, legend)) * _LETTER) + 24)
    below = _TOP + _ROW * len(names) + 28
    high = below + _LINE * len(legend)
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
    _text(svg, 12, 24, _CORNER, "head")
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
    for line, text in enumerate(legend):
        _text(svg, 12, below + _LINE * line, text)
    ElementTree.indent(svg)
    return ElementTree.tostring(svg, encoding="unicode")


def _text(parent: ElementTree.Element, x: int, y: int, text: str, kind: str = "", *, middle: bool = False) -> None:
    more = {"text-anchor": "middle"} if middle else {}
    ElementTree.SubElement(
        parent, "text", {"x": str(x), "y": str(y), **({"class": kind} if kind else {}), **more}
    ).text = text
