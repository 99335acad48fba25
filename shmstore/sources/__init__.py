"""What can be recorded without a program of one's own: this machine, a simulated detector, files.

A source fills producers or yields batches. It knows no terminal and no HDF5.
"""
