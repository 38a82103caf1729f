"""How Sphinx builds the documentation site: ``make docs`` writes it to ``docs/_build/html``."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "evenslice"
author = "The evenslice developers"
copyright = author  # noqa: A001  # the name that Sphinx asks for
release = version_of("evenslice")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_copybutton",
    "evenslice_reference",
]
exclude_patterns = ["_build", "_ext"]
templates_path = ["_templates"]

# Missing documents, images and labels are always warnings; with `nitpicky`, so are names of evenslice that have no page.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!evenslice\.).*"),  # other projects: their inventories would need a network
    ("py:.*", r"evenslice\.(?!volumes\.)\w+\..*"),  # what only evenslice itself imports
    ("py:.*", r"evenslice\.volumes\.\w+\..*"),
]

# Markdown as GitHub shows it, with links to headings.
myst_enable_extensions = ["attrs_inline", "deflist"]
myst_heading_anchors = 4
suppress_warnings = ["myst-nb.lexer"]  # of notebooks that were not executed

# Tutorials are notebooks in Markdown, executed by the build: `-D nb_execution_mode=off` leaves their outputs out.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 240
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars and advice of other libraries

autosummary_generate = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
default_role = "code"  # as Markdown has it
add_module_names = False
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_title = "evenslice"
html_static_path = ["_static"]
html_css_files = ["evenslice.css"]
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "evenslice"},
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_prev_next": True,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "icon_links": [
        {"name": "Paper", "url": "https://arxiv.org/abs/2505.14105", "icon": "fa-solid fa-file-lines"},
    ],
}
html_sidebars: dict[str, list[str]] = {"index": [], "changelog": []}
copybutton_exclude = ".linenos, .gp, .go"
