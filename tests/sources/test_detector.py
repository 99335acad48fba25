"""The simulated detector: its light is where it says, and its noise where there is none."""

from __future__ import annotations

import numpy as np

from shmstore.sources.detector import BACKGROUND, HEIGHT, WIDTH, Simulation, beam


def test_the_spot_is_where_the_beam_is() -> None:
    simulation = Simulation(seed=3)
    frame = np.zeros((HEIGHT, WIDTH), np.uint16)
    for at_s in np.linspace(0.0, 20.0, 50):
        simulation.expose(frame, float(at_s))
        row, column, intensity = beam(float(at_s))
        light = frame.astype(float) - BACKGROUND
        light[light < 60] = 0
        found = (
            np.array([light.sum(axis=1) @ np.arange(HEIGHT), light.sum(axis=0) @ np.arange(WIDTH)])
            / light.sum()
        )
        assert np.abs(found - (row, column)).max() < 1.0
        assert 0 < intensity <= 1


def test_the_rest_is_background() -> None:
    frame = np.zeros((HEIGHT, WIDTH), np.uint16)
    Simulation(seed=3).expose(frame, 0.0)  # the spot is in the middle
    corner = frame[:40, :40].astype(float)
    assert abs(corner.mean() - BACKGROUND) < 0.5
    assert abs(corner.var() - BACKGROUND) < 2


def test_the_same_seed_gives_the_same_frames() -> None:
    frames = []
    for seed in (1, 1, 2):
        frame = np.zeros((HEIGHT, WIDTH), np.uint16)
        Simulation(seed).expose(frame, 1.0)
        frames.append(frame)
    assert np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[0], frames[2])
