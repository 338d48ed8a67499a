"""Images in, betons out, and loaders over them.

Importing this package loads neither torch, FFCV nor scikit-learn: a worker's start is waited for.
"""
