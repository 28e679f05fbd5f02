#!/usr/bin/env python3
"""Compare controllers on one scenario, simulated or real, or on a whole suite of them."""

import sys

from sponge_env.app.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
