"""The mini world: a small CLIP pre-trained on icons and their names, and how its data was made."""
