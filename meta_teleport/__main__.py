"""``python -m meta_teleport`` is the program ``meta-teleport``."""

import os
import sys

if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
        del sys.path[0]  # where Python puts the working directory, in front of every library

    from meta_teleport.cli.main import main

    sys.exit(main())
