# SPDX-License-Identifier: MIT
"""A shell's text, taken apart as far as it is needed to see what it writes and starts: no shell, and no syntax errors."""

from __future__ import annotations

import bisect
import re

#: A variable, a substitution of a shell's, udev's or systemd's.
VARIABLE = re.compile(r"\$\{[^}]*\}|\$\([^)]*\)|`[^`]*`|\$(?:env|attr)\{[^}]*\}|\$\w+|\$[@*#?]|%\w(?:\{[^}]*\})?")
_ENDS = re.compile(r";|&&|\|\||(?<![>&\d])&(?![>&\d])")
OPENING = frozenset(
    ["if", "then", "else", "elif", "do", "while", "until", "!", "{", "(", "time", "[[", "fi", "done", "}", ")"]
)
#: Programs that run another one, with their options of one letter that take a word; numbers come before it as well.
WRAPPERS = {
    "sudo": "ugCDRT",
    "doas": "uC",
    "env": "uCS",
    "nice": "n",
    "ionice": "cnp",
    "chrt": "TPD",
    "taskset": "",
    "timeout": "ks",
    "setsid": "",
    "nohup": "",
    "exec": "a",
    "command": "",
    "builtin": "",
    "eval": "",
    "systemd-run": "HMEpu",
    "systemd-cat": "tp",
    "flock": "wE",
    "chroot": "",
    "xargs": "EILnPsda",
    "systemd-inhibit": "",
    "busybox": "",
    "unshare": "",
    "nsenter": "tSG",
    "stdbuf": "ioe",
}
#: Those that are given a folder or a file before the program.
_GIVEN = frozenset(["chroot", "flock"])
#: Long options of theirs that take a word of their own.
_LONG = frozenset(
    f"--{name}"
    for name in (
        *("unit", "property", "description", "slice", "on-active", "timer-property", "uid", "gid", "setenv"),
        *("priority", "identifier", "signal", "kill-after", "user", "target", "adjustment"),
    )
)
SHELLS = frozenset(["sh", "bash", "dash", "ash", "ksh", "zsh"])
_SOURCES = frozenset([".", "source"])
#: Interpreters that are started with a script: the script is what is started.
_INTERPRETERS = re.compile(r"(python|perl|ruby|lua|php)[\d.]*|node")
_DECLARED = r"(?:^|[\s;&({'\"])(?:(?:local|export|readonly|declare|typeset)(?:\s+-\w+)*\s+)?([A-Za-z_]\w*)"
#: `NAME=value` where a command may begin, with a value that stands for itself.
_ASSIGNED = re.compile(_DECLARED + r"=(\"[^\"$`]*\"|'[^']*'|[^\s;&|$`\"'()]*)(?=$|[\s;&|)])")
#: The same with any value, as far as it is looked at.
_ANY_VALUE = re.compile(
    _DECLARED + r"\+?=(\([^()]{0,300}\)|(?:\"(?:[^\"$`]|\$\((?:[^()]|\([^()]*+\))*+\)|`[^`]*+`|\$(?!\())*+\"|'[^']*+'"
    r"|\$\((?:[^()]|\([^()]*+\))*+\)|`[^`]*+`|[^\s;&|\"'`()])*+)"
)
_FOR = re.compile(r"\bfor\s+([A-Za-z_]\w*)\s+in\s([^;]*)")
_READ = re.compile(r"\b(?:read|mapfile|readarray)((?:\s+[-\w]+)+)")
#: A variable's default stands for it, and where a program lies for its name.
_DEFAULT = re.compile(r"\$\{(\w+):?-([^${}`\"']*)\}")
_WHERE = re.compile(r"\$\(\s*(?:command\s+-v|which|type\s+-P)\s+([\w./-]+)[^()]*\)")
_SELF = r"\"?\$\{?(?:0|BASH_SOURCE(?:\[0\])?)\}?\"?"
_SCRIPT = re.compile(rf"\$\(\s*(?:readlink\s+-\w+|realpath)\s+(?:--\s+)?{_SELF}\s*\)")
_FOLDER = re.compile(rf"\$\(\s*dirname\s+(?:--\s+)?(?:{_SELF}|\"?(\0)\"?)\s*\)|\$\{{(?:0|BASH_SOURCE(?:\[0\])?)%/\*\}}")
_PWD = re.compile(
    r"\$\(\s*cd\s+(?:-P\s+)?(?:--\s+)?\"?([^\"$()&;]*)\"?\s*(?:>\s*/dev/null\s*)?(?:&&|;)\s*pwd(?:\s+-P)?\s*\)"
)
#: Text that a shell puts out for somebody to read: not what it writes to a file, or gives to another program.
_SPEECH = re.compile(
    r"((?:^|[;&|]|\b(?:then|else|do)\s)\s*(?:echo|printf|logger|wall)\b)"
    r"(?:\s++(?:\"(?:[^\"`$]|\$(?!\())*+\"|'[^']*+'|(?!\d*[<>])[^\s;|&<>\"'()`])++)++\s*"
    r"(?=(?:\d?>{1,2}\s*(?:&\d|[\"']?(?:/var/log/|/tmp/|/dev/(?:null|std\w+|console|kmsg|tty))[^\s;|&<>$]*)\s*)*+(?:$|;|&&|\|\|))"
)
_HEREDOC = re.compile(r"(?<!<)<<-?\s*(['\"]?)([A-Za-z_]\w*)\1")
_SHOWN = re.compile(r"\s*(?:cat|:|more|less|logger|wall)\s[^|]*$")
#: Characters of a line that are looked at; a longer one is no script that somebody has written.
_LONGEST_LINE = 4096
#: A value may be put together from others.
_PASSES = 4
#: Where a variable gets a value in whichever way.
_SET = re.compile(r"\b(?:for|read(?:\s+-\w+)*)\s+([A-Za-z_]\w*)|(?:^|[\s;&({'\"])([A-Za-z_]\w*)\+?=")


