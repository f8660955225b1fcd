"""Pack a trained adapter: a folder of some 60 kB that predict, demo and evaluate take as checkpoint=FOLDER.

python scripts/pack_model.py outputs/train/NAME/STAMP fss_svf/zoo/voc-lite0 --score "mIoU 50.0 on fold 0, 1 shot" \\
    --licence "EfficientNet-Lite0 Apache 2.0, Pascal VOC images under their terms" --card card.md

In fss_svf/zoo it is model=voc-lite0 too, and part of the wheel.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fss_svf.errors import FssError
from fss_svf.packing import pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a run folder of train (its last.pt), or a checkpoint file")
    parser.add_argument("out", type=Path, help="the new folder; its name is the model's")
    parser.add_argument("--score", required=True, help="one number with what it is of")
    parser.add_argument("--licence", required=True, help="of the pretrained weights and the training images")
    parser.add_argument("--card", type=Path, required=True, help="a Markdown file about the model")
    given = parser.parse_args()
    try:
        size = pack(given.checkpoint, given.out, given.score, given.licence, given.card)
    except FssError as error:
        sys.exit(f"pack_model: {error}")
    print(f"{given.out}: adapter of {size / 1000:.1f} kB; every tensor is that of {given.checkpoint}")


if __name__ == "__main__":
    main()
