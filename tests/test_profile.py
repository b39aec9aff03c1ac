# SPDX-License-Identifier: MIT
"""Profiles: what they say is read and written back, what is wrong has its place, and what is outside is found."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner, Result

from safemem.boot.model import Fact
from safemem.cli import main
from safemem.outgoing import image, profile
from safemem.outgoing.expected import Policies
from safemem.outgoing.kernel import Kernel, Module, Speaks
from safemem.policy import load
from tests.kit import POLICY, archive, base, policy, units

ID, OTHER = "ab" * 20, "cd" * 20
SPEAKS = Speaks(frozenset({"kho-v4"}), frozenset({"luo-v5"}), frozenset({"memfd-v2"}), frozenset({"memblock-v1"}))
CURRENT = Kernel(
    "/boot/vmlinuz", "bzImage", arch="x86_64", release="7.3.4", build_ids=(ID,), page_size=4096, speaks=SPEAKS,
    kho=Fact("yes", "config"), luo=Fact("yes", "config"), modules=(Module("x.ko", frozenset({"x-v1"})),),
)  # fmt: skip
DIGEST = load.read(POLICY).digest
POLICIES = Policies(load.read(POLICY))


def test_what_is_written_is_read() -> None:
    """A profile of an image and a policy allows them, and nothing else is in it."""
    text = profile.write("fleet", [CURRENT], [DIGEST])
    found = profile.parse(text.encode(), "f")

    assert text == (
        f'format = 1\nname = "fleet"\npolicies = ["{DIGEST}"]\n\n[[kernel]]\nrelease = "7.3.4"\narch = "x86_64"\n'
        f'build_ids = ["{ID}"]\ntree = ["kho-v4"]\nluo = ["luo-v5"]\nhandlers = ["memfd-v2", "x-v1"]\n'
        'producers = ["memblock-v1"]\n'
    )
    assert list(profile.check(found, CURRENT, POLICIES)) == []


@pytest.mark.parametrize(
    ("kernel", "policies", "code", "evidence"),
    [
        (CURRENT._replace(release="7.3.5"), POLICIES, "profile-kernel", f"/boot/vmlinuz is 7.3.5, {ID}"),
        (CURRENT._replace(arch="aarch64"), POLICIES, "profile-kernel", f"/boot/vmlinuz is 7.3.4, {ID}"),
        (CURRENT._replace(build_ids=(OTHER,)), POLICIES, "profile-kernel", f"/boot/vmlinuz is 7.3.4, {OTHER}"),
        (CURRENT._replace(build_ids=(ID, OTHER)), POLICIES, "profile-kernel", f"/boot/vmlinuz is 7.3.4, {ID}, {OTHER}"),
        (CURRENT._replace(build_ids=(), release=""), POLICIES, "profile-kernel", "/boot/vmlinuz is of no known release, no build ID"),
        (CURRENT._replace(speaks=SPEAKS._replace(tree=frozenset())), POLICIES, "profile-versions", "/boot/vmlinuz"),
        (CURRENT._replace(modules=()), POLICIES, "profile-versions", "/boot/vmlinuz"),
        (CURRENT, None, "profile-policy", "none is known"),
        (CURRENT, Policies(policy()._replace(digest="0" * 64)), "profile-policy", "000000000000"),
        (CURRENT, Policies(POLICIES.built_in, (policy()._replace(digest="0" * 64),)), "profile-policy", f"{DIGEST[:12]}, 000000000000"),
    ],
)  # fmt: skip
def test_outside(kernel: Kernel, policies: Policies | None, code: str, evidence: str) -> None:
    """Another release, build or architecture, other versions, another policy; of several policies each counts."""
    allowed = profile.parse(profile.write("fleet", [CURRENT], [DIGEST]).encode(), "f")
    (found,) = profile.check(allowed, kernel, policies)

    assert (found.code, found.severity, found.evidence) == (code, "error", evidence)


def test_less_is_said() -> None:
    """Without build IDs any of the release will do, without policies any policy."""
    text = profile.write("fleet", [CURRENT]).replace(f'"{ID}"', "")

    assert list(profile.check(profile.parse(text.encode(), "f"), CURRENT._replace(build_ids=(OTHER,)), None)) == []


GOOD = 'format = 1\nname = "x"\n[[kernel]]\nrelease = "7.3.4"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format = 1\nname = x", "f:2:8: not valid TOML: invalid value: `name = x`; text stands in quotes"),
        ("", "f:1:1: `format` is missing\nf:1:1: `name` is missing\nf:1:1: `kernel` is missing"),
        (GOOD.replace("= 1", "= 2"), "f:1:1: `2` is not a format that this safemem reads; it reads 1"),
        (GOOD.replace('"x"', '""'), "f:2:1: `name` must be one line of text, not ``"),
        (GOOD.replace('"x"', "7"), "f:2:1: `name` must be text, not `7`"),
        (GOOD + 'tree2 = ["x"]\n', "f:5:1: unknown key `tree2`; did you mean `tree`?"),
        (GOOD + 'tree = "x"\n', "f:5:1: `tree` must be a list, not `x`"),
        (GOOD + 'tree = ["kho-v4", "k v"]\n', "f:5:19: expected a version such as `kho-v4`, not `k v`"),
        (GOOD + 'build_ids = ["xyz"]\n', "f:5:14: expected a build ID, 16 to 128 hexadecimal digits, not `xyz`"),
        ('polices = []\n' + GOOD, "f:1:1: unknown key `polices`; did you mean `policies`?"),
        ('policies = ["ab"]\n' + GOOD, "f:1:13: expected a digest, 64 hexadecimal digits, not `ab`"),
        ('format = 1\nname = "x"\nkernel = []\n', "f:3:1: `kernel` must not be empty"),
        ('format = 1\nname = "x"\nkernel = [7]\n', "f:3:11: expected a table, not `7`"),
    ],
)  # fmt: skip
def test_what_is_wrong(text: str, message: str) -> None:
    """Each mistake has its line and column, and says what is expected."""
    with pytest.raises(load.PolicyError) as caught:
        profile.parse(text.encode(), "f")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (
            CURRENT._replace(build_ids=()),
            "/boot/vmlinuz: it has no build ID, so no profile can tell it from others of its release",
        ),
        (CURRENT._replace(release=""), "/boot/vmlinuz: its release cannot be told, so no profile can name it"),
        (
            CURRENT._replace(release="7\n"),
            r"/boot/vmlinuz: `\"7\n\"` cannot stand in a profile: it is not one line of ASCII",
        ),
    ],
)
def test_what_cannot_be_written(kernel: Kernel, message: str) -> None:
    """An image that names itself in no way that a file can hold."""
    with pytest.raises(profile.Unspeakable) as caught:
        profile.write("x", [kernel])
    assert str(caught.value) == message.replace('\\"', '"')


def test_schema() -> None:
    """What is written fits the schema, and what a reader refuses does not."""
    import tomllib

    document = json.loads(CliRunner().invoke(main, ["schema", "--of", "profile"]).stdout)
    check = jsonschema.Draft202012Validator(document)

    assert document["$schema"].endswith("2020-12/schema")
    assert check.is_valid(tomllib.loads(profile.write("fleet", [CURRENT], [DIGEST])))
    assert not check.is_valid(tomllib.loads(GOOD + 'tree2 = ["x"]\n'))
    result = CliRunner().invoke(main, ["schema", "--of", "profile", "--reference"])
    assert result.exit_code == 2 and "profiles have a schema, and no page of their own" in result.stderr


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--write-profile takes several images, and the policies of --policy and --initrd."""
    monkeypatch.setattr(image, "read", lambda path: (CURRENT._replace(path=path, release=f"7.3.{path[-1]}"),))
    (tmp_path / "initrd").write_bytes(archive({**base(), **units()}))
    out = tmp_path / "fleet.toml"
    words = [
        "preflight",
        "--kernel",
        "k4",
        "--kernel",
        "k5",
        "--initrd",
        str(tmp_path / "initrd"),
        "--write-profile",
        str(out),
    ]
    result = CliRunner().invoke(main, words)
    found = profile.parse(out.read_bytes(), "f")

    assert (result.exit_code, result.output) == (0, f"safemem: {out}: allows 2 kernels, 2 of them new\n")
    assert (found.name, [item.release for item in found.kernel], found.policies) == (
        "fleet",
        ["7.3.4", "7.3.5"],
        [DIGEST],
    )
    (tmp_path / "initrd").write_bytes(archive({"init": b""}))
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, result.stderr) == (
        3, f"safemem: {tmp_path}/initrd: there is no policy of safemem's in it that can be used\n",
    )  # fmt: skip