def lines_of(text: str) -> list[str]:
    """Return the lines of a text, none of them longer than what is looked at."""
    return [line[:_LONGEST_LINE] for line in text.splitlines()]


def statements(text: str) -> list[str]:
    """Return what a shell's text does, piece by piece."""
    return [statement for _, statement in pieces(lines_of(text))]


def started(text: str) -> list[str]:
    """Return the programs that a shell's text starts or reads in, each once, by what they are called there.

    A folder whose programs are all started ends in a slash.
    """
    found: dict[str, None] = {}
    for _, statement in pieces(lines_of(text)):
        for part in re.split(r"\||\$\(|`", statement):
            words = unwrapped(words_of(part))
            if len(words) > 1 and _INTERPRETERS.fullmatch(words[0].rpartition("/")[2]):
                words = [word for word in words[1:] if word[:1] != "-"] or words
            if len(words) > 1 and words[0].rpartition("/")[2] == "run-parts":
                words = [f"{words[-1].rstrip('/')}/"]
            if words:
                found.setdefault(words[0].strip("'\"(){}"))
    return [name for name in found if name]


def unwrapped(words: list[str]) -> list[str]:
    """Return a command without what stands before its program: words of the shell's, variables, programs that run it."""
    while words:
        name = words[0].rpartition("/")[2]
        if words[0] in OPENING or re.match(r"\w+=", words[0]) or (words[0][-1:] == ")" and "(" not in words[0]):
            words = words[1:]
        elif name in WRAPPERS or name in SHELLS or name in _SOURCES:
            takes, words, first = WRAPPERS.get(name, ""), words[1:], name in _GIVEN
            while words and (words[0][:1] == "-" or re.match(r"\d|\w+=", words[0])):
                option = words[0]
                long = option in _LONG or (len(option) == 2 and option[1] in takes)
                words = words[2 if long else 1 :]
            words = words[1:] if first else words
        else:
            break
    return words


def unresolved(text: str) -> list[str]:
    """Return what a shell's text reads in, or starts as a module, under a name that says nowhere where it lies."""
    found: dict[str, None] = {}
    for _, piece in pieces(lines_of(text)):
        words = [word for word in words_of(piece) if word not in OPENING]
        if len(words) > 1 and words[0] in _SOURCES and VARIABLE.search(words[1]):
            found.setdefault(words[1])
        if len(words) > 2 and _INTERPRETERS.fullmatch(words[0].rpartition("/")[2]) and "-m" in words[:-1]:
            found.setdefault(words[words.index("-m") + 1])
    return list(found)


