# SPDX-License-Identifier: MIT
"""The values that the rest of safemem passes around; nothing here reads, writes or decides.

Imports: standard library only, and only what `docs/boot-path.md` allows, because every
millisecond here is a millisecond of every boot. Closed sets are plain strings, not enums:
importing `enum` costs more than everything else in this file.
"""

from __future__ import annotations

from safemem.boot.ranges import Range, merge_ranges
from safemem.boot.tuples import NamedTuple

UNKNOWN = "unknown"
#: Stands for every release that cannot be compared with another, such as `next-20260101`.
UNORDERED = "unordered"

ACTIONS = ("online-all", "online-safe", "panic", "reboot", "halt")
#: Actions after which the machine does not go on booting.
FINAL = ("panic", "reboot", "halt")
ZONES = ("auto", "movable", "kernel")
#: How permissive an action is; the larger the number, the more memory comes into use.
PERMISSIVENESS = {"halt": 0, "panic": 0, "reboot": 0, "online-safe": 1, "online-all": 2}

#: How sure a fact is: `proven` by what this kernel shows of itself, `evidence` that fits nothing else known, or the
#: `word` of whoever wrote the command line or the policy.
CONFIDENCES = ("proven", "evidence", "word", UNKNOWN)
#: The facts of which it is said, each under the name of a fact of its own.
CONFIDENT = {name: f"{name}_confidence" for name in ("handover", "guard", "safe_region")}

#: name -> (kind, the values of a closed set). Kinds: `set` one of the values, `text` a glob,
#: `version` a glob or version comparison, `number` an integer or comparison, `names` membership.
#: Facts a rule may ask for; each can also be `unknown`, which matches only a rule that names it.
FACTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "handover": ("set", ("none", "lost", "accepted", "rejected", "orphaned", "unsupported", UNKNOWN)),
    "luo": ("set", ("off", "ready", "failed", "busy", "missing", UNKNOWN)),
    "kho": ("set", ("on", "off", UNKNOWN)),
    "auto_online": ("set", ("offline", "online", "online_movable", "online_kernel", UNKNOWN)),
    "arch": ("text", ()),
    "virt": ("text", ()),
    "product": ("text", ()),
    "machine_class": ("text", ()),
    "numa_nodes": ("number", ()),
    "kernel": ("version", ()),
    "previous_kernel": ("version", ()),
    "kexec_count": ("number", ()),
    "boot_attempts": ("number", ()),
    "nodes": ("names", ()),
    "safe_region": ("set", ("resolved", "unresolved")),
    "guard": ("set", ("none", "full", "part", "void", UNKNOWN)),
    "held_blocks": ("set", ("yes", "no", UNKNOWN)),
    "online_outside_safe": ("set", ("yes", "no", UNKNOWN)),
    "preserved": ("set", ("yes", "no", UNKNOWN)),
    "bus_masters": ("set", ("none", "some", UNKNOWN)),
    "iommu": ("set", ("on", "off", UNKNOWN)),
    "handover_confidence": ("set", CONFIDENCES),
    "guard_confidence": ("set", CONFIDENCES),
    "safe_region_confidence": ("set", CONFIDENCES),
}

#: What older policies, cases and records call a value of a fact.
OLDER = {("guard", "held"): "full"}

#: Facts that follow from the policy's safe region, the blocks and other facts; the engine works them out.
DERIVED = ("safe_region", "held_blocks", "online_outside_safe", *CONFIDENT.values())


class Refused(Exception):
    """Input cannot be used, or a request cannot be carried out; the message says what, where, and what to do.

    The parent of every exception whose message people read: the command line catches this one, in one place.
    """

    #: Names the exit code: `failure`, `invalid` (an input) or `unknown` (no decision, nothing to read).
    kind = "failure"
    #: One sentence for each thing that is wrong, where the message has several.
    lines: tuple[str, ...] = ()


class Note(str):
    """A sentence for people that carries its code for programs: nobody searches the sentence."""

    code: str

    def __new__(cls, code: str, text: str) -> Note:
        """Return `text` with `code`, a few words joined by `-`."""
        note = super().__new__(cls, text)
        note.code = code
        return note


class Fact(NamedTuple):
    """One thing known, or known to be unknown, about the machine."""

    value: str | int | tuple[str, ...]
    source: str  #: where it was read: a path, `command line`, or `--set`
    reason: str = ""  #: how it follows from the source; for `unknown`, what went wrong


