"""Time from the click on "Audit" to the verdict in napari, on MNI152 with the widget's defaults.

    xvfb-run -a python benchmarks/napari_verdict.py [--screenshot docs/napari.png]

The same audit without napari, in the same process, is the reference. Each is run twice, in turns, and the second round is
reported: the first pays for imports and the cache of the disk.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

import evenslice
from evenslice.neutralizing import load_network
from evenslice.volumes import mni152

if TYPE_CHECKING:
    from collections.abc import Callable

SPEC = "smp:Unet/tu-tf_efficientnet_lite0"


def wait(application: Any, until: Callable[[], Any]) -> float:
    """Let Qt work until a condition holds; return the seconds that took."""
    began = time.perf_counter()
    while not until():
        application.processEvents()
        time.sleep(0.005)
    return time.perf_counter() - began


def alone() -> float:
    """Audit without napari; return the seconds that took, with loading the network."""
    began = time.perf_counter()
    evenslice.audit(
        load_network(SPEC, "imagenet", slices=3).model, mni152(), compute=evenslice.Compute(progress=False)
    )
    return time.perf_counter() - began


def main() -> None:
    """Measure, and take a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--screenshot", help="PNG file for a picture of the window")
    arguments = parser.parse_args()

    import napari
    from napari.qt import get_qapp

    application = get_qapp()
    viewer = napari.Viewer(show=True, show_welcome_screen=False)
    viewer.window.resize(1500, 940)
    viewer.open_sample("evenslice", "mni152")
    _, widget = viewer.window.add_plugin_dock_widget("evenslice", "Audit a network")
    viewer.dims.set_point(0, 95)
    for _ in range(2):
        direct = alone()
        widget.start.native.click()
        clicked = wait(application, lambda: widget.verdict.value)
        mapped = wait(application, lambda: not widget.busy)
        print(
            f"click to verdict {clicked:.1f} s, of which the audit {widget.audit.run.seconds:.1f} s; saliency of the slice "
            f"{mapped:.1f} s later; without napari {direct:.1f} s; ratio {clicked / direct:.2f}",
            flush=True,
        )
    print(widget.audit)
    if arguments.screenshot:
        until = time.perf_counter() + 1
        wait(application, lambda: time.perf_counter() > until)
        viewer.screenshot(arguments.screenshot, canvas_only=False, flash=False)
    viewer.close()


if __name__ == "__main__":
    main()
