"""The picture of a demo: what was recorded, read back from the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from shmstore.pictures import COLOURS, drawing

if TYPE_CHECKING:
    from shmstore.reader import Instrument, Recording

#: The kernel counts processor time in steps of 10 ms: over less than this, utilisation is noise.
_WINDOW_S = 0.25
_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")
_IDLE = ("idle", "iowait")
_MIB = 2**20


def draw(path: Path, picture: Path) -> Path:
    """Draw what a demo recorded.

    Parameters
    ----------
    path
        The recording.
    picture
        The PNG to write; replaced if it is there.

    Returns
    -------
    Path
        The picture.

    Raises
    ------
    StorageError
        It cannot be written.
    """
    import shmstore
    from shmstore.errors import storage_error

    with drawing() as pyplot, shmstore.open(path) as recording:
        figure = pyplot.figure(figsize=(13, 7.6), layout="constrained")
        try:
            grid = figure.add_gridspec(3, 2, width_ratios=(1.25, 1))
            start_s = _seconds(recording["cpu"].read(columns=["time"], stop=1)["time"])[:1].sum()
            left = [figure.add_subplot(grid[row, 0]) for row in range(3)]
            for axes in left[1:]:
                axes.sharex(left[0])
            _draw_processors(left[0], recording["cpu"], start_s)
            _draw_memory(left[1], recording["memory"], start_s)
            _draw_network(left[2], recording["network"], start_s)
            left[2].set_xlabel("seconds since the start")
            _draw_detector(
                figure.add_subplot(grid[:2, 1]),
                figure.add_subplot(grid[2, 1]),
                recording["detector"],
                start_s,
            )
            figure.suptitle(_title(recording), x=0.01, ha="left", fontsize=11)
            figure.savefig(picture, dpi=110)
        except OSError as error:
            raise storage_error(error, "write the picture", picture) from None
    return picture


def _title(recording: Recording) -> str:
    rows = sum(recording[name].num_rows for name in recording)
    size = recording.path.stat().st_size / 1e6
    counts = f"{len(recording)} instruments, {rows:,} rows, {size:,.1f} MB"
    return f"{recording.path.name}   {counts}, {recording.state}"


def _draw_processors(axes: Any, cpu: Instrument, start_s: float) -> None:
    table = cpu.read()
    present = [state for state in (*_BUSY, *_IDLE) if state in table.column_names]
    states = {state: _matrix(table[state]) for state in present}
    time_s = _seconds(table["time"]) - start_s
    picked = _every(time_s, _WINDOW_S)
    if len(picked) > 1:
        busy = np.diff(sum(states[name][picked] for name in present if name in _BUSY), axis=0)
        idle = np.diff(sum(states[name][picked] for name in present if name in _IDLE), axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = 100 * busy / (busy + idle)
        middle_s = (time_s[picked][1:] + time_s[picked][:-1]) / 2
        axes.plot(middle_s, share, color=COLOURS[0], alpha=max(0.15, 0.7 / share.shape[1] ** 0.5), lw=0.9)
        axes.plot(middle_s, np.nanmean(share, axis=1), color=COLOURS[0], lw=2, label="mean of the cores")
        axes.legend(loc="upper right", frameon=False)
    axes.set(title=f"cpu: utilisation of {states[present[0]].shape[1]} cores", ylabel="%", ylim=(0, 105))


def _draw_memory(axes: Any, memory: Instrument, start_s: float) -> None:
    table = memory.read()
    time_s = _seconds(table["time"]) - start_s
    for column, colour in (("used", COLOURS[1]), ("cached", COLOURS[2])):
        if column in table.column_names:
            axes.plot(time_s, table[column].to_numpy() / _MIB, color=colour, lw=1.6, label=column)
    axes.legend(loc="center right", frameon=False)
    axes.set(title="memory", ylabel="MiB", ylim=(0, axes.get_ylim()[1] * 1.1))


def _draw_network(axes: Any, network: Instrument, start_s: float) -> None:
    table = network.read()
    if table.num_rows:
        time_s = _seconds(table["time"])
        moments, first = np.unique(time_s, return_index=True)
        for column, colour in (("bytes_recv", COLOURS[2]), ("bytes_sent", COLOURS[3])):
            total = np.add.reduceat(table[column].to_numpy(), first)
            picked = _every(moments, _WINDOW_S)
            if len(picked) > 1:
                at_s = moments[picked] - start_s
                rate = np.diff(total[picked]) / np.diff(at_s) / 1e3
                axes.step(at_s[1:], rate, where="pre", color=colour, lw=1.4, label=column.replace("_", " "))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper right", frameon=False)
    axes.set(title="network: all interfaces", ylabel="kB/s", ylim=(0, max(1.0, axes.get_ylim()[1])))


def _draw_detector(image: Any, trace: Any, detector: Instrument, start_s: float) -> None:
    from matplotlib.colors import PowerNorm

    times, sums, last = [], [], None
    for time_s, frames in _frames(detector):
        times.append(time_s)
        sums.append(frames.sum(axis=(1, 2), dtype=np.uint64))
        last = frames[-1]
    image.grid(visible=False)
    if last is not None:
        # A square root shows the photon noise of the dark as wide as that of the light.
        shown = image.imshow(last, cmap="inferno", interpolation="nearest", norm=PowerNorm(0.5, vmin=0))
        image.figure.colorbar(shown, ax=image, label="counts", shrink=0.85)
        trace.plot(np.concatenate(times) - start_s, np.concatenate(sums) / 1e3, color=COLOURS[1], lw=1.2)
    image.set(title=f"detector: frame {detector.num_rows - 1:,}", xlabel="column", ylabel="row")
    trace.set(title="detector: sum of each frame", xlabel="seconds since the start", ylabel="10³ counts")


def _frames(detector: Instrument) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield times (rows,) and frames (rows, height, width), batch by batch."""
    for batch in detector.iter_batches(columns=["time", "frame"]):
        if batch.num_rows:
            yield _seconds(batch.column(0)), batch.column(1).to_numpy_ndarray()


def _seconds(times: Any) -> np.ndarray:
    ticks: np.ndarray = np.asarray(times.cast(pa.int64()))
    return ticks / 1e9


def _matrix(column: Any) -> np.ndarray:
    """Return a column of fixed-size lists as (rows, items)."""
    size = column.type.list_size
    return np.concatenate([np.empty((0, size)), *(_items(chunk, size) for chunk in column.chunks)])


def _items(chunk: Any, size: int) -> np.ndarray:
    items: np.ndarray = chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
    return items


def _every(time_s: np.ndarray, step_s: float) -> np.ndarray:
    """Return the positions of the first moment in each step."""
    if not len(time_s):
        return np.empty(0, dtype=int)
    _, first = np.unique(np.floor((time_s - time_s[0]) / step_s), return_index=True)
    return first
