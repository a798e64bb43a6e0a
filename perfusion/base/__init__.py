"""The frozen base model, in torch: opened, checked, and with the edit inside its attention.

`base_model` is a model as training and export see it, `families` which models there are, `attention` the one place
where the gated rank-1 edit meets diffusers.
"""
