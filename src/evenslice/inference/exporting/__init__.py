"""Trained networks handed on to other programs: ONNX files, bioimage.io models and folders for Hugging Face."""
