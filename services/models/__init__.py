"""The eight models of the paper as data (``spec``), as torch modules, and as ONNX files (``export``).

torch is imported here and nowhere else in the project, and here only when a model is built.
"""
