"""``python -m rp_course``: the commands of the course."""

import sys

from rp_course.cli import main

if __name__ == "__main__":
    sys.exit(main())
