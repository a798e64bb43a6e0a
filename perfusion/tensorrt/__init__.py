"""TensorRT engines of a bundle's graphs: built, cached, found again. docs/engines.md describes them.

Everything here but `run` needs only the standard library, `perfusion.errors` and `perfusion.files`, so that the script
for a device without this package (`script`) carries the very same code.
"""
