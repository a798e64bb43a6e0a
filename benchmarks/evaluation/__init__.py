"""One file of a few kilobytes against methods up to a thousand times its size, on the embedded model.

    python -m benchmarks.evaluation [tune train draw measure report] [--work DIR] [--small]

Every method learns the same pictures of the same subjects, draws the same prompts from the same noise, and is judged by
the same measures; docs/evaluation.md is written from what is found. The work is cut into units of a minute or two, one
file each: stop it at any time, the same command goes on.
"""
