"""The exercises of the course, one module per notebook: ``nNN.py`` with a tuple ``EXERCISES``."""