class Blocks(NamedTuple):
    """Memory blocks `first`..`last`, both included, which are all in the same state on the same node.

    A machine has tens of thousands of blocks and a handful of these.
    """

    first: int
    last: int
    state: str  #: `online`, `offline`, `going-offline`, or `unknown`
    node: int = -1  #: NUMA node, -1 when it could not be read
    driver: str = UNKNOWN  #: one of DRIVERS: who added it

    @property
    def number(self) -> int:
        """How many blocks these are."""
        return self.last - self.first + 1


#: Who added a block, as /proc/iomem names it: `dimm` is plain System RAM, which boot memory is too.
DRIVERS = ("dimm", "virtio-mem", "kmem", UNKNOWN)


class Room(NamedTuple):
    """What tells, before it is tried, which memory cannot be taken offline or guarded; empty and 0 is not known."""

    kernel: tuple[Range, ...] = ()  #: text and data of the kernel that runs
    ram: tuple[Range, ...] = ()  #: where memory is; a block with a hole never goes
    available: int = 0  #: bytes, when the boot program ran
    initrd: int = 0  #: bytes of the initrd as it was loaded
    firmware: tuple[Range, ...] = ()  #: what firmware gave at boot
    taken: tuple[Range, ...] = ()  #: what lies inside `ram` and stays so for the next kernel
    gigantic: int = 0  #: bytes of a gigantic page that processor and kernel can have


class Pages(NamedTuple):
    """Gigantic pages of one NUMA node, which the kernel has set aside for `hugepages=`."""

    node: int
    size: int  #: bytes of one
    number: int  #: that the kernel has
    free: int  #: of them those that no program has mapped
    own: int  #: what of them the operator wants for programs: these stay when the guard is given back
    ranges: tuple[Range, ...] = ()  #: where they are, ascending; of one that is mapped it is not said

    @property
    def placed(self) -> bool:
        """Whether it is known where all are that no program has mapped, and no other place is shown as one."""
        return sum(area.size for area in self.ranges) == self.free * self.size


class Device(NamedTuple):
    """A PCI function."""

    address: str  #: domain, bus, device and function as sysfs names it, such as `0000:00:04.0`
    vendor: int
    device: int

    def __str__(self) -> str:
        return f"{self.address} ({self.vendor:04x}:{self.device:04x})"


class Snapshot(NamedTuple):
    """Everything a decision may depend on, read once."""

    facts: dict[str, Fact]
    block_size: int  #: bytes; 0 when the machine shows no memory blocks
    blocks: tuple[Blocks, ...]  #: ascending, disjoint
    scratch: tuple[Range, ...]  #: the predecessor's scratch areas; empty unless accepted
    cmdline: str
    cmdline_safe: tuple[Range, ...]  #: `safemem.safe=`
    guard: Range | None = None  #: boot memory reserved in this boot by `crashkernel=` as our guard
    overrides: tuple[str, ...] = ()  #: what the command line asks for: `off`, `dry-run`, `policy=NAME`
    notes: tuple[Note, ...] = ()  #: what could not be read, and why
    witness: str = ""  #: how a guard that is not in force shows that the handover was accepted; no proof
    room: Room = Room()
    gigantic: tuple[Pages, ...] = ()  #: the guard's other half, by node
    masters: tuple[Device, ...] = ()  #: that may write to memory and have no driver, ascending by address

    @property
    def guarded(self) -> tuple[Range, ...]:
        """All that the guards reserve, ascending."""
        pages = (area for item in self.gigantic for area in item.ranges)
        return merge_ranges((*((self.guard,) if self.guard else ()), *pages))


class Term(NamedTuple):
    """One accepted value of a fact. `op` is one of `is`, `glob`, `has`, `unordered`, `<`, `<=`, `>`, `>=`."""

    op: str
    value: str | int


class Condition(NamedTuple):
    """A fact and what it may be: any of `groups`, or with `negate` none of them."""

    fact: str
    groups: tuple[tuple[Term, ...], ...]  #: any of these groups; of a group, all
    negate: bool = False


class Rule(NamedTuple):
    """What to do, and when. `otherwise` is a rule without conditions."""

    name: str
    action: str
    when: tuple[Condition, ...] = ()
    message: str = ""
    zone: str = ""  #: "" lets the engine choose: movable where KHO is on
    enter: str = ""  #: "" or `maintenance`
    on_shortfall: str = "continue"
    exposed_max: str = ""  #: a size or a share; "" makes any refusal a shortfall
    boot_memory: str = "leave"  #: or `offline`: take what is online outside the safe region off again
    floor: str = ""  #: size that `boot_memory = "offline"` leaves available; "" lets `quarantine` work it out
    accept_data_exposure: bool = False
    if_onlined: str = "report"  #: or `offline`: what `watch` does with a held block that somebody onlined
    final: bool = False  #: `release` needs to be forced
    quiesce: str = ""  #: "" or `pci`: stop bus masters that no driver owns before memory is touched
    memory: tuple[Override, ...] = ()  #: exceptions of this rule, before the policy's own


