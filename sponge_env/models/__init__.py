"""The models that the real worker serves: first ``model.py``, then ``registry.py`` for their names.

A replica's process imports the modules of its models, under its CPU limit: ``model.py``,
``images.py`` and ``ocr.py`` import at their top no more than NumPy.
"""
