#!/bin/sh
# Makes a virtual environment with the packages of a requirements file, or repairs an existing one.
#
#   scripts/environment.sh PYTHON FOLDER REQUIREMENTS
#
# The stamp FOLDER/bin/.installed records what was installed, and where. If the stamp is right, this script ends at once
# and asks no package index. Every step may be repeated: if a step is interrupted, the next call repairs it. PYTHON
# makes a new environment. An existing environment does not need PYTHON.
set -eu
base=$1
folder=$2
requirements=$3
python=$folder/bin/python
scripts=$(dirname "$0")
name=$(basename "$requirements" .txt)
stamp=$folder/bin/.installed${name#requirements}

fail() {
    echo "$1" >&2
    exit 1
}

# Prints the environment's folder of packages. Its name contains the version of Python.
packages() { "$python" -I -c 'import os, sysconfig; print(os.path.realpath(sysconfig.get_path("purelib")))'; }

# Prints the contents of a right stamp: the folder of packages, the requirements file, and the files that it includes.
state() {
    packages && cat "$requirements" $(sed -n "s|^-r *|$(dirname "$requirements")/|p" "$requirements")
}

# Succeeds if the environment's Python runs, belongs to this folder, and has the version that the packages are for.
python_is_right() {
    "$python" -I -c '
import os, sys, sysconfig
is_own = sys.prefix != sys.base_prefix and os.path.samefile(sys.prefix, sys.argv[1])
sys.exit(not is_own or not os.path.isdir(sysconfig.get_path("purelib")))' "$folder" 2>/dev/null
}

is_recent() { "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

if [ -e "$stamp" ] && found=$(state 2>/dev/null) && [ "$found" = "$(cat "$stamp")" ]; then
    exit
fi

if ! python_is_right; then
    is_recent "$base" || fail "Python 3.11 or newer is needed, and $base is not: name one, as in make PYTHON=python3.11 run"
    if [ -e "$folder/pyvenv.cfg" ] || [ -e "$folder/bin/.installed" ]; then
        echo "$folder: its Python is gone or of another version; making the environment anew" >&2
        # Keeps pyvenv.cfg until it is overwritten, so that an interrupted removal still leaves an environment.
        find "$folder/" -mindepth 1 -maxdepth 1 ! -name pyvenv.cfg -exec rm -rf {} +
    elif [ -n "$(ls -A "$folder" 2>/dev/null)" ]; then
        fail "$folder is not a virtual environment and stays as it is: name another folder, as in make VENV=.venv run"
    fi
    "$base" -m venv --without-pip "$folder"
fi
is_recent "$python" || fail "$folder has a Python older than 3.11: make clean removes it, then make PYTHON=python3.11 run"

rm -f "$folder"/bin/.installed*
# pip writes a package's RECORD last. It considers a package without RECORD installed, although its scripts may be missing.
# A name that begins with ~ is a package that pip was about to replace.
find "$(packages)" -maxdepth 1 \( -name '~*' -o -name '*.dist-info' ! -exec test -e '{}/RECORD' \; \) -exec rm -rf {} +
if [ ! -e "$folder/bin/pip" ] || ! "$python" -m pip --version >/dev/null 2>&1; then
    "$python" -c 'import ensurepip' 2>/dev/null ||
        fail "$folder has no pip, since its Python has no ensurepip: install that (python3-venv on Debian), then try again"
    "$python" -m ensurepip --upgrade --default-pip >/dev/null
fi
"$python" -I "$scripts/relocate.py"
echo "installing $requirements into $folder" >&2
"$scripts/install.sh" "$python" "$requirements"
state >"$stamp"
