"""`python -m services.quality`: the same as `swaa eval`, where only torch, transformers and numpy are installed."""

import sys

from services.quality.command import main

if __name__ == "__main__":
    sys.exit(main())
