# SPDX-License-Identifier: MIT
"""The packages: built for each release of Debian and for RPM, checked, what is in them, and what the RPM does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from packages import tree
from packages.deb import RELEASES as PYTHONS
from tests.kit import RELEASES, contents

ROOT = Path(__file__).resolve().parent.parent
#: Programs with which each package is made and opened.
DEB = pytest.mark.needs("dpkg-deb", "strip")
RPM = pytest.mark.needs("rpm", "rpmbuild")


@pytest.fixture(scope="module", params=RELEASES)
def package(request: pytest.FixtureRequest, deb: Callable[[str], Path]) -> Path:
    """Return the package for one release."""
    return deb(request.param)


@DEB
@pytest.mark.needs("lintian")
def test_lintian(package: Path) -> None:
    """Debian's own checker finds no error."""
    result = subprocess.run(["lintian", "--fail-on", "error", package], capture_output=True, text=True)

    assert result.returncode == 0, result.stdout + result.stderr


@DEB
def test_contents(package: Path, tmp_path: Path) -> None:
    """Command, units, rules, policies, manual pages and the private modules are there, for the release's Python."""
    files = contents(package, tmp_path)
    fields = subprocess.run(["dpkg-deb", "-f", package, "Depends"], check=True, capture_output=True, text=True).stdout
    python = next(version for version, _, suffix in PYTHONS.values() if suffix in package.name)

    assert {
        "etc/safemem/policy.toml", "usr/bin/safemem", "usr/lib/systemd/system/safemem-record.service",
        "usr/lib/systemd/system/safemem-metrics.timer", "usr/lib/systemd/system/safemem-hold.service", "usr/lib/udev/rules.d/60-safemem.rules",
        "usr/share/safemem/policies/maintenance.toml", "usr/share/man/man1/safemem.1.gz",
        "usr/share/man/man5/safemem-policy.5.gz", "usr/lib/python3/dist-packages/safemem/boot/main.py",
        "usr/lib/safemem/vendor/pydantic/main.py", "usr/share/initramfs-tools/hooks/safemem",
        "usr/lib/dracut/modules.d/50safemem/module-setup.sh", "usr/lib/systemd/system/safemem-maintenance.target",
        "usr/lib/systemd/system/safemem-maintenance.service", "usr/lib/systemd/system-generators/safemem-generator",
    } <= set(files)  # fmt: skip
    # Only in an initramfs: in the real root it would decide a second time.
    assert not [name for name in files if name.startswith("usr/lib/systemd") and "safemem-decide." in name]
    assert f"python3 (>= {python})" in fields
    assert any(f"cpython-{python.replace('.', '')}-" in name for name in files if "pydantic_core" in name)
    assert not any(name.startswith("usr/lib/python3") and "pydantic" in name for name in files)


@DEB
@pytest.mark.needs("groff")
def test_manual_pages(package: Path, tmp_path: Path) -> None:
    """All pages format without a complaint, have a date, and name what they are about."""
    files = contents(package, tmp_path)
    for name, words in (
        ("1/safemem.1", ("handover-args", "--previous", "DESCRIPTION", "EXAMPLES", "ENVIRONMENT", "KERNEL ARGUMENTS")),
        ("5/safemem-policy.5", ("on_shortfall", "void", "EXAMPLES")),
        ("5/safemem-cases.5", ("MACHINE", "keep-guard")),
        ("7/safemem-glossary.7", ("quarantined", "memhp_default_state")),
    ):
        page = subprocess.run(["gzip", "-dc"], input=files[f"usr/share/man/man{name}.gz"], capture_output=True).stdout
        result = subprocess.run(
            ["groff", "-k", "-Kutf8", "-man", "-Tutf8", "-ww", "-P-cbou"], input=page, capture_output=True
        )
        assert (result.returncode, result.stderr) == (0, b"")
        assert re.search(rb"\d{4}-\d\d-\d\d", result.stdout.splitlines()[-1])
        for word in words:
            assert word.encode() in result.stdout


@DEB
def test_one_list(package: Path, tmp_path: Path) -> None:
    """Every unit, hook, policy and rule of the project is in the package, and every unit that is enabled is one of them."""
    names = contents(package, tmp_path)
    sources = {path.name for folder in ("systemd", "udev", "policies") for path in (ROOT / folder).iterdir()}

    assert sources <= {name.rpartition("/")[2] for name in names}
    assert all(list(ROOT.glob(file.source)) for file in tree.FILES)
    for unit in tree.UNITS:
        assert b"\n[Install]\n" in names[f"usr/lib/systemd/system/{unit}"]


