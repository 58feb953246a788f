"""`python -m imagen_nodes`, or `python FOLDER` with a checkout's folder: the command line."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

if __package__:
    from .cli.main import main
else:  # run by the folder's name, which may be any
    spec = spec_from_file_location("imagen_nodes", Path(__file__).with_name("__init__.py"))
    assert spec and spec.loader
    package = sys.modules["imagen_nodes"] = module_from_spec(spec)
    spec.loader.exec_module(package)
    from imagen_nodes.cli.main import main

sys.exit(main())
