#!/usr/bin/env python3
"""Train a learned controller on simulated scenarios."""

import sys

from agents.training import main

if __name__ == "__main__":
    sys.exit(main())
