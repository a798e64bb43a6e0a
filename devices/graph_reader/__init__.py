"""An .onnx file read without the onnx package: its nodes, and the shape of every value for one request."""
