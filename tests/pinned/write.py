"""Writes the committed numbers anew: ``python tests/pinned/write.py`` for all of them, or with names for some.

python tests/pinned/write.py --compare    shows how far this machine is from them, and writes nothing
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from pinned.cases import CASES, run  # noqa: E402
from pinned.store import apart, read, write  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*CASES, []], help="all if none is given")
    parser.add_argument("--compare", action="store_true", help="show the largest relative difference instead")
    args = parser.parse_args()
    for name in args.names or CASES:
        found = run(name)
        if args.compare:
            worst = max(apart(found, read(name)).items(), key=lambda entry: entry[1])
            print(f"{name}: {worst[1]:.1e} ({worst[0]})", flush=True)
        else:
            write(name, found)


if __name__ == "__main__":
    main()
