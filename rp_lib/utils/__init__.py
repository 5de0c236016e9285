"""Errors, files, devices, processes: what every layer above needs."""
