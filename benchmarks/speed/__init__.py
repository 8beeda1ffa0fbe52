"""Benchmarks of speed, compared with plain counterparts and the machine's peak."""
