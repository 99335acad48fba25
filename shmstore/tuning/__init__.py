"""Which settings suit a user's own data, disk and rate: measured, chosen, explained, checked.

Two stages: codecs alone on the data's chunks, then real recordings of those that are worth it. This package
knows no terminal: `shmstore.cli.tune` shows what it finds.
"""
