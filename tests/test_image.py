# SPDX-License-Identifier: MIT
"""The boot archive: complete without this machine, proved to decide, the same each time, and small."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from safemem.boot import compiled
from safemem.boot.model import Failure, Policy, Term
from safemem.initramfs import build, interpreter, on_failure, proof, unpack
from safemem.initramfs.items import PREFIX, BuildError, Item
from safemem.policy import compiler, load
from tests import fakes, kit

pytestmark = pytest.mark.needs("cpio", "zstd")

ROOT = Path(__file__).resolve().parent.parent
#: Bytes, with zstd -19, for each of Debian's interpreters. The aim is 3 MiB; Debian 12's interpreter, C library and
#: loader alone are 3.4 MiB, so this only keeps the archive from growing. `make bench` prints where it stands.
CEILINGS = {(3, 11): 3_735_000, (3, 13): 3_915_000, (3, 14): 4_565_000}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, build.Cost, Path]:
    """Return the archive with the shipped policy, its cost, and the folder it was unpacked to."""
    base = tmp_path_factory.mktemp("image")
    data = compiler.dump(load.read(ROOT / "policies/live-update-host.toml"))
    made, cost = build.build(data)
    (base / "safemem.cpio").write_bytes(made)
    (base / "root").mkdir()
    subprocess.run(["cpio", "-idm", "--quiet"], input=plain(made), cwd=base / "root", check=True)
    return base / "safemem.cpio", cost, base / "root"


def plain(made: bytes) -> bytes:
    """Return the archive that is packed in what `cpio` writes."""
    return gzip.decompress(made[512:])


def test_everything_is_private(built: tuple[Path, build.Cost, Path]) -> None:
    """An archive appended to a foreign initrd must not replace one of its files."""
    files = [str(path.relative_to(built[2])) for path in built[2].rglob("*") if path.is_file()]

    assert files
    rules = "usr/lib/udev/rules.d/60-safemem.rules"
    assert [path for path in files if not path.startswith(f"{PREFIX}/")] == [rules]


def test_only_what_the_boot_needs(built: tuple[Path, build.Cost, Path]) -> None:
    """No package, no source, no module of the lower half; bytecode that is used without a source (PEP 552)."""
    home = built[2] / PREFIX
    app = {str(path.relative_to(home / "app")) for path in (home / "app").rglob("*") if path.is_file()}

    assert app == {
        "safemem/__init__.pyc",
        *(f"safemem/boot/{path.stem}.pyc" for path in (ROOT / "safemem/boot").glob("*.py")),
    }
    assert not list(home.rglob("*.py")) and not list(home.rglob("site-packages"))
    assert not {path.stem for path in home.rglob("*.pyc")} & {"enum", "typing"} and not list(home.rglob("json"))
    for path in home.rglob("*.pyc"):
        assert path.read_bytes()[4:8] == b"\1\0\0\0", f"{path} is not unchecked-hash bytecode"


def test_the_same_each_time(built: tuple[Path, build.Cost, Path]) -> None:
    """Two builds are one file, byte for byte, so that an image can be compared."""
    data = (built[2] / PREFIX / "policy.json").read_bytes()

    assert build.appendable(build.archive(build.files(data))) == built[0].read_bytes()


def test_size(built: tuple[Path, build.Cost, Path]) -> None:
    """The cost that is printed is the cost, and packed as distributions do it is below the ceiling."""
    raw = plain(built[0].read_bytes())
    assert (built[1].size, built[1].raw) == (built[0].stat().st_size, len(raw))
    squeezed = subprocess.run(["zstd", "-19", "-q", "-c"], input=raw, capture_output=True, check=True).stdout
    assert len(squeezed) <= CEILINGS.get(sys.version_info[:2], max(CEILINGS.values()))


def test_behind_any_image(built: tuple[Path, build.Cost, Path]) -> None:
    """However long a compressed image is, and whatever it is packed with, the kernel unpacks what is appended; and more behind it."""
    made = built[0].read_bytes()
    assert not len(made) % 512 and not made[:512].strip(b"\0")
    for image in (gzip.compress(kit.archive({"init": bytes(n)}), mtime=0) for n in range(4)):
        found = unpack.find(
            image + made + build.appendable(kit.archive({"late": b"1"})), ["init", f"{PREFIX}/boot", "late"]
        )
        assert set(found) == {"init", f"{PREFIX}/boot", "late"}


def test_what_is_left_of_an_archive_that_is_cut_off() -> None:
    """With the units, in a file that a full disk has cut: what may online memory requires a unit that is there or missing."""
    data = compiler.dump(load.read(ROOT / "policies/live-update-host.toml"))
    made, _ = build.build(data, more=on_failure.unit_files(Failure("panic")))
    listed = subprocess.run(["cpio", "-t", "--quiet"], input=plain(made), capture_output=True, check=True)
    names = [name for name in listed.stdout.decode().split() if name.endswith((".conf", ".service", "boot"))]
    first = [f"usr/lib/systemd/system/{unit}.d/50-safemem.conf" for unit in reversed(on_failure.GUARDED)]
    assert names[:4] == first and names.index(f"{PREFIX}/boot") > 5


def test_no_interpreter(tmp_path: Path) -> None:
    """A build that cannot work says so."""
    data = compiler.dump(load.read(ROOT / "policies/live-update-host.toml"))
    with pytest.raises(BuildError, match=r"cannot build the archive with .*/none: .*No such file"):
        build.build(data, str(tmp_path / "none"))


@pytest.mark.parametrize("text", ["it's lost", "a $(reboot) b", "`x` \\n", "'; exit 0; '"])
def test_messages_stay_text(text: str) -> None:
    """What an operator writes into `on_failure.message` is never shell."""
    values, mark, _ = on_failure.wrapper(Failure("panic", text)).decode().partition("# end of the values\n")
    said = subprocess.run(
        ["sh", "-c", f'{values}printf %s "$MESSAGE"'], capture_output=True, text=True, check=True
    ).stdout  # fmt: skip

    assert mark

    assert said == text


def altered(base: Path, module: str, more: str) -> Path:
    """Return a copy of the package with `more` at the end of one module of the boot half."""
    package = base / "safemem"
    shutil.copytree(ROOT / "safemem", package, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / f"boot/{module}.py").open("a") as file:
        file.write(more)
    return package


#: As `plainjson.loads` would do on an interpreter whose private `_json` is another one.
BROKEN = """

