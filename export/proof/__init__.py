"""The proof of an export: every graph held against torch, and the place where one goes wrong."""
