"""A concept: its file, its algebra, its words and its settings. Needs numpy; never torch.

`concept_file` is the file that holds one, `edit` the formulas of the gated rank-1 edit, `bank` the concepts that are in
use with one base model, `words` what their tokens are in a prompt.
"""
