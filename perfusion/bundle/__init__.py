"""The bundle, the contract between export, runtime and devices: a folder of graphs, and bundle.json about them.

`names` are the words of the format, `reader` turns a folder into a checked `Bundle`. docs/graph.md describes both.
"""
