"""A run by configuration: what is fitted, evaluated, recorded and what it costs."""