def write_profile(out: object, *more: str) -> Result:
    """Run `safemem preflight --write-profile`."""
    return CliRunner().invoke(main, ["preflight", "--write-profile", str(out), *more])


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an image be CURRENT, of the release that its name ends with."""
    monkeypatch.setattr(image, "read", lambda path: (CURRENT._replace(path=path, release=f"7.3.{path[-1]}"),))


def test_more_is_added(tmp_path: Path, images: None) -> None:
    """What the file allows already stays, comments and all; what is there is not there twice."""
    out = tmp_path / "fleet.toml"
    assert write_profile(out, "--kernel", "k4", "--policy", str(POLICY)).exit_code == 0
    out.write_text("# ours\n" + out.read_text())
    out.chmod(0o640)
    result = write_profile(out, "--kernel", "k4", "--kernel", "k5", "--kernel", "k5")
    found = profile.parse(out.read_bytes(), "f")

    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"safemem: {out}: allows 2 kernels, 1 of them new\n"
    assert [item.release for item in found.kernel] == ["7.3.4", "7.3.5"] and found.policies == [DIGEST]
    assert out.read_text().startswith("# ours\n") and out.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "policies", ["", "policies = []\n", f'policies = ["{"0" * 64}"]\n', f'policies = [\n "{"0" * 64}", # ]\n]\n']
)
def test_policies_are_added(tmp_path: Path, images: None, policies: str) -> None:
    """However they are written; where any may decide, any still may."""
    out = tmp_path / "x.toml"
    out.write_text(GOOD.replace("[[", policies + "[["))
    result = write_profile(out, "--kernel", "k4", "--policy", str(POLICY))
    found = profile.parse(out.read_bytes(), "f")

    assert result.exit_code == 0, result.stderr
    assert found.policies == (["0" * 64, DIGEST] if "000" in policies else [])
    assert list(profile.check(found, CURRENT, POLICIES)) == []


def test_the_same_kernel_with_other_versions(tmp_path: Path, images: None) -> None:
    """An entry that says other versions of the kernel does not keep it out for ever."""
    out = tmp_path / "x.toml"
    out.write_text(GOOD)
    assert write_profile(out, "--kernel", "k4").stderr.endswith("allows 2 kernels, 1 of them new\n")
    found = profile.parse(out.read_bytes(), "f")

    assert list(profile.check(found, CURRENT, None)) == []


@pytest.mark.parametrize("text", ["", "[package]\nname = 'x'\n", "\x7fELF"])
def test_what_is_no_profile_stays(tmp_path: Path, images: None, text: str) -> None:
    """Another file is refused, whatever it is."""
    out = tmp_path / "x.toml"
    out.write_text(text)
    result = write_profile(out, "--kernel", "k4")

    assert (result.exit_code, out.read_text()) == (3, text)
    assert result.stderr.startswith(f"safemem: {out} is no profile and is left as it is\nsafemem: {out}:1:")


def test_to_standard_output(images: None) -> None:
    """It has no name of its own."""
    result = write_profile("-", "--kernel", "k4")

    assert profile.parse(result.stdout.encode(), "f").name == "profile" and result.stderr == ""


@pytest.mark.parametrize("option", ["--cmdline", "--running", "--loader", "--profile", "--state", "--root"])
def test_what_does_nothing_there(tmp_path: Path, images: None, option: str) -> None:
    """It is a mistake to believe that it does, and nothing is written."""
    result = write_profile(tmp_path / "x", "--kernel", "k4", option, "kexec_load" if option == "--loader" else "x")

    assert result.exit_code == 2 and not (tmp_path / "x").exists()
    assert f"{option} does nothing with --write-profile" in result.stderr
