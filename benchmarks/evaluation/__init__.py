"""One file of a few kilobytes against methods up to a thousand times its size, on the embedded model.

    python -m benchmarks.evaluation [tune train draw measure report | regions] [--work DIR] [--small]

Every method learns the same pictures of the same subjects, draws the same prompts from the same noise, and is measured
in the same way. The work is cut into units of a minute or two, one file each: stop it at any time, the same command
goes on.
"""