def loads(text: str) -> object:
    raise AttributeError("'module' object has no attribute 'make_scanner'")
"""


def test_an_interpreter_that_cannot_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would end every boot in `on_failure` is no archive: the build says what does not decide, and why."""
    monkeypatch.setattr(interpreter, "PACKAGE", altered(tmp_path, "plainjson", BROKEN))
    with pytest.raises(BuildError) as error:
        build.build(compiler.dump(load.read(ROOT / "policies/live-update-host.toml")))

    assert re.fullmatch(
        r"cannot build the archive with /\S+: on a machine with no handover the boot program decides nothing: "
        r"cannot decide: AttributeError: 'module' object has no attribute 'make_scanner'",
        str(error.value),
    )


def test_a_program_that_decides_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decision is not enough: it has to be the one that the policy is proved to make."""
    more = "\n\ndef _first_match(policy, facts):\n    return policy.otherwise, ()\n"
    monkeypatch.setattr(interpreter, "PACKAGE", altered(tmp_path, "engine", more))
    with pytest.raises(BuildError, match="does not decide what the policy says, which is `online-all`: action, "):
        build.files(compiler.dump(load.read(ROOT / "policies/live-update-host.toml")))


def test_a_program_that_prints_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the next kernel gets is computed in the archive as it is here."""
    more = "\n\ndef main(argv: list[str]) -> int:\n    sys.stdout.write('crashkernel=1G')\n    return 0\n"
    monkeypatch.setattr(interpreter, "PACKAGE", altered(tmp_path, "handover_args", more))
    with pytest.raises(BuildError, match=r"handover_args does not print what it prints in this interpreter$"):
        build.files(compiler.dump(load.read(ROOT / "policies/live-update-host.toml")))


@pytest.mark.parametrize("where", ["import nosuch", "def late() -> None:\n    import nosuch"])
def test_a_module_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Also one that only a rare boot would have asked for."""
    monkeypatch.setattr(interpreter, "PACKAGE", altered(tmp_path, "probe", f"\n\n{where}\n"))
    with pytest.raises(BuildError, match="No module named 'nosuch'"):
        build.files(compiler.dump(load.read(ROOT / "policies/live-update-host.toml")))


def test_what_is_read_and_what_is_run(tmp_path: Path) -> None:
    """Each module of the boot half runs in the try-outs, and what the sources import, rarely or not, is shipped."""
    # One that takes memory offline, and one that only observes, for which most boots load nothing.
    acts = kit.policy(kit.NEVER, otherwise=kit.rule("online-safe", boot_memory="offline"), sources=("none",))
    acts = acts._replace(retrieve_token=True)
    ran = set[str]()
    for name, drawn in (("acts", acts), ("observes", acts._replace(observe=True))):
        folder = tmp_path / name / PREFIX
        folder.mkdir(parents=True)
        (folder / "policy.json").write_bytes(compiler.dump(drawn))
        (folder / "masks").write_bytes(compiled.names_text([]))
        cases = proof.cases(tmp_path / name, drawn, str(folder))
        listing = interpreter.listing(sys.executable, [case.root for case in cases])
        ran |= listing.ran

    assert ran == {f"safemem.boot.{path.stem}" for path in (ROOT / "safemem/boot").glob("[!_]*.py")}
    assert {case.decision.facts["handover"].value for case in cases} == {"none", "accepted", "rejected", "unknown"}
    named = interpreter.named()
    assert not {"typing", "collections.abc"} & set(named)
    assert (named["fcntl"], named["binascii"], named["_json"], named["_sha2"]) == (True, True, False, False)
    assert {"fcntl", "binascii", "zlib"} <= set(listing.files) and not {"json", "hashlib"} & set(listing.files)


def test_an_interpreter_without_a_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in for a core that is missing is shipped, and only then."""
    monkeypatch.setattr(interpreter, "_STANDS_IN", {"json": ("nosuch", "_json"), "hashlib": ("nosuch",)})
    listing = interpreter.listing(sys.executable, [])

    assert "hashlib" in listing.files and "json" not in listing.files


