"""What machine this is and what fits on it. This part is still to come: there is nothing to import yet."""
