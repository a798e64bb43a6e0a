"""The recipe of the embedded model: its world, its networks and their training. Not installed; needs a clone."""
