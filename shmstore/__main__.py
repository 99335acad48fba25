"""``python -m shmstore``: the command line."""

from __future__ import annotations

import sys

from shmstore.cli import main

if __name__ == "__main__":  # a spawned acquisition process imports this module under another name
    sys.exit(main())
