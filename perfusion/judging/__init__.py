"""Scorers: models that put pictures and prompts into one space, the measures that follow, and what is chosen by them.

No torch but in `clip_scorer` and `local_model`.
"""
