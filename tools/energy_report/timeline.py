"""Power over time, with phases shaded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tools.energy_report.figures import panels_of, phase_colour, svg
from tools.energy_report.samples import PAUSE_S, Samples

Floats = npt.NDArray[np.float64]

MOST_POINTS = 3000  # Of a line; beyond, the band from lowest to highest is drawn with the mean.


def power(samples: Samples) -> str:
    """Draw power over time, with phases shaded."""
    figure, (axis,) = panels_of(1, 3.4)
    seen: set[str] = set()
    for span in samples.spans():
        name = span["phase"]
        axis.axvspan(
            span["begin_s"],
            span["begin_s"] + span["duration_s"],
            color=phase_colour(name),
            alpha=0.3,
            linewidth=0,
            label=None if name in seen else name,
        )
        seen.add(name)
    t_s, power_w = samples.t_s - samples.t_s[0], samples.power_w
    low_w, mean_w = power_w, power_w
    if len(t_s) > MOST_POINTS:
        t_s, low_w, mean_w, high_w = binned(t_s, power_w)
        axis.fill_between(
            t_s, low_w, high_w, color="#0072B2", alpha=0.4, linewidth=0, label="lowest to highest"
        )
    pause = np.flatnonzero(np.diff(t_s) > PAUSE_S) + 1  # A line there would be made up.
    axis.plot(
        np.insert(t_s, pause, np.nan),
        np.insert(mean_w, pause, np.nan),
        color="black",
        linewidth=0.8,
        drawstyle="steps-pre" if samples.quantity == "energy" else "default",
    )
    axis.set(xlabel="seconds since the first sample", ylabel=f"watts, {samples.scope}", title=samples.source)
    axis.set_ylim(bottom=min(0.0, float(np.nanmin(low_w, initial=0.0))))
    figure.legend(*axis.get_legend_handles_labels(), fontsize=8, ncols=8, loc="outside lower center")
    return svg(figure, f"power-{samples.name}")


def binned(t_s: Floats, power_w: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Return times, and the lowest, mean and highest power, of stretches with as many samples each."""
    parts = [part[~np.isnan(power_w[part])] for part in np.array_split(np.arange(len(t_s)), MOST_POINTS // 2)]
    known = [part for part in parts if len(part)]
    return (
        np.array([t_s[part].mean() for part in known]),
        np.array([power_w[part].min() for part in known]),
        np.array([power_w[part].mean() for part in known]),
        np.array([power_w[part].max() for part in known]),
    )
