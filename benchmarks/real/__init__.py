"""A real pretrained ViT on real pictures, without training: what each way to pool loses.

`python -m benchmarks.real --help` says what it does; what it makes lies in a cache outside the
tree, and what it finds in `benchmarks/results/real-*`.
"""
