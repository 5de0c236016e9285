"""``python -m rp_lib`` is the same as ``rp-lib``."""

import sys


def main() -> int:
    """Run the command line; Ctrl-C while it is imported or reports ends without a traceback too."""
    try:
        from rp_lib.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("\nrp-lib: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
