"""Runnable programs built on seqkernels; each is started with `python -m examples.NAME` from the project's
root."""
