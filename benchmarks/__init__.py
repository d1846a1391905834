"""Benchmarks of seqkernels against torch.nn and ONNX Runtime: `make bench`, or `make bench QUICK=1` for three
minutes."""
