"""Compare two exported models bit for bit: python -m tests.support.same_parameters A.safetensors B.safetensors."""

import sys

import torch
from safetensors.torch import load_file


def main() -> str | None:
    """Return what differs, for sys.exit; None if nothing does."""
    first, second = (load_file(path) for path in sys.argv[1:])
    if first.keys() != second.keys():
        return f"different tensors: {sorted(first.keys() ^ second.keys())}"
    for name, tensor in first.items():
        if not torch.equal(tensor.view(torch.uint8), second[name].view(torch.uint8)):
            return f"different numbers: {name}"
    print(f"the same: {len(first)} tensors")
    return None


if __name__ == "__main__":
    sys.exit(main())
