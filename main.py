"""The door: `python main.py --config experiments/ablate_linear.py` trains; see also `--help`."""

import sys

from mnv2_jax.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
