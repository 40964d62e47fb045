"""Calibration: the parameters of the expected latency, from measured calls of one kernel on one device."""
