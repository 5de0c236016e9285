#!/bin/sh
# Download and verify the real data sets of the full track. A thin front of `rp-lib data`, which does it all:
#
#   ./data_download.sh --list             what there is, and what is there already
#   ./data_download.sh cifar              the CIFAR-10 benchmark into ./data (or $RP_DATA, or --root FOLDER)
#   ./data_download.sh --help             everything else
#
# Exit codes: 0 all there, 2 bad input or no rp_lib, 3 network, 4 verification, 5 no space, 6 not there (to be
# fetched by hand; with --check: not downloaded), 130 interrupted (the same command goes on from there).
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
python=$here/.venv/bin/python
if [ ! -x "$python" ]; then
    python=$(command -v python3) || python=
fi
# Without the working directory on the path: the sources alone, in a fresh clone, are not an installation.
if [ -z "$python" ] || ! "$python" -c '
import importlib.util, sys
sys.path = [p for p in sys.path if p]
sys.exit(importlib.util.find_spec("rp_lib") is None)'; then
    printf '%s\n' "data_download.sh: rp_lib is not installed for ${python:-any python3}; install it first:" \
        "  cd \"$here\" && python3 -m venv .venv && .venv/bin/pip install -e ." >&2
    exit 2
fi
exec "$python" -m rp_lib data "$@"
