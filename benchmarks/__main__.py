"""`make bench`: the benchmarks, one after the other, in about seven minutes; `python -m benchmarks PART...` runs some of them.

A part that fails does not stop the others. When all are through, the page of results is written anew.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable

from benchmarks import (
    bench_choices,
    bench_gateway,
    bench_profile,
    bench_soak,
    bench_streams,
    bench_workers,
    summary,
)

PARTS: dict[str, Callable[[], None]] = {
    "gateway": bench_gateway.main,
    "streams": bench_streams.main,
    "workers": bench_workers.main,
    "profile": bench_profile.main,
    "choices": bench_choices.main,  # decision 0009 rests on it; nothing of it changes from day to day
}
USUAL = ("gateway", "streams", "workers", "profile")


def main() -> int:
    """Exit status 1 when a part could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join((*PARTS, 'soak'))}; none: {', '.join(USUAL)}"
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="of the soak")
    given = parser.parse_args()
    failed = []
    for part in given.parts or USUAL:
        try:
            if part == "soak":
                bench_soak.main(given.minutes)
            elif part in PARTS:
                PARTS[part]()
            else:
                parser.error(f"there is no part {part!r}")
        except Exception:  # noqa: BLE001 - the other parts are worth having
            traceback.print_exc()
            failed.append(part)
    summary.write()
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
