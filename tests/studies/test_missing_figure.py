"""The chart of what missing slices cost: its marks and intervals are those of the study."""

from pathlib import Path

import pytest
import scripts

from evenslice.report.style import settings

STUDIES = Path(__file__).parents[2] / "studies"


def test_each_arm_has_its_losses_with_their_intervals():
    with scripts.script("found_studies") as found, scripts.script("missing_figure") as script, settings():
        (study,) = [study for study in found.find_studies(STUDIES) if study.name == "price"]
        (pooled,) = [item for item in study.results.pooled if len(item.datasets) > 1]
        drawing = script.missing_figure(pooled)
        (axes,) = drawing.figure.axes
        assert [label.get_text() for label in axes.get_yticklabels()] == [arm.arm for arm in pooled.arms]
        for container, name in zip(axes.containers, script.LOSSES, strict=True):
            points, _, (lines,) = container
            losses = [arm.metrics[name] for arm in pooled.arms]
            assert points.get_xdata() == pytest.approx([loss.estimate for loss in losses])
            for segment, loss in zip(lines.get_segments(), losses, strict=True):
                assert segment[:, 0] == pytest.approx([loss.low, loss.high])
        assert all(name in drawing.reading for name in pooled.datasets)
        drawing.figure.draw_without_rendering()
        (legend,) = drawing.figure.legends
        assert legend.get_window_extent().y0 >= axes.get_window_extent().y1  # beside no marks
