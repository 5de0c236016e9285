"""How the mini CLIP and its benchmark of icons were made."""
