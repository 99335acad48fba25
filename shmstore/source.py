"""A source: one producer's ring as the writer sees it, with the account of what came out of it.

The source takes sealed slots in order, checks that none is missing, and gives their space back once they are
safe. It knows nothing of Arrow or HDF5.
"""

from __future__ import annotations

from collections import deque

from shmstore.accounting import Account, SourceStanding
from shmstore.assembly import Ticket
from shmstore.errors import BrokenError, StorageError
from shmstore.instruments import Follows
from shmstore.queue import DescriptorQueue
from shmstore.ring import Life, Ring, Run, Slot
from shmstore.session import Session
from shmstore.steps import step

#: A ring is crowded when more than this share of it is in use.
_CROWDED_SHARE = 4
#: Most slots taken at once, and the share of the ring that they may fill: its space comes free at once, too.
_LONGEST_RUN, _RUN_SHARE = 1024, 16
#: How far is looked ahead at first; further with success, since to count slots takes time too.
_FIRST_REACH = 16
#: After slots that looked alike and were not, so many at most are taken before others are looked at.
_LONGEST_PAUSE = 64


class Source:
    """One ring and its queue, on the writer's side.

    Parameters
    ----------
    session
        The recording's session.
    number
        The ring's number.
    instrument_id
        What it feeds.
    standing
        What another writer committed of it.

    Attributes
    ----------
    follows : dict of int to Follows
        What its slots may follow, by the number of their schema.
    account : Account
        Its counts.
    """

    def __init__(
        self, session: Session, number: int, instrument_id: str, standing: SourceStanding | None = None
    ) -> None:
        self.instrument_id = instrument_id
        self.number = number
        self.ring = Ring.attach(session.ring_path(number), private=session.private)
        if self.ring.number != number:
            self.ring.close()
            raise BrokenError(f"ring {number} claims to be ring {self.ring.number}")
        try:
            self.queue = DescriptorQueue.attach(session.queue_path(number))
        except StorageError:
            self.ring.close()
            raise
        self.follows: dict[int, Follows] = {}
        self.account = Account(instrument_id, number)
        self._dropped_by_abort = 0
        self._broken = False
        self._held: deque[tuple[Slot | Run, Ticket | None]] = deque()
        self._covered = 0  # of what is held
        self._settled = 0  # of them, from the first on, have a ticket that says when it is due
        self._ripe = 0
        self._largest_slot = 0
        self._reach, self._pause, self._vain = _FIRST_REACH, 0, 0
        if standing is not None:
            try:
                self._go_on(standing)
            except BrokenError:
                self.queue.close()
                self.ring.close()
                raise

    def _go_on(self, standing: SourceStanding) -> None:
        self.account = Account.of(self.instrument_id, self.number, standing)
        # Of what was committed, some may not have been given back any more.
        self.ring.pass_over(standing.slots)
        if self.ring.waiting:
            self.queue.announce_space()

    @property
    def standing(self) -> SourceStanding:
        """What the last commit covers."""
        account = self.account
        return SourceStanding(account.committed_slots, account.committed, account.quarantined)

    def take(self) -> Slot | None:
        """Borrow the next slot; ``None`` if there is none.

        Raises
        ------
        BrokenError
            The ring is damaged, or a slot is missing.
        """
        if self._broken:
            return None
        final = self.ring.taken_at_end()
        if final is not None and self.account.taken_slots >= final:
            return None  # a writer that ended before this one was done has said so to the producer
        used = self.ring.used
        slot = self.ring.borrow()
        if slot is None:
            if self.ring.used < used and self.ring.waiting:
                self.queue.announce_space()  # only a pad was there: its space may be waited for
            return None
        self._count_taken(slot)
        return slot

    def _count_taken(self, slot: Slot | Run) -> None:
        account = self.account
        if slot.sequence != account.taken_slots or slot.row_start != account.taken:
            raise BrokenError(
                f"ring {self.number} of {self.instrument_id!r} skips from batch {account.taken_slots} "
                f"to {slot.sequence}"
            )
        account.taken_slots += slot.slots
        account.taken += slot.rows

    def look_ahead(self) -> Run | None:
        """Look at the next slots, if some are alike; takes none of them. Say then how many `take_run` takes.

        Raises
        ------
        BrokenError
            The ring is damaged.
        """
        if self._pause:
            self._pause -= 1
            return None
        if self._broken or self.ring.taken_at_end() is not None:
            return None
        return self.ring.look_ahead(self._longest_run, self.ring.capacity // _RUN_SHARE)

    def _longest_run(self, schema_id: int, rows: int) -> int:
        follows = self.follows.get(schema_id)
        return min(self._reach, follows.instrument.longest_run(rows)) if follows else 0

    def take_run(self, run: Run, slots: int) -> Run | None:
        """Borrow the first ``slots`` slots of those that were looked at; 0: none can be taken together.

        Raises
        ------
        BrokenError
            A slot before them is missing.
        """
        if not slots:
            self._vain = min(2 * self._vain + 1, _LONGEST_PAUSE)
            self._pause, self._reach = self._vain, _FIRST_REACH
            return None
        self._vain = 0
        self._reach = min((4 if slots == run.slots else 2) * slots, _LONGEST_RUN)
        run = run.first(slots)
        self.ring.borrow_run(run)
        self._count_taken(run)
        return run

    def give_up(self) -> int:
        """Take nothing more: what the ring holds cannot be told from rubbish. Returns the rows lost."""
        self._broken = True
        return self.settle_account().lost

    def hold(self, slot: Slot | Run, ticket: Ticket | None) -> None:
        """Keep a slot borrowed until its ticket is due; ``None``: it was quarantined and is due at once."""
        self._held.append((slot, ticket))
        self._largest_slot = max(self._largest_slot, (slot.end - slot.position) // slot.slots)

    def ripen(self) -> None:
        """A commit begins: what was distributed by now may be covered by it, and nothing later.

        Rows that wait for their instrument's datasets may be distributed before the commit ends, but are not
        in what it says of the instrument.
        """
        held = self._held
        while self._settled < len(held) and _is_settled(held[self._settled][1]):
            self._settled += 1
        last = held[self._settled - 1][0] if self._settled else None
        self._ripe = self.account.committed_slots if last is None else last.sequence + last.slots

    def cover(self, chunks_written: int) -> None:
        """Count, in order, the slots that a commit covers."""
        account = self.account
        while self._covered < len(self._held):
            slot, ticket = self._held[self._covered]
            if slot.sequence >= self._ripe:
                break
            if ticket is not None and (ticket.chunks is None or ticket.chunks > chunks_written):
                break
            if ticket is not None:
                account.committed += slot.rows
            else:
                account.quarantined += slot.rows
            account.committed_slots += slot.slots
            self._covered += 1

    def release(self) -> int:
        """Give back, in order, the slots that a commit covers; returns how many bytes came free."""
        freed = 0
        while self._covered:
            slot, _ = self._held[0]
            try:
                self.ring.release(slot)
            except BufferError:
                break  # an array over it is still alive somewhere: it is free when that has gone
            self._held.popleft()
            self._covered -= 1
            self._settled -= 1
            freed += slot.end - slot.position
            step("writer.slot_released")
        if freed and self.ring.waiting:
            self.queue.announce_space()
        return freed

    @property
    def releasable(self) -> bool:
        """Whether a commit may give back some of what is held.

        Rows that wait for their instrument's datasets can wait on, unless their space is needed.
        """
        return bool(self._held) and (_is_settled(self._held[0][1]) or self.crowded)

    @property
    def crowded(self) -> bool:
        """Whether the producer waits for space, or soon may."""
        return self.ring.waiting or self.ring.used > self.ring.capacity // _CROWDED_SHARE

    @property
    def fill(self) -> float:
        """How full the ring is, from 0 to 1; 1 if the producer waits for space."""
        return 1.0 if self.ring.waiting else self.ring.used / self.ring.capacity

    @property
    def portion_bytes(self) -> int:
        """How much should be written before a crowded ring gets space.

        Each portion costs a commit; but a producer that waits until half the ring is free has nothing to do
        meanwhile if its batches are a large part of it.
        """
        capacity = self.ring.capacity
        return max(capacity // 4, capacity // 2 - self._largest_slot)

    @property
    def next_ticket(self) -> int:
        """Chunks that must be written before a commit can cover the next slot; 0: as far as is known none."""
        _, ticket = self._held[self._covered] if self._covered < len(self._held) else (None, None)
        return ticket.chunks or 0 if ticket is not None else 0

    @property
    def stuck(self) -> bool:
        """Whether a commit covers slots that could not be given back: an array still looks at the first."""
        return self._covered > 0

    @property
    def idle(self) -> bool:
        """Whether everything sealed was taken and given back."""
        return not self._held and (self._broken or not self.ring.has_sealed())

    @property
    def ended(self) -> bool:
        """Whether its producer has ended, by its own word or because it died."""
        try:
            life = self.ring.life
        except BrokenError:  # its word is damaged: the kernel's is enough
            life = Life.ATTACHED
        if life >= Life.CLOSED:
            return True
        # Whoever sealed a slot was attached, whatever its word says.
        attached = life == Life.ATTACHED or self.ring.has_sealed()
        return attached and not self.ring.producer_lives

    def settle_account(self) -> Account:
        """Read the producer's own counts and return the account."""
        account = self.account
        account.dropped = self.ring.dropped_rows + self._dropped_by_abort
        account.rejected = self.ring.rejected_rows
        if (
            self._broken
        ):  # what was sealed since it was given up is lost too, whether the producer lives or not
            account.lost = max(0, self.ring.sealed_rows - account.taken)
        return account

    def close_account(self, *, aborted: bool) -> None:
        """Count what was sealed and never taken as lost, unless a producer that has not ended can be told.

        An abort throws such rows away on purpose: they count as dropped.
        """
        # Asked first: the counts of one that is gone, or says that it has ended, are its last.
        ended = self.ended or not self.ring.producer_lives
        left = max(0, self.ring.sealed_rows - self.account.taken)
        if self._broken:
            return
        if aborted:
            self._dropped_by_abort = left
        elif ended:
            self.account.lost = left

    def close(self) -> None:
        """Let go of the ring, with what is still held of it, and of the queue, and remove their names."""
        self._held.clear()
        self._covered = self._settled = 0
        self.queue.close()
        # The ring first: one with half a queue, should the writer be killed in here, could not be read.
        self.ring.segment.unlink()
        self.queue.unlink()
        self.ring.close()


def _is_settled(ticket: Ticket | None) -> bool:
    return ticket is None or ticket.chunks is not None