@DEB
def test_units_name_no_modules(package: Path, tmp_path: Path) -> None:
    """They start programs of the package, which know where its modules are and answer to nothing of the environment."""
    files = contents(package, tmp_path)
    units = {name: data.decode() for name, data in files.items() if name.startswith("usr/lib/systemd/system/")}
    started = {line.split()[0].partition("=/")[2] for text in units.values() for line in text.splitlines() if line.startswith("ExecStart=")}  # fmt: skip

    assert {
        "usr/lib/safemem/gate",
        "usr/lib/safemem/hold",
        "usr/lib/safemem/maintenance",
        "usr/lib/safemem/token",
        "usr/bin/safemem",
    } == started
    assert started <= set(files) and not [name for name, text in units.items() if "python" in text]
    for name in ("gate", "hold", "loading", "maintenance", "token"):
        text = files[f"usr/lib/safemem/{name}"].decode()
        assert text.startswith("#!/usr/bin/python3 -IS\n") and '"/usr/lib/python3/dist-packages"' in text


@pytest.mark.parametrize(("name", "ends"), [("hold", (0, "")), ("maintenance", (1, "safemem: "))])
def test_programs_of_the_real_root(tmp_path: Path, name: str, ends: tuple[int, str]) -> None:
    """Each finds its module in the folder that was written into it, and looks at the root that it is told: a record is damaged there."""
    program = tmp_path / name
    tree.put(program, tree.programs(str(ROOT)[1:], "")[f"usr/lib/safemem/{name}"].encode(), 0o755)
    (tmp_path / "root/run/safemem").mkdir(parents=True)
    (tmp_path / "root/sys/devices/system/cpu").mkdir(parents=True)  # a kernel that cannot hot-add memory
    (tmp_path / "root/run/safemem/decision.json").write_text("{")
    result = subprocess.run([program, "--root", tmp_path / "root"], capture_output=True, text=True)

    assert (result.returncode, result.stderr[:9]) == ends, result.stderr
    # A record that cannot be read holds everything.
    assert (tmp_path / "root/run/safemem/masked").exists() == (name == "hold")


@pytest.mark.parametrize("sysfs", [True, False], ids=["machine", "tree"])
@pytest.mark.parametrize("good", [True, False], ids=["policy", "typo"])
def test_who_installs_is_told_what_the_next_boot_decides(tmp_path: Path, sysfs: bool, good: bool) -> None:
    """By the policy on this machine, cold and rejected, and how to take it back; it never fails, and says little in a tree."""
    policy = tmp_path / "policy.toml"
    policy.write_text((ROOT / "policies/live-update-host.toml").read_text() if good else "format = 2")
    tree.put(tmp_path / "bin/safemem", tree.programs("", str(ROOT)[1:])["usr/bin/safemem"].encode(), 0o755)
    text = (ROOT / "packages/next-boot.sh").read_text().replace("/etc/safemem/policy.toml", str(policy))
    text = text if sysfs else text.replace("/sys/kernel", str(tmp_path / "none"))
    result = subprocess.run(
        ["sh", "-eu", "-c", text.replace("safemem simulate", f"{sys.executable} {tmp_path}/bin/safemem simulate")],
        capture_output=True, text=True,
    )  # fmt: skip

    head = f"safemem: from the next boot on, {policy} decides which memory may be used.\n"
    tail = "  To take it back, remove the package: that makes the initramfs without it.\n"
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(head) and result.stdout.endswith(tail)
    cold, rejected = "online-all  no handover", "panic  handover lost"
    said = result.stdout[len(head) : -len(tail)].splitlines()
    if not sysfs:
        assert said == []
    elif not good:
        assert [line.split(": ", 1)[1].strip()[:10] for line in said[:2]] == ["not known:", "not known:"]
    else:
        assert said[0].strip().startswith("after a cold boot:") and cold in said[0]
        assert said[1].strip().startswith("after a rejected handover:") and rejected in said[1]


def test_both_packages_tell_it_when_they_are_installed_first() -> None:
    """And only then; what it comes to does not matter to the installation."""
    call = "/usr/lib/safemem/next-boot || :\n"
    assert f'[ -n "$2" ] || {call}' in (ROOT / "packages/debian/postinst").read_text()
    assert f'if [ "$1" -eq 1 ]; then\n    {call}fi\n' in (ROOT / "packages/rpm/safemem.spec").read_text()


