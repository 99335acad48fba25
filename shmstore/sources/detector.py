"""A simulated 2-D detector: a spot that wanders over noise, in frames written straight into the ring.

It stands for a camera with a frame grabber: the cost of a frame is one copy of a noise frame plus a small
patch, so that the simulation does not compete with the recording for the processor.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from shmstore.sources.acquisition import Station

if TYPE_CHECKING:
    from shmstore.producer import Producer

HEIGHT = WIDTH = 256
#: Mean counts of a pixel without beam.
BACKGROUND = 12.0
#: Counts in the middle of the spot, at full intensity.
PEAK = 900.0
SPOT_SIGMA = 9.0  # pixels
_NOISE_FRAMES = 32
_PATCH = 33  # half the side of the patch around the spot, in pixels: 3.6 sigma
_ORBIT_S = (7.0, 4.3)  # periods of the wandering, vertical and horizontal
_REFILL_S = 3.0  # the beam decays, and is refilled this often
_LIFETIME_S = 6.0


def detector_station(rate_hz: float) -> Station:
    """Return the station of the detector.

    Parameters
    ----------
    rate_hz
        Frames a second; at 100 Hz the instrument makes 13 MB/s.
    """
    metadata = {
        "simulated": True,
        "rate_hz": float(rate_hz),
        "background_counts": BACKGROUND,
        "spot_sigma_pixels": SPOT_SIGMA,
    }
    return Station(
        "detector", rate_hz, {"detector": detector_schema()}, prepare_detector, {"detector": metadata}
    )


def detector_schema() -> pa.Schema:
    """Return one row per frame; frames have shape ``(256, 256)``, in counts."""
    return pa.schema(
        [
            pa.field("time", pa.timestamp("ns", tz="UTC"), nullable=False),
            pa.field("frame_number", pa.int64(), nullable=False),
            pa.field(
                "frame",
                pa.fixed_shape_tensor(pa.uint16(), (HEIGHT, WIDTH)),
                nullable=False,
                metadata={"units": "count"},
            ),
        ]
    )


def prepare_detector(producers: Mapping[str, Producer]) -> Callable[[], None]:
    """Return what reads out one frame, into a loan of one row."""
    detector = producers["detector"]
    simulation = Simulation(seed=1)
    start_s = time.monotonic()
    number = 0

    def read() -> None:
        nonlocal number
        with detector.loan(1) as loan:
            loan["time"][...] = np.datetime64(time.time_ns(), "ns")
            loan["frame_number"][...] = number
            simulation.expose(loan["frame"][0], time.monotonic() - start_s)
        number += 1

    return read


class Simulation:
    """The light on the detector, and its noise.

    Parameters
    ----------
    seed
        Of the noise; the same seed gives the same frames for the same calls.
    """

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._noise = self._random.poisson(BACKGROUND, (_NOISE_FRAMES, HEIGHT, WIDTH)).astype(np.uint16)
        self._exposed = 0

    def expose(self, frame: np.ndarray, at_s: float) -> None:
        """Fill ``frame``, uint16 of shape (256, 256), with what is seen ``at_s`` seconds after the start."""
        np.copyto(frame, self._noise[self._exposed % _NOISE_FRAMES])
        self._exposed += 1
        row, column, intensity = beam(at_s)
        top, left = int(row) - _PATCH, int(column) - _PATCH
        rows, columns = np.arange(top, top + 2 * _PATCH + 1), np.arange(left, left + 2 * _PATCH + 1)
        spot = np.outer(_profile(rows - row), _profile(columns - column)) * (PEAK * intensity)
        frame[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += self._random.poisson(spot).astype(
            np.uint16
        )


def beam(at_s: float) -> tuple[float, float, float]:
    """Return row and column of the spot's centre in pixels, and its intensity from 0 to 1."""
    reach = HEIGHT / 2 - _PATCH - 2  # the patch stays inside the frame
    row = HEIGHT / 2 + reach * math.sin(2 * math.pi * at_s / _ORBIT_S[0])
    column = WIDTH / 2 + reach * math.sin(2 * math.pi * at_s / _ORBIT_S[1])
    return row, column, math.exp(-(at_s % _REFILL_S) / _LIFETIME_S)


def _profile(distance: np.ndarray) -> np.ndarray:
    profile: np.ndarray = np.exp(-0.5 * (distance / SPOT_SIGMA) ** 2)
    return profile
