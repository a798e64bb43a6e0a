"""The embedded model, as its page shows it."""

import re
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parents[2] / "docs" / "pocket.md"


def test_the_snippet_of_the_page_draws():
    snippet = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert snippet is not None
    names: dict[str, object] = {}
    exec(snippet[1].replace("num_inference_steps=20", "num_inference_steps=1"), names)
    assert np.asarray(names["picture"]).shape == (128, 128, 3)
