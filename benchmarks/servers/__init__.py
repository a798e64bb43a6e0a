"""Servers on this machine and clients of them, for measurements and soaks."""
