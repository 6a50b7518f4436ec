"""`python -m vantage` is `vantage`."""

import sys

from vantage.cli import main

if __name__ == "__main__":
    sys.exit(main())
