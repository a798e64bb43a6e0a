"""Trainings spread over processes, graphics cards and machines with Ray: `perfusion-fleet`."""
