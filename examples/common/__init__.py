"""What the example programs share: text to ids, batches, training, checkpoints, plots, command line.

A program is a data module (its file format), a model module and a `__main__` that gives both to `train.fit`.
"""
