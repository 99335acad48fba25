"""How fast a machine records: streams, recorders, limits and peers, and how a figure is taken.

Used by the cases in ``benchmarks/`` and by ``shmstore bench``. The core knows nothing of it.
"""