def located(text: str, path: str) -> str:
    """Return a script's text with the folder that it lies in, where it asks for that."""
    folder = path.rpartition("/")[0]
    text = _SCRIPT.sub("\0", text)
    text = _FOLDER.sub(lambda _: f"/{folder}", text)
    return _PWD.sub(lambda match: match[1].strip(), text).replace("\0", f"/{path}")


def filled(lines: list[str], values: dict[str, str] | None = None) -> list[str]:
    """Return lines with each variable as what it stands for that is set once in them, to a text, or is among `values`."""
    for _ in range(_PASSES):
        before, lines = lines, _filled_once(lines, values or {})
        if lines == before:
            break
    return lines


def _filled_once(lines: list[str], values: dict[str, str]) -> list[str]:
    known: dict[str, set[str]] = {name: {value} for name, value in values.items()}
    literal: dict[str, int] = {}
    every: dict[str, int] = {}
    lines = [_WHERE.sub(r"\1", line) if "$(" in line else line for line in lines]
    for line in lines:
        for match in _ASSIGNED.finditer(line):
            known.setdefault(match[1], set()).add(match[2].strip("'\""))
            literal[match[1]] = literal.get(match[1], 0) + 1
        for match in _SET.finditer(line):
            name = match[1] or match[2]
            every[name] = every.get(name, 0) + 1
    # What is set in another way as well may be anything.
    sure = {
        name: texts.pop()
        for name, texts in known.items()
        if len(texts) == 1 and every.get(name, 0) <= literal.get(name, 0)
    }
    # A default counts where nothing else is known of the variable.
    lines = [
        _DEFAULT.sub(lambda m: m[0] if m[1] in every else sure.get(m[1], m[2]), line) if "${" in line else line
        for line in lines
    ]
    pattern = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
    return [
        pattern.sub(lambda m: sure.get(m[1] or m[2], m[0]), line)[:_LONGEST_LINE] if "$" in line else line
        for line in lines
    ]


def origins(lines: list[str]) -> dict[str, list[str]]:
    """Return what the variables of a shell's lines come from: words, lists, substitutions; the line, where one is read."""
    found: dict[str, list[str]] = {}
    fed = [line for line in lines if "<" in line and "done" in line]
    for line in lines:
        for match in _FOR.finditer(line):
            found.setdefault(match[1], []).append(match[2].strip())
        for match in _ANY_VALUE.finditer(line):
            if match[2]:
                value = match[2].strip("\"'()")
                before = found.setdefault(match[1], [])
                added = line[match.end(1) : match.start(2)] == "+="
                before += [f"{each}{value}" for each in before[:_PASSES]] if added and before else [value]
        for match in _READ.finditer(line):
            for name in match[1].split():
                if name[:1] != "-":
                    found.setdefault(name, []).append(
                        f"$(read {' '.join((line, *fed)).replace(')', ' ')[:_LONGEST_LINE]})"
                    )
    return found


def words_of(text: str) -> list[str]:
    return [word.strip("'\"") for word in text.split()]


def interpreter(line: str) -> str:
    words = [word.rpartition("/")[2] for word in line[2:].split() if not word.startswith("-")]
    return (words[1] if words[:1] == ["env"] and len(words) > 1 else words[0]) if words else ""


def pieces(lines: list[str], values: dict[str, str] | None = None) -> list[tuple[int, str]]:
    """Return what a shell's lines do, piece by piece, with its line: what is only said left out, variables filled in."""
    joined = logical(lines)
    texts = filled([line for _, line in joined], values)
    return [
        (number, part)
        for (number, _), text in zip(joined, texts, strict=True)
        for part in _ENDS.split(_SPEECH.sub(r"\1 -", text))
        if part.strip()
    ]


