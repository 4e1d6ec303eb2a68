"""The door to the command line, `mnv2` or `python -m mnv2_jax`, which needs the extra `train`."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, as `mnv2_jax.lab.cli.main` does, or says what to install for it."""
    try:
        from mnv2_jax.lab.cli import main as run
    except ModuleNotFoundError as error:
        if str(error.name).startswith("mnv2_jax"):
            raise
        install = "install what the command line needs with pip install 'mnv2_jax[train]'."
        print(f"mnv2: {error}: {install}", file=sys.stderr)
        return 2
    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
