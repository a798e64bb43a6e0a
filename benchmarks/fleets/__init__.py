"""Fleets by simulation: replicas, queues and concepts in simulated time, at costs that were measured."""
