"""Full fine-tuning: every parameter of the base is trained, and what is shipped is the whole model.

It takes the adapter's place in a run (the same folder, gate and arms), so that the two methods are compared by the same code. Weights and
optimiser stay in float32; with `precision: bfloat16` only the products are in 16 bits (autocast): AdamW's steps of some 1e-4 would vanish
in bfloat16 weights, whose next value lies 0.4 % away.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nomoat.bases import BaseFiles
from nomoat.files import write_atomically

METHOD = "full"
WEIGHTS = "model.safetensors"  # what transformers reads in a model folder, and its Trainer in a checkpoint


def open_for_training(model: Any) -> Any:
    """`model` with every parameter trained."""
    return model.requires_grad_(True)


def tensors(model: Any) -> dict[str, Any]:
    """Every tensor of the model by its name, tied ones once, none of them copied."""
    seen: set[int] = set()
    found = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            found[name] = tensor.detach()
    return found


def save(model: Any, folder: Path, files: BaseFiles) -> None:
    """Weights and config, as transformers alone loads them; no file names this machine."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{WEIGHTS}"
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors(model).items()}, unfinished, metadata={"format": "pt"})
    os.replace(unfinished, folder / WEIGHTS)
    write_atomically(folder / "config.json", model.config.to_json_string(use_diff=False))
    if model.can_generate():
        write_atomically(folder / "generation_config.json", model.generation_config.to_json_string())


def load_into(model: Any, folder: Path) -> Any:
    """`model`, a base of the same architecture, with the weights of `folder` in its own precision, in eval mode."""
    import torch
    from safetensors import safe_open

    own = model.state_dict()
    with torch.no_grad(), safe_open(folder / WEIGHTS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - a handle, not a dict
            own[name].copy_(file.get_tensor(name))
    return model.eval()


def card(files: BaseFiles, note: str) -> str:
    """README.md of the folder: what it is and how to load it with transformers alone."""
    return f"""---
library_name: transformers
base_model: {files.name}
---
# A model fine-tuned in full with nomoat

Base: `{files.name}`{f" at revision `{files.revision}`" if files.revision else ""}.
{note}
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER").eval()
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
```
The report of the run that made it has its scores, its cost and the checksum of its weights.
"""
