"""The plugin for napari: audit a network on the open volume, and segment it, without leaving the viewer."""
