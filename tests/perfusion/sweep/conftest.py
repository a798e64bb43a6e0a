"""What several tests of the sweep need."""

import numpy as np
import pytest

from perfusion.sweep import Judged


@pytest.fixture
def judged():
    """Similarities of some pictures; the plain cosine is the image similarity again."""

    def make(image, text):
        image, text = (np.asarray(values, np.float64) for values in (image, text))
        return Judged(image=image, text=text, cosine=image)

    return make
