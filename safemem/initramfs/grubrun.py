# SPDX-License-Identifier: MIT
"""The ways through a script of GRUB's: what each entry has loaded at its end.

Nothing is run: of a condition whose outcome files do not tell both ways are taken, and of a variable that several ways set
to several values none is known. A variable that nothing sets is empty, as in GRUB.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from safemem.initramfs import bootentry, grubfiles, grubscript
from safemem.initramfs.grubscript import Command, Word

#: Variables that GRUB sets itself, or a program on its way.
_ITS_OWN = re.compile(
    r"root|cmdpath|fw_path|config_file|lang|biosnum|grub_\w+|feature_\w+|net_\w+|pxe_\w+|[0-9]+|[?*@#]"
)
#: Variables that it keeps from boot to boot: what the environment block holds counts.
_KEPT = ("next_entry", "saved_entry", "prev_saved_entry", "prev_entry")
_MOST_WAYS, _MOST_CALLS = 32, 12
_LINUX = ("linux", "linux16", "linuxefi", "linux32")
_INITRD = ("initrd", "initrd16", "initrdefi")
_HYPERVISOR = ("multiboot", "multiboot2", "xen_hypervisor")
_MODULE = ("module", "module2", "xen_module", "xen_linux", "xen_initrd")


class State(NamedTuple):
    """What is loaded at a point of a script; NUL stands where a name is not known."""

    kernel: str = ""
    options: str = ""
    initrds: tuple[str, ...] = ()
    gone: bool = False  #: whether it has been booted: what comes behind that is not reached
    how: str = "linux"  #: or `xen`, `chain` for what is started as a program, `menu` for another menu


def its_own(name: str) -> bool:
    """Return whether GRUB sets a variable itself."""
    return bool(_ITS_OWN.fullmatch(name))


def parsed(data: bytes) -> tuple[Command, ...]:
    """Return the commands in the bytes of a menu."""
    return grubscript.parse("\n".join(bootentry.lines(data, bootentry.LIMIT * 4)))


class Item:
    """An entry or a submenu."""

    def __init__(self, title: str, identity: str, body: tuple[Command, ...], *, menu: bool, sure: bool) -> None:
        self.title, self.id, self.body, self.menu, self.sure = title, identity, body, menu, sure
        self.children: list[Item] | None = None


class Run:
    """A script on its way through; what it sets and shows."""

    def __init__(self, root: str, path: Path, kept: dict[str, str]) -> None:
        self._root, self._kept = root, kept
        home = "/" + os.path.relpath(path.parent, root)
        #: Variable -> the values that it may have, None for one that is not known.
        self.values: dict[str, frozenset[str | None]] = {
            name: frozenset({home}) for name in ("prefix", "config_directory")
        }
        self.values |= {name: frozenset({value}) for name, value in kept.items()}
        self._functions: dict[str, tuple[Command, ...]] = {}
        self.items: list[Item] = []
        self.entries = self.unified = False
        self._calls = 0

    def value(self, name: str) -> str | None:
        """Return what a variable stands for; None if that is not known."""
        if name in _KEPT:
            return self._kept.get(name, "")
        if name not in self.values:
            return None if _ITS_OWN.fullmatch(name) else ""
        values = self.values[name]
        return next(iter(values)) if len(values) == 1 else None

    def _set(self, name: str, value: str | None, *, sure: bool) -> None:
        value = None if value is not None and "\0" in grubfiles.bare(value) else value
        before = self.values.get(name, frozenset({None if _ITS_OWN.fullmatch(name) else ""}))
        self.values[name] = frozenset({value}) if sure else before | {value}

    def _fields(self, words: tuple[Word, ...]) -> list[str]:
        return [field for word in words for field in grubscript.expand(word, self.value)]

    def commands(self, script: tuple[Command, ...], states: list[State], *, sure: bool, depth: int) -> list[State]:
        """Follow commands from each of these states; return those that may be at the end."""
        for command in script:
            if command.branches:
                states = self._if(command, states, sure=sure, depth=depth)
            else:
                states = self._one(command, states, sure=sure, depth=depth)
            states = list(dict.fromkeys(states))
            if len(states) > _MOST_WAYS:
                states = [State("\0"), *states[:_MOST_WAYS]]
        return states

    def _if(self, command: Command, states: list[State], *, sure: bool, depth: int) -> list[State]:
        ends: list[State] = []
        known = True
        for asked, body in command.branches:
            states = self.commands(asked, states, sure=False, depth=depth)
            true = True if not asked else self._true(asked)
            known = known and true is True
            ends += self.commands(body, states, sure=sure and known, depth=depth)
            if true:
                return ends
            known = False
        return ends + states

    def _true(self, asked: tuple[Command, ...]) -> bool | None:
        """Return whether a condition holds: that a file is there, which it may be elsewhere too if it is not here."""
        words = [self._fields((word,)) for word in asked[-1].words] if len(asked) == 1 else []
        flat = [field for fields in words for field in fields]
        if flat[:1] in (["["], ["test"]) and len(asked[-1].words) in (2, 3):
            # GRUB keeps these from boot to boot, and they alone say which entry is next; of others both ways are taken.
            names = [piece.text for piece in asked[-1].words[1] if piece.variable or piece.text]
            if len(names) == 1 and names[0] in _KEPT:
                return bool(self.value(names[0]))
        if flat[:1] in (["["], ["test"]) and flat[1:2] in (["-f"], ["-e"], ["-s"]) and len(flat) > 2:
            return (
                True
                if "\0" not in grubfiles.bare(flat[2]) and os.path.isfile(grubfiles.locate(self._root, flat[2]))
                else None
            )
        return None

    def _one(self, command: Command, states: list[State], *, sure: bool, depth: int) -> list[State]:
        name = command.name
        fields = [] if name in ("set", "export") else self._fields(command.words[1:])
        free = [field for field in fields if not field.startswith("--")]
        if name in ("menuentry", "submenu"):
            self._item(command, menu=name == "submenu", sure=sure)
        elif name == "function" and free:
            self._functions[free[0]] = command.block
        elif command.block:
            if name == "for" and free:
                self._set(free[0], None, sure=True)
            return states + self.commands(command.block, states, sure=False, depth=depth)
        elif name in self._functions:
            return self._call(self._functions[name], states, sure=sure, depth=depth)
        elif name in ("source", ".", "configfile", "normal", "extract_entries_source") and free:
            if depth and name in ("configfile", "normal"):
                return [State("\0", how="menu")]
            return self._source(free[0], states, sure=sure, depth=depth)
        elif name in ("blscfg", "bls_import"):
            self.entries = True
        elif name == "blsuki" or (name == "uki" and not free):
            self.unified = True
        elif name == "eval":
            text = " ".join(fields)
            if "\0" in text:
                return [State("\0", how="menu")] if depth else states
            return self._call(grubscript.parse(text), states, sure=sure, depth=depth)
        elif name == "load_env":
            self._load(fields, sure=sure)
        else:
            self._assign(command, fields, sure=sure)
            return [_loaded(name, free, state) for state in states]
        return states

    def _item(self, command: Command, *, menu: bool, sure: bool) -> None:
        words = command.words[1:]
        title = " ".join(self._fields(words[:1]))
        identity = ""
        for at, word in enumerate(words[:-1]):
            if grubscript.plain(word) == "--id" or [piece.text for piece in word] == ["menuentry_id_option"]:
                identity = " ".join(self._fields((words[at + 1],)))
        self.items.append(Item(title, identity, command.block, menu=menu, sure=sure))

    def _call(self, script: tuple[Command, ...], states: list[State], *, sure: bool, depth: int) -> list[State]:
        if self._calls >= _MOST_CALLS:
            return [State("\0", how="menu")]
        self._calls += 1
        states = self.commands(script, states, sure=sure, depth=depth)
        self._calls -= 1
        return states

    def _source(self, path: str, states: list[State], *, sure: bool, depth: int) -> list[State]:
        try:
            data = grubfiles.read(grubfiles.locate(self._root, path))
        except (OSError, ValueError):
            return states
        return self._call(parsed(data), states, sure=sure, depth=depth)

    def _load(self, fields: list[str], *, sure: bool) -> None:
        found = self._kept
        if fields[:1] in (["-f"], ["--file"]) and len(fields) > 1:
            try:
                found = bootentry.environment(grubfiles.read(grubfiles.locate(self._root, fields[1])))
            except (OSError, ValueError):
                return
        for name, value in found.items():
            # What is loaded under a condition that no file tells is loaded all the same: it asks whether there is a block.
            self._set(name, value, sure=sure or name not in self.values)

    def _assign(self, command: Command, fields: list[str], *, sure: bool) -> None:
        name = command.name
        words = command.words[1:] if name in ("set", "export") else command.words[:1]
        for word in words[:1]:
            key, equals, rest = word[0].text.partition("=") if word and not word[0].variable else ("", "", "")
            if equals and re.fullmatch(r"\w+", key):
                value = grubscript.expand((word[0]._replace(text=rest, quoted=True), *word[1:]), self.value)
                self._set(key, " ".join(value), sure=sure)
        if name == "unset" and fields:
            self._set(fields[0], "", sure=sure)
        if name in ("read", "getenv"):
            for field in fields:
                self._set(field, None, sure=sure)
        if name.startswith("search.") and len(fields) > 1:
            self._set(fields[1], None, sure=sure)
        for at, field in enumerate(fields if name not in ("[", "test", "echo") else ()):
            # search, probe, regexp, smbios: the variable that they put what they find into.
            if match := re.fullmatch(r"(?:--set|-s)(?:=(?:[0-9]+:)?(\w+))?", field):
                target = match[1] or (fields[at + 1] if at + 1 < len(fields) else "root")
                if not target.startswith("-"):
                    self._set(target.rpartition(":")[2], None, sure=sure)

    def leaves(self, items: list[Item]) -> list[Item]:
        """Return the entries, those of submenus too."""
        found = []
        for item in items:
            found += self.leaves(self._inside(item)) if item.menu else [item]
        return found

    def _inside(self, item: Item) -> list[Item]:
        if item.children is None:
            kept, self.items = self.items, []
            self.commands(item.body, [State()], sure=True, depth=1)
            item.children, self.items = self.items, kept
        return item.children

    def taken(self) -> Item | None:
        """Return the entry that boots next if nobody chooses another; None if that cannot be told."""
        values = frozenset("0" if value == "" else value for value in self.values.get("default", {None}))
        once = self._kept.get("next_entry", "")
        wanted = once if once in values and once else next(iter(values)) if len(values) == 1 else None
        if wanted is None or self.entries or self.unified:
            return None
        items = self.items
        for part in (*wanted.split(">"), *("0",) * 4):
            named = next((item for item in items if part in (item.id, item.title)), None)
            number = int(part) if part.isdecimal() and len(part) < 5 else 0
            if named is None and not all(item.sure for item in items[: number + 1]):
                return None
            item = named or (items[number] if number < len(items) else items[0] if items else None)
            if item is None or not item.menu:
                return item
            items = self._inside(item)
        return None


def _loaded(name: str, words: list[str], state: State) -> State:
    """Return what is loaded once one command has run."""
    if state.gone or name == "boot":
        return state._replace(gone=bool(state.kernel))
    first, rest = words[0] if words else "", words[1:]
    if name in _LINUX:
        return State(first or "\0", " ".join(rest))
    if name in _INITRD:
        return state._replace(initrds=tuple(words)) if state.kernel else state
    if name in _HYPERVISOR:
        return State(how="xen")
    if name in _MODULE and state.how == "xen" and first:
        if not state.kernel:
            return state._replace(kernel=first, options=" ".join(rest))
        # A policy of Xen's own is no initrd.
        return state if "xenpolicy" in first else state._replace(initrds=(*state.initrds, first))
    if name in ("chainloader", "uki") and first:
        return State(first, " ".join(rest), how="chain")
    return state
