# SPDX-License-Identifier: MIT
"""One fuzz target, guided by coverage: `python -m tests.guided SECONDS TARGET`, which `tests.fuzz` starts.

It begins with the corpus that is kept; inputs that reach other code are left in build/fuzz/TARGET.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["safemem"]):
    from tests import fuzz


def main(seconds: str, name: str) -> None:
    """Search until the time is over or something fails; ends the process."""
    found = Path(__file__).resolve().parent.parent / "build/fuzz" / name
    found.mkdir(parents=True, exist_ok=True)
    for label, data in fuzz.corpus(name).items():
        (found / label).write_bytes(data)
    limits = [f"-max_total_time={float(seconds):.0f}", f"-max_len={fuzz.LONGEST}", "-rss_limit_mb=2048"]
    says = ["-verbosity=0", "-print_final_stats=1", f"-artifact_prefix={found}/"]
    atheris.Setup([sys.argv[0], *limits, *says, str(found)], lambda data: fuzz.one(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
