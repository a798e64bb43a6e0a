"""TensorRT engines of a bundle's graphs: built, cached, found again. docs/engines.md describes them.

Everything here but `run` needs only the standard library and a few modules of the package that need no more, so that
the script for a device without this package (`script`) carries the very same code.
"""
