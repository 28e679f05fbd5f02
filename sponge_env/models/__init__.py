"""The models that the real worker serves.

Read in this order: ``model.py`` (what a model is; an ONNX file as a model), ``registry.py`` (from
a name to a model), ``efficientnet.py`` and ``ocr.py`` (those that are known by name), and
``images.py`` (what they are shown).

A replica's process imports the modules of its models, under its CPU limit: ``model.py``,
``images.py`` and ``ocr.py`` import at their top no more than NumPy.
"""
