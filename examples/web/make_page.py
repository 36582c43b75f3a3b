"""Put a package's model, some images and a page that classifies them into a folder to serve.

python examples/web/make_page.py build/digits/package build/digits/held-out.npz --output build/web

The folder has to hold onnxruntime-web: npm install --prefix build/web onnxruntime-web@1.30
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
COUNT = 12


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a page that runs a package in a browser.")
    parser.add_argument("package", type=Path, help="package whose only input is images")
    parser.add_argument("images", type=Path, help="npz file with `images` [N, 1, height, width]")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(options.package / "model.onnx", options.output / "model.onnx")
    shutil.copyfile(HERE / "index.html", options.output / "index.html")
    images = np.load(options.images)["images"][:COUNT].astype(np.float32)
    content = {"shape": images.shape, "pixels": images.ravel().tolist()}
    (options.output / "images.json").write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
