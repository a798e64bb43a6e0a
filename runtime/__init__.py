"""Drawing pictures with an exported bundle and concept files: numpy and onnxruntime, never torch.

from perfusion.runtime import Runtime

runtime = Runtime()                                   # the embedded pocket model
runtime.load_concept("cat.safetensors")               # its token is now a word
picture = runtime.generate("a photo of <cat> on a beach", seed=0)
"""

from perfusion.bundle.description import Bundle
from perfusion.bundle.reader import read_bundle
from perfusion.concept.regions import Region
from perfusion.concept.settings import ConceptSettings
from perfusion.runtime.compute.backend import Backend, make_backend
from perfusion.runtime.compute.mock_backend import GraphCall, MockBackend
from perfusion.runtime.explanation import Explanation
from perfusion.runtime.pipeline import Runtime
from perfusion.runtime.queueing.job import Job
from perfusion.runtime.sampling.schedulers import SCHEDULERS
from perfusion.runtime.step import Step

__all__ = [
    "SCHEDULERS",
    "Backend",
    "Bundle",
    "ConceptSettings",
    "Explanation",
    "GraphCall",
    "Job",
    "MockBackend",
    "Region",
    "Runtime",
    "Step",
    "make_backend",
    "read_bundle",
]
