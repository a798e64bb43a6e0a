"""What keeps a concept at its own thing, if it is trained for it: trials of other edits, with and without regions."""
