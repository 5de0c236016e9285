"""Figures of single experiments, each with its alternative text; imported when they are drawn."""
