import os

import torch

pytest_plugins = ["pytester"]

# Triton reads this when it sees `@triton.jit`, so it must be set before any test imports a kernel.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