class Override(NamedTuple):
    """What one range, node or driver's blocks get instead; exactly one of the three is given."""

    range: Range | None = None
    node: int = -1
    driver: str = ""
    hold: bool = False
    zone: str = ""


class Failure(NamedTuple):
    """What the boot path does when safemem itself cannot finish."""

    action: str
    message: str = ""
    deadline: int = 10  #: seconds


class Policy(NamedTuple):
    """A checked policy, ready to decide."""

    name: str
    rules: tuple[Rule, ...]
    otherwise: Rule
    on_failure: Failure
    sources: tuple[str | Range, ...]  #: of the safe region, in order: `kho-scratch`, `cmdline`, `none`, a range
    allow_cmdline_override: bool = False
    memory: tuple[Override, ...] = ()  #: a hold counts wherever it stands, of zones the first that is about a block
    open_luo: bool = False  #: open /dev/liveupdate to tell ready from failed
    retrieve_token: bool = False  #: retrieve the session that safemem's outgoing side put into LUO
    keep_crashkernel: str = ""  #: size that is left of a guard for kdump when it is given back
    observe: bool = False  #: decide and record, and leave the machine as Linux without safemem has it
    trust_guard: bool = False  #: where the handover cannot be told, take a witness's word that it was accepted
    accept_errors: tuple[str, ...] = ()  #: codes of the errors with which it may be built in all the same
    digest: str = ""  #: of the compiled form; 64 hex digits


class Miss(NamedTuple):
    """Why an earlier rule did not decide."""

    rule: str
    fact: str
    wanted: str
    fact_value: str
    source: str


class Step(NamedTuple):
    """One thing to do to one range of memory.

    `op` is `online`, `offline` (quarantine: it was in use until now), `hold` (leave offline), `keep`
    (already online, left so), `release-guard` or `keep-guard`.
    """

    op: str
    start: int
    end: int
    first: int = -1  #: block numbers, -1 for a guard
    last: int = -1
    zone: str = ""
    why: str = ""
    late: bool = False  #: was online before the decision, and should not be
    node: int = -1  #: of a guard of gigantic pages; -1 for every other step

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


class PolicyId(NamedTuple):
    """Which policy decided, and what of it beside the rule still counts afterwards. Fields are named as in `Policy`."""

    name: str
    digest: str
    #: The rule's exceptions and the policy's: with them, the action and the region anybody can tell what is held later.
    memory: tuple[Override, ...] = ()
    keep_crashkernel: str = ""
    accept_errors: tuple[str, ...] = ()  #: it was built in although it has these


class Plan(NamedTuple):
    """What is to be done to memory."""

    steps: tuple[Step, ...]
    arrivals: str = ""  #: zone for blocks that are plugged in later; "" keeps them offline
    floor: str = ""  #: size that taking memory offline leaves available; "" lets `quarantine` work it out
    keep: tuple[Pages, ...] = ()  #: gigantic pages that no program is to get
    give_back: tuple[Pages, ...] = ()  #: gigantic pages that go, but for the operator's own
    quiesce: tuple[Device, ...] = ()  #: bus masters to stop before memory is touched


class Decision(NamedTuple):
    """The outcome and everything that led to it."""

    rule: Rule  #: that decided, as the policy has it
    policy: PolicyId
    message: str  #: the rule's, or which handover it was
    zone: str  #: for onlining: `movable`, `kernel` or `auto`
    facts: dict[str, Fact]  #: with the derived ones
    region: tuple[Range, ...]
    region_source: str
    misses: tuple[Miss, ...]
    steps: tuple[Step, ...]
    warnings: tuple[Note, ...]
    arrivals: str = ""  #: as in `Plan`
    gigantic: tuple[Pages, ...] = ()  #: as in `Snapshot`
    masters: tuple[Device, ...] = ()  #: as in `Snapshot`

    @property
    def action(self) -> str:
        """One of ACTIONS."""
        return self.rule.action

    @property
    def holds(self) -> bool:
        """Whether some memory is to stay out of use, so that nothing that arrives may come online by itself."""
        return not self.arrivals

    @property
    def plan(self) -> Plan:
        """What `apply` carries out."""
        keep, back = ((self.gigantic if self.action == action else ()) for action in ("online-safe", "online-all"))
        quiesce = self.masters if self.rule.quiesce and self.action not in FINAL else ()
        return Plan(self.steps, self.arrivals, self.rule.floor, keep, back, quiesce)