def logical(lines: list[str]) -> list[tuple[int, str]]:
    """Return a shell's lines with their numbers, continued ones as one: no comments, and no text that is only shown."""
    shown, ends = set[int](), dict[str, list[int]]()
    for at, line in enumerate(lines):
        ends.setdefault(line.strip(), []).append(at)
    for at, line in enumerate(lines):
        match = _HEREDOC.search(line) if "<<" in line and at not in shown else None
        rest = f"{line[: match.start()]} {line[match.end() :]}" if match else ""
        if match and _SHOWN.match(rest) and ">" not in rest.replace(">&2", ""):
            after = ends.get(match[2], [])
            shown |= set(range(at + 1, after[place] + 1)) if (place := bisect.bisect(after, at)) < len(after) else set()
    found, at = list[tuple[int, str]](), 0
    while at < len(lines):
        number, line = at + 1, _plain(lines[at]) if at not in shown else ""
        at += 1
        parts, size = [line], len(line)
        while parts[-1].endswith("\\") and at < len(lines) and size < _LONGEST_LINE:
            parts[-1] = parts[-1][:-1]
            parts.append(_plain(lines[at]))
            size, at = size + len(parts[-1]) + 1, at + 1
        line = " ".join(parts)
        if line.strip():
            found.append((number, line))
    return found


def _plain(line: str) -> str:
    """Return a line without the comment at its end."""
    if "#" not in line:
        return line
    quote, at = "", 0
    while at < len(line):
        char = line[at]
        if char == "\\" and quote != "'":
            at += 1
        elif quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "#" and (at == 0 or line[at - 1] in " \t;"):
            return line[:at]
        at += 1
    return line


def split(lines: list[str]) -> list[tuple[int, str]]:
    """Return the lines of another language, with their numbers: comments left out, continued lines joined."""
    found, at = list[tuple[int, str]](), 0
    while at < len(lines):
        number, parts, size = at + 1, [lines[at]], 0
        at += 1
        if parts[0].lstrip().startswith("#"):
            continue
        while parts[-1].endswith("\\") and at < len(lines) and size < _LONGEST_LINE:
            parts[-1] = parts[-1][:-1]
            parts.append(lines[at])
            size, at = size + len(parts[-1]) + 1, at + 1
        found.append((number, " ".join(parts)))
    return [(number, line) for number, line in found if line.strip()]


#: Stand for what parts a command where it stands inside a substitution.
_CLOSED = str.maketrans(" \t;|&", "\ue000\ue001\ue002\ue003\ue004")
_OPENED = str.maketrans("\ue000\ue001\ue002\ue003\ue004", " \t;|&")
_INSIDE = re.compile(r"\$\((?:[^()]|\([^()]*+\))*+\)|`[^`]*+`")


def closed(text: str) -> str:
    """Return a command of which each substitution is part of one word."""
    return _INSIDE.sub(lambda match: match[0].translate(_CLOSED), text) if "$(" in text or "`" in text else text


def opened(text: str) -> str:
    """Return what `closed` was given."""
    return text.translate(_OPENED)


_TEXT = re.compile(r"(?<!-c\s)(?<!c\s)'[^']*+'")
_ARRAY = re.compile(r"=\([^()]*\)|\b[\w.-]+\s*\(\)")
_CASE = re.compile(r"^\s*(?:case\s.*?\sin\s)?\s*\(?[^\s()|=$]+(?:\s*\|\s*[^\s()|]+)*\)\s")
_DEEP = 4


def commands_of(text: str) -> list[list[str]]:
    """Return the words of every command in a shell's script, those of its substitutions among them."""
    found: list[list[str]] = []
    lines = logical(lines_of(text))
    joined = "\n".join(filled([line for _, line in lines]))
    # What one quote holds is one word, over lines as well.
    todo = [_ARRAY.sub("=x ", _TEXT.sub("'x'", joined))]
    for _ in range(_DEEP):
        todo, texts = [], todo
        for one in texts:
            todo += [match[0].strip("$()`") for match in _INSIDE.finditer(one)]
            for line in _INSIDE.sub("x", one).splitlines():
                for statement in _ENDS.split(_SPEECH.sub(r"\1 -", line)):
                    statement = _CASE.sub("", f"{statement} ")
                    found += [words for part in statement.split("|") if (words := words_of(part))]
    return found
