"""How ``make docs`` makes the site: Sphinx reads the Markdown pages (MyST) and the docstrings. No network, no web font."""

from eunoe import __version__
from eunoe.recipe import ranges

project = "eunoe"
copyright = "the authors of eunoe, Apache-2.0"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "eunoe"
html_show_sphinx = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # as on GitHub, where the same pages are read

add_module_names = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_type_aliases = {
    name: name for name in vars(ranges) if name[0].isupper()
}  # `Count`, not what pydantic makes of it
