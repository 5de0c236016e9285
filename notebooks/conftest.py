"""One thread for each kernel: several kernels that share two cores wait for each other's threads otherwise."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
