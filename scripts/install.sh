#!/bin/sh
# Installs a requirements file with torch's CPU build: on Linux the default index's torch is the CUDA build of several GB.
#
#   scripts/install.sh PYTHON REQUIREMENTS
#
# TORCH_INDEX_URL names the index to ask for torch first; set it to nothing for the default index's own build.
set -eu
export PIP_DISABLE_PIP_VERSION_CHECK=1
python=$1
requirements=$2
index=${TORCH_INDEX_URL-https://download.pytorch.org/whl/cpu}
torch=$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' "$(dirname "$0")/../requirements.txt")

if [ -n "$index" ] && [ -n "$torch" ] && [ "$(uname -s)" = Linux ]; then
    # Without its dependencies: those come from the default index with everything else.
    if ! said=$("$python" -m pip install --quiet --no-deps --retries 1 --timeout 20 --index-url "$index" "$torch" 2>&1); then
        case $said in
            # It lacks torch, cannot be reached, or broke off. Any other failure would meet another index, too.
            *"No matching distribution"* | *"HTTP error"* | *ConnectionPool*)
                echo "$index did not give $torch; taking the default index's build" >&2 ;;
            *)
                echo "$said" >&2
                exit 1 ;;
        esac
    fi
fi
"$python" -m pip install --quiet -r "$requirements"
