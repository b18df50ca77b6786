"""Benchmarks. They drive the service from outside; nothing of the service knows them."""
