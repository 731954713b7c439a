"""Native code: the only importers of llama_cpp and onnxruntime. Foreign errors become ours here, once."""
