"""Shared by the tests of the pooling room."""

import sys
from pathlib import Path

import torch

# The oracles stand beside the tests; the folder is no package.
sys.path.insert(0, str(Path(__file__).parent))

# The tests run beside others on few cores: more threads only wait for each other.
torch.set_num_threads(1)
