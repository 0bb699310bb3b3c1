"""How the figures of the READMEs look: a white card, which reads well on light and dark pages."""

import sys
from typing import Any

TEXT, MUTED, ACCENT = "#1f2328", "#59636e", "#c76a1e"
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "text.color": TEXT, "axes.labelcolor": TEXT, "axes.edgecolor": "#8c959f",
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e9ed", "xtick.color": MUTED,
    "ytick.color": MUTED, "legend.frameon": False, "svg.hashsalt": "loopmdm",
}  # fmt: skip


def new_figure() -> Any:
    """An empty figure for two panels side by side. Ends the program with advice if matplotlib is missing."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        sys.exit("error: matplotlib is not installed: pip install -c launchers/pins.txt matplotlib")
    mpl.use("Agg")
    mpl.rcParams.update(STYLE)
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(9.2, 3.7), facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.02, wspace=0.06, hspace=0, rect=(0.015, 0.03, 0.97, 0.94))
    return figure