@pytest.fixture(scope="module")
def items() -> dict[str, Item]:
    """Return the files of an archive whose policy panics unless the handover was accepted; `on_failure` halts."""
    return build.files(compiler.dump(policy("panic")))


def policy(action: str) -> Policy:
    """Return a policy that onlines all memory after an accepted handover, and takes `action` otherwise."""
    whole = kit.rule("online-all", name="whole", when=kit.when("handover", Term("is", "accepted")))
    made = kit.policy(whole, otherwise=action, failure="halt", sources=("none",))
    return compiled.load(compiler.dump(made), "the test's")


def test_the_archives_own_program(items: dict[str, Item], tmp_path: Path) -> None:
    """It is the archive that is tried out, not the sources that it was made of."""
    path = f"{PREFIX}/app/safemem/boot/engine.pyc"
    left = {name: item for name, item in items.items() if name != path}
    with pytest.raises(
        BuildError, match=r"boot program decides nothing: ModuleNotFoundError: No module named 'safemem.boot.engine'"
    ):
        proof.try_out(tmp_path / "missing", left, policy("panic"))

    with pytest.raises(BuildError, match="does not decide what the policy says, which is `reboot`: action"):
        proof.try_out(tmp_path / "other", items, policy("reboot"))


#: How a wrapper begins that is not ours.
PROGRAM = """ROOT=''
program() {
    home=$ROOT/usr/lib/safemem
    "$home/lib/ld.so" --library-path "$home/lib" "$home/bin/python3" -I -S -B -c 'import sys
sys.path.insert(0, sys.argv[1])
from safemem.boot.main import main
main(sys.argv[2:])' "$home/app" --root "$ROOT"
}
"""


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 0", "the wrapper returns with status 0, and never should: nothing was said"),
        ("exit 3", "the wrapper returns with status 3, and never should: nothing was said"),
        ("exit 42", "on a machine with no handover the boot program decides nothing: nothing was said"),
        ("echo 'safemem: end code=stopped'; sleep 9", "decides nothing: end code=stopped"),
        ("program; exit 42", "on a machine with no handover the boot program lets the boot go on, and should end it: nothing was said"),
        ("echo oops; program; kill -9 $$", "the wrapper returns with status -9, and never should: oops"),
    ],
)  # fmt: skip
def test_the_archives_own_wrapper(items: dict[str, Item], tmp_path: Path, script: str, says: str) -> None:
    """What starts the program, and goes on or does not, is proved with it."""
    wrapper = {f"{PREFIX}/boot": Item(f"{PROGRAM}{script}\n".encode(), 0o755)}
    with pytest.raises(BuildError) as error:
        proof.try_out(tmp_path / "try", {**items, **wrapper}, policy("panic"))

    assert str(error.value).endswith(says), error.value


@pytest.mark.parametrize(("action", "key"), [("panic", "b"), ("reboot", "c"), ("halt", ""), ("online-safe", "")])
def test_every_action_is_proved_and_none_is_taken(tmp_path: Path, action: str, key: str) -> None:
    """A boot that ends writes to the fake root's own file; in reach of it are no /proc, no /sys, no halt and no mount."""
    found = build.files(compiler.dump(policy(action)))
    proof.try_out(tmp_path / "try", found, policy(action))

    trigger = tmp_path / "try/no-handover/proc/sysrq-trigger"
    assert trigger.read_text() == key  # the last one written: `on_failure` is halt, which has none
    assert (tmp_path / "try/an-accepted-handover/proc/sysrq-trigger").read_text() == ""
    assert not {"proc", "sys"} & {path.name for path in (tmp_path / "try").iterdir()}
    if os.geteuid() == 0:
        assert {path.name for path in (tmp_path / "try/bin").iterdir()} == {"sh", "sleep", "rm"}
        assert [path.name for path in (tmp_path / "try/dev").iterdir()] == ["null"]


@pytest.mark.parametrize("path", fakes.SHIPPED, ids=lambda path: path.stem)
def test_shipped_policies_are_proved(path: Path) -> None:
    """Whatever a policy is for, the archive with it can be built."""
    assert build.files(compiler.dump(load.read(path)))


def test_who_is_not_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a chroot the archive's own program is tried out all the same, on a policy that ends no boot."""
    found = build.files(compiler.dump(policy("online-safe")))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    proof.try_out(tmp_path / "try", found, policy("online-safe"))

    assert not (tmp_path / "try/bin").exists()
    assert (tmp_path / "try/no-handover/run/safemem/decision.json").is_file()