@pytest.fixture(scope="module")
def rpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the RPM."""
    words = [sys.executable, "-m", "packages.rpm", "-o", str(tmp_path_factory.mktemp("rpm"))]
    return Path(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout.strip())


def ask(package: Path, *words: str) -> str:
    """Return what `rpm -qp` says."""
    return subprocess.run(["rpm", "-qp", *words, package], check=True, capture_output=True, text=True).stdout


@DEB
@RPM
def test_rpm_has_the_same_files(package: Path, rpm: Path) -> None:
    """Both packages bring the same, with the same modes, but for what one distribution has and the other has not."""
    listed = subprocess.run(["dpkg-deb", "-c", package], check=True, capture_output=True, text=True).stdout
    deb = {line.split(None, 5)[5][1:]: line[:10] for line in listed.splitlines() if line[0] == "-"}
    query = "[%{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILEFLAGS:fflags} %{FILENAMES}\\n]"
    lines = (line.split(" ", 4) for line in ask(rpm, "--qf", query).splitlines())
    files = {name: (mode, user, group, flags) for mode, user, group, flags, name in lines if mode[0] == "-"}

    def common(names: dict[str, str]) -> dict[str, str]:
        return {
            re.sub("^/usr/lib/(python3/dist-packages|safemem/python)/", "MODULES/", name): mode for name, mode in names.items()
            if not re.match("/usr/(lib/safemem/vendor|share/(doc|licenses|initramfs-tools)|lib/systemd/system-preset)/", name)
        }  # fmt: skip

    assert common({name: mode for name, (mode, *_) in files.items()}) == common(deb)
    assert {(user, group) for _, user, group, _ in files.values()} == {("root", "root")}
    assert files["/etc/safemem/policy.toml"][3] == "cn"
    assert [name for name, (*_, flags) in files.items() if flags == "l"] == [
        f"/usr/share/licenses/{rpm.name.rpartition('-')[0]}/LICENSE"
    ]


@RPM
def test_rpm_is_what_the_project_says(rpm: Path) -> None:
    """Version and needs are those of pyproject.toml, and digests are right."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = ask(rpm, "--requires").splitlines()

    assert ask(rpm, "--qf", "%{VERSION} %{ARCH}") == f"{project['version']} noarch"
    assert {f"python3 {project['requires-python'].replace('>=', '>= ')}", "dracut"} <= set(needs)
    assert {f"python3-{need.replace('>=', ' >= ')}" for need in project["dependencies"]} == {
        need for need in needs if need.startswith("python3-")
    }
    subprocess.run(["rpm", "-K", rpm], check=True)


@RPM
@pytest.mark.needs("busybox")
def test_rpm_comes_changes_and_goes(rpm: Path, tmp_path: Path) -> None:
    """Units are preset once, images rebuilt each time; the command runs from there; nothing is left but the policy."""
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "usr/bin").mkdir(parents=True)
    (root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin/busybox").chmod(0o755)
    for name in ("sh", "find", "rm"):
        (root / "bin" / name).symlink_to("busybox")
    for name, more in (("systemctl", ""), ("dracut", "[ -e /usr/lib/dracut/modules.d/50safemem ] && echo there >>/log"),
                       ("python3", "/bin/busybox mkdir -p $4/safemem/__pycache__")):  # fmt: skip
        (root / "usr/bin" / name).write_text(f'#!/bin/sh\necho {name} "$@" >>/log\n{more}\n:\n')
        (root / "usr/bin" / name).chmod(0o755)
    python = "python3 -m compileall -q /usr/lib/safemem/python"
    dracut = "dracut --regenerate-all --force"
    units = " ".join(tree.UNITS)

    def run(*words: str | Path, said: str = "") -> list[str]:
        """Let `rpm` do something below the root, where it says what is `said`; return what its scriptlets called."""
        (root / "log").write_text("")
        own = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
        command = [*own, "rpm", "--force-debian", "--root", root, "--dbpath", "/db", "--nodeps", *words]
        result = subprocess.run(command, capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (0, said)
        return (root / "log").read_text().splitlines()

    assert run("-i", rpm) == [python, f"systemctl --no-reload preset {units}", dracut, "there"]
    assert (root / "usr/lib/systemd/system-preset/80-safemem.preset").read_text().split()[1::2] == units.split()
    # What the units start looks for modules where this package has them.
    for unit in (root / "usr/lib/systemd/system").iterdir():
        assert "dist-packages" not in unit.read_text() and "python" not in unit.read_text()
    for name in ("hold", "maintenance", "token"):
        assert '"/usr/lib/safemem/python"' in (root / "usr/lib/safemem" / name).read_text()
    run("-V", "safemem")

    # Other people's modules are those of the tests.
    command = (root / "usr/bin/safemem").read_text().replace("/usr/lib", f"{root}/usr/lib")
    command = command.replace("main()", "print(main.callback.__code__.co_filename)\nmain()")
    for words in (["--version"], ["check", str(root / "etc/safemem/policy.toml")]):
        result = subprocess.run([sys.executable, "-I", "-B", "-c", command, *words], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith(f"{root}/usr/lib/safemem/python/safemem/cli/")

    assert run("-U", "--replacepkgs", rpm) == [python, dracut, "there"]
    policy = "/etc/safemem/policy.toml"
    (root / policy[1:]).write_text("# mine\n")
    saved = f"warning: {policy} saved as {policy}.rpmsave\n"
    assert run("-e", "safemem", said=saved) == [f"systemctl --no-reload disable {units}", dracut]
    assert {path.relative_to(root).as_posix() for path in root.rglob("*") if "safemem" in str(path.relative_to(root))} == {
        "etc/safemem", "etc/safemem/policy.toml.rpmsave",
    }  # fmt: skip
