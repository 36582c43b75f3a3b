"""Write the first images of an npz file as plain float32 numbers, which `classify` reads.

python examples/cpp/write_images.py build/digits/held-out.npz build/images.f32
"""

import sys

import numpy as np

COUNT = 3

if __name__ == "__main__":
    source, target = sys.argv[1:]
    np.load(source)["images"][:COUNT].astype(np.float32).tofile(target)
