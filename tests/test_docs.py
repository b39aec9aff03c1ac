# SPDX-License-Identifier: MIT
"""What the pages for developers say of the tree is true of the tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "safemem"
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
ARCHITECTURE = ROOT / "docs/architecture.md"
#: What begins with one of these is a path of this tree; others are of a machine's.
_TOPS = "|".join(("safemem", "tests", "docs", "packages", "policies", "systemd", "udev"))


def named(page: Path) -> set[str]:
    """Return every path of this tree that a page names, in code or as a link."""
    text = page.read_text()
    code = re.findall(rf"`((?:{_TOPS})/[\w./*-]*)`", text)
    links = [str((page.parent / link).resolve().relative_to(ROOT)) for link in re.findall(r"\]\(([\w./-]+)\)", text)]
    return {*code, *links}


@pytest.mark.parametrize("page", [page for page in PAGES if page.exists()], ids=lambda page: page.name)
def test_every_path_exists(page: Path) -> None:
    """A file or folder that a page names is there."""
    assert [path for path in sorted(named(page)) if not list(ROOT.glob(path.rstrip("/")))] == []


def test_every_claim_has_its_test() -> None:
    """Each row of the table of claims names tests, and each of them is there."""
    table = (ROOT / "SECURITY.md").read_text().split("| --- | --- |\n")[1].split("\n\n")[0]
    rows = [re.findall(r"`(tests/[\w./]+)::(test_\w+)`", row) for row in table.splitlines()]

    assert len(rows) > 10 and all(rows)
    assert [one for row in rows for one in row if f"def {one[1]}(" not in (ROOT / one[0]).read_text()] == []


def test_every_top_folder_is_told() -> None:
    """The page says what each folder of the repository is for."""
    text = ARCHITECTURE.read_text()
    for folder in ("policies", "systemd", "udev", "packages", "tests/vm", "safemem/initramfs/files"):
        assert (ROOT / folder).is_dir()
        assert f"`{folder}/`" in text or f"`{folder.rpartition('/')[2]}/`" in text, folder


def test_the_data_s_way_exists() -> None:
    """Modules in the drawing are modules, and the function that decides is where it is said to be."""
    drawing = ARCHITECTURE.read_text().split("```\n")[1]
    rooms = "|".join(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    modules = re.findall(rf"\b({rooms})/(\w+)", drawing)

    assert len(modules) > 5
    assert [name for room, name in modules if not (PACKAGE / room / f"{name}.py").is_file()] == []
    for name in ("hold", "probe", "record", "apply", "account", "engine"):
        assert re.search(rf"\b{name}\b", drawing) and (PACKAGE / f"boot/{name}.py").is_file()
    assert "\ndef decide(" in (PACKAGE / "boot/engine.py").read_text()


def test_one_screen() -> None:
    """The page is one that people read: some fifty lines, and no drawing that wraps."""
    lines = ARCHITECTURE.read_text().splitlines()

    assert len(lines) <= 50
    assert max(len(line) for line in lines if not line.startswith("|")) <= 120


RECIPES = ("A fact", "A policy word", "An action", "A finding of doctor", "A maker of initramfs", "A unit", "An exit code",
           "A path that the kernel renames")  # fmt: skip


def recipes() -> dict[str, list[tuple[str, str]]]:
    """Return each recipe's items: the file or folder that changes, and what is said of it."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## Recipes\n")[2]
    parts = re.split(r"^### (.+)\n", text, flags=re.MULTILINE)[1:]
    item = re.compile(r"^\d\. `([\w./-]+)`: ((?:.+\n)(?:   .+\n)*)", re.MULTILINE)
    return {title: item.findall(body) for title, body in zip(parts[::2], parts[1::2], strict=True)}


def test_every_recipe_is_there() -> None:
    """Whatever is added often has its recipe, and a policy word costs the four files that its test changes."""
    assert tuple(recipes()) == RECIPES
    assert len(recipes()["A policy word"]) == 4


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_names_what_is_there(title: str) -> None:
    """Each file is in the tree, and each table or class that is named with it is defined there."""
    items = recipes()[title]

    assert items
    for path, text in items:
        assert (ROOT / path).exists(), path
        for name in re.findall(r"`([A-Z][A-Za-z_]{2,})`", text):
            assert re.search(rf"^(class )?{name}\b", (ROOT / path).read_text(), re.MULTILINE), f"{path}: {name}"
