"""Corrects the scripts of the virtual environment that runs this program, after its folder was renamed or copied.

A script names its Python by path. After a move that path does not exist; after a copy it is the other folder's Python.
"""

import os
import re
import sys
import venv
from pathlib import Path

# The beginning of a script. If the path is long or contains a space, pip writes three lines, which a shell reads first.
HEAD = re.compile(rb"#!(?:/bin/sh\n'''exec' )?\"?(/[^\n]*?)/bin/python[^\n]*\n(?:' '''\n)?")

prefix = os.path.realpath(sys.prefix)
folder = prefix.encode()
scripts = {
    path: head
    for path in Path(prefix, "bin").iterdir()
    if path.is_file() and not path.is_symlink() and (head := HEAD.match(path.read_bytes()))
}
# pip's own script names the environment's former folder. A script that names another folder is the user's own.
pip = scripts.get(Path(prefix, "bin", "pip"))
if pip and pip[1] != folder:
    print(f"{prefix}: correcting its scripts, which are for {pip[1].decode()}", file=sys.stderr)
    for path, head in scripts.items():
        if head[1] == pip[1]:
            rest = path.read_bytes()[head.end() :]
            path.write_bytes(b"#!/bin/sh\n'''exec' \"%s/bin/python\" \"$0\" \"$@\"\n' '''\n%s" % (folder, rest))
    # bin/activate and its variants for other shells.
    builder = venv.EnvBuilder()
    builder.setup_scripts(builder.ensure_directories(prefix))
