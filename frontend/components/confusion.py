"""The confusion matrix as a chart."""

from __future__ import annotations

import altair as alt
import pandas as pd


def confusion_chart(counts: pd.DataFrame) -> alt.LayerChart | alt.FacetChart:
    """Draw a row per true class and a column per predicted class, colored by the row's shares.

    Args:
        counts: Columns ``label``, ``predicted`` and ``photos``; pairs without photos may be left out.
    """
    counts = counts.assign(share=counts["photos"] / counts.groupby("label")["photos"].transform("sum"))
    x, y = alt.X("predicted:N", title="predicted class"), alt.Y("label:N", title="true class")
    base = alt.Chart(counts).encode(x, y, tooltip=list(counts.columns))
    scale = alt.Scale(domain=[0, 1], scheme="blues")  # the same in both themes, as the colors of the numbers are
    cells = base.mark_rect().encode(color=alt.Color("share:Q", scale=scale, legend=None))
    text_color = alt.condition("datum.share > 0.5", alt.value("white"), alt.value("black"))
    return alt.layer(cells, base.mark_text().encode(text="photos:Q", color=text_color))
