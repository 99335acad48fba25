"""Benchmarks: cases as data, peers in the same run. See README.md beside this file."""
