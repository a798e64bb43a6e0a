"""From a torch pipeline to a bundle that needs no torch: graphs, tokenizer and manifest (docs/graph.md)."""

from perfusion.export.bundle import PRECISIONS, STAGES, Exported, export_bundle

__all__ = ["PRECISIONS", "STAGES", "Exported", "export_bundle"]
