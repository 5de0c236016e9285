"""What the library costs against the released code's pattern, measured: ``python -m tests.speed``."""
