#!/usr/bin/env python3
"""Opens what `fulmen export` wrote with the package safetensors and compares it, bit by bit, with the checkpoint through h5py.

  pip install numpy h5py safetensors
  scripts/check_export.py EXPORTED_FOLDER CHECKPOINT
"""
import glob
import json
import sys

import h5py
import numpy
from safetensors.numpy import load_file


def main(folder, checkpoint):
    files = sorted(glob.glob(folder + "/*.safetensors"))
    with open(folder + "/config.json", encoding="utf-8") as file:
        config = json.load(file)
    tensors = {}
    for file in files:
        tensors.update(load_file(file))
    parameters = h5py.File(checkpoint + "/parameters.h5")["parameters"]
    different = set(tensors) ^ (set(parameters) | {"lm_head.weight"})
    if different:
        sys.exit(f"only on one side: {sorted(different)}")
    for name in tensors:
        stored = parameters["model.embed_tokens.weight" if name == "lm_head.weight" else name]
        if tensors[name].dtype != stored.dtype or not numpy.array_equal(tensors[name], stored[()]):
            sys.exit(f"{name} differs")
    print(f"{folder}: {len(tensors)} tensors in {len(files)} file(s), equal to the checkpoint's; "
          f"layers {config['decoder_layers']}, vocabulary {config['vocab_size']}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
