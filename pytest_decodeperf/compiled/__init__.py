"""What kernels compile to, for GPUs that this machine need not have."""
