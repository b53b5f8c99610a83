#!/bin/sh
# Installs a requirements file with torch's CPU build. On Linux the default index has the CUDA build of several GB.
#
#   scripts/install.sh PYTHON REQUIREMENTS
#
# pip asks the index TORCH_INDEX_URL for torch first. Set it to an empty value to get the default index's build.
set -eu
export PIP_DISABLE_PIP_VERSION_CHECK=1
python=$1
requirements=$2
index=${TORCH_INDEX_URL-https://download.pytorch.org/whl/cpu}
torch=$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' "$(dirname "$0")/../requirements.txt")

if [ -n "$index" ] && [ -n "$torch" ] && [ "$(uname -s)" = Linux ]; then
    # Without torch's dependencies. They come from the default index with all other packages.
    if ! output=$("$python" -m pip install --quiet --no-deps --retries 1 --timeout 20 --index-url "$index" "$torch" 2>&1); then
        case $output in
            # The index lacks torch, cannot be reached, or broke off. Any other failure would occur with another index as well.
            *"No matching distribution"* | *"HTTP error"* | *ConnectionPool*)
                echo "$index did not provide $torch; installing the default index's build" >&2 ;;
            *)
                echo "$output" >&2
                exit 1 ;;
        esac
    fi
fi
"$python" -m pip install --quiet -r "$requirements"
