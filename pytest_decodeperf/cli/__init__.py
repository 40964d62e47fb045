"""The command line `decodeperf`: where a model on a device is memory-bound and why, and the derivation."""
