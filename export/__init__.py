"""From a torch pipeline to a bundle that needs no torch: graphs, tokenizer and manifest (docs/graph.md)."""

import os

# Before onnxruntime is imported: from 1.29 on it reports to its maker and keeps an identifier in the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from perfusion.export.exporter import PRECISIONS, STAGES, Exported, export_bundle

__all__ = ["PRECISIONS", "STAGES", "Exported", "export_bundle"]
