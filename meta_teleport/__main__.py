"""``python -m meta_teleport`` is the program ``meta-teleport``."""

import sys

from meta_teleport.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
