"""Pocket as it ships: the embedded model, its scorer and the words it knows. The recipe is in recipes/pocket."""
