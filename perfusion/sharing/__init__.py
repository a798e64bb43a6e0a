"""A concept on its way to others: what its repository on the hub holds, and the upload.

from perfusion.sharing import publish, repository_of
publish(repository_of("cat.safetensors", "owner/cat", licence="cc-by-4.0"))
"""

from perfusion.sharing.gallery import MOST_PICTURES, GalleryPicture, read_gallery
from perfusion.sharing.publishing import Standing, publish, standing_of
from perfusion.sharing.repository import Repository, repository_of

__all__ = [
    "MOST_PICTURES",
    "GalleryPicture",
    "Repository",
    "Standing",
    "publish",
    "read_gallery",
    "repository_of",
    "standing_of",
]
