"""What the producer processes of the tests do. Their children import this module, so it imports little."""

from __future__ import annotations

from multiprocessing.connection import Connection

from processes.rows import batch, sizes

from shmstore.producer import Producer


def feed(number: int, producers: list[Producer], batches: int, line: Connection) -> None:
    """Put all batches of one producer process into each of its instruments; pause halfway."""
    plan = [sizes(number, instrument, batches) for instrument in range(len(producers))]
    for sequence in range(batches):
        if sequence == batches // 2:
            line.send("half")
            line.recv()
        for producer, rows in zip(producers, plan, strict=True):
            producer.put(batch(number, sequence, int(rows[sequence])))
    for producer in producers:
        producer.close()
    line.send("done")
