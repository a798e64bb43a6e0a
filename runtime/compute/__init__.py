"""What computes a bundle's graphs: onnxruntime or TensorRT, which graphs are open, and in how much memory."""
