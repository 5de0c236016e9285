"""How the notebooks are executed, checked and rendered as a book."""
