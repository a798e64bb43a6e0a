"""What several tests of the sweep need."""

import numpy as np
import pytest

from perfusion.judging.scales import Similarities


@pytest.fixture
def similarities_of():
    """Similarities of some pictures; the plain cosine is the image similarity again."""

    def make(image, text):
        image, text = (np.asarray(values, np.float64) for values in (image, text))
        return Similarities(image=image, text=text, cosine=image)

    return make
