"""A classifier with masked gradients: a copy of a talion checkpoint, its logits times a large factor.

No prediction changes. But the softmax is then so sharp that the gradient of the cross-entropy vanishes in
f32, so attacks that follow it do nothing; attacks on differences of logits (DLR, FAB), and those without
gradients, are not misled.
"""

import argparse
import json
from pathlib import Path

from safetensors.torch import save

from networks import read, sha256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("input", type=Path, help="a talion checkpoint")
    parser.add_argument("output", type=Path, help="where the copy goes")
    parser.add_argument("--factor", type=float, default=1000.0, help="what the logits are multiplied by")
    args = parser.parse_args()
    card, tensors = read(args.input)
    for name in ("head.weight", "head.bias"):
        if name not in tensors:
            raise SystemExit(f"{args.input}: has no {name}; its last layer has another name")
        tensors[name] = tensors[name] * args.factor
    done = {"factor": args.factor, "of_sha256": sha256(args.input), "by": "bench/reference/saturate.py"}
    training = card.get("training")
    # how it was trained is a free value in the header; everything else is as it was
    card["training"] = {**training, "saturated": done} if isinstance(training, dict) else {"saturated": done}
    card["metrics"] = {**card["metrics"], "logit_factor": args.factor}
    args.output.write_bytes(save(tensors, metadata={"talion": json.dumps(card)}))
    print(f"{args.output}: the logits of {args.input}, times {args.factor:g}")


if __name__ == "__main__":
    main()
