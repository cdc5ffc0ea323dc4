"""How Sphinx builds the documentation; `make docs` calls it."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import generate  # noqa: E402  # lies beside this file

from oncue import __version__  # noqa: E402

project = "OnCue"
author = "The OnCue authors"
project_copyright = "The OnCue authors, Apache-2.0"
version = release = __version__

extensions = ["myst_parser"]
exclude_patterns = ["_build", "_generated"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nitpicky = True

html_theme = "furo"
html_title = f"OnCue {version}"
html_copy_source = False
html_show_sphinx = False

generate.write_all(HERE / "_generated")
