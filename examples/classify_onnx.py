"""Name what images show with a model from `edgetune export --format onnx` (or onnx-int8), without edgetune or torch.

pip install onnxruntime numpy pillow
python examples/classify_onnx.py model.onnx photo.jpg another.png
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
facts = session.get_modelmeta().custom_metadata_map
side, classes = int(facts["image_size"]), json.loads(facts["classes"])
mean, deviation = (np.array(json.loads(facts[name]), np.float32) for name in ("mean", "std"))
for path in sys.argv[2:]:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    width, height = (int(side * length / min(image.size)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, upper = round((width - side) / 2), round((height - side) / 2)
    pixels = np.asarray(image.crop((left, upper, left + side, upper + side)), np.float32)
    values = ((pixels / 255 - mean) / deviation).transpose(2, 0, 1)[None]
    (logits,) = session.run(["logits"], {"images": values})[0]
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = int(shares.argmax())
    print(f"{path}: {classes[best]} {shares[best]:.1%}")
