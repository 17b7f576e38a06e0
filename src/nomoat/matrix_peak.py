"""How much of the machine's matrix arithmetic a training step uses: what the method needs, over the best rate seen here.

Counted in multiplications and additions (FLOPs) of matrix products alone; norms, activations and the optimiser are not in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from nomoat.bench_work import BenchWork, Step
from nomoat.matrix_rate import CUBE, rate_of
from nomoat.packing import common_prefix


def step_flops(step: Step, shapes: Sequence[tuple[int, int]], head: tuple[int, int], rank: int, *, shared: bool) -> float:
    """FLOPs that LoRA needs for one step: forward, gradients to activations, and the adapter's own products.

    `shapes` are (inputs, outputs) of the adapted linears, `head` those of the output layer, which sees labelled tokens only. No
    recomputation, no padding, no gradient of a frozen weight. With `shared`, what all prompts of the step begin with counts once.
    Attention's own products are left out: below 1 % for rows of some hundred tokens.
    """
    begin = common_prefix([row.prompt_ids for row in step]) if shared and len(step) > 1 else 0
    tokens = sum(row.length for row in step) - begin * (len(step) - 1)
    labelled = sum(len(row.completion_ids) for row in step)
    base = sum(inputs * outputs for inputs, outputs in shapes)
    adapter = sum(rank * (inputs + outputs) for inputs, outputs in shapes)
    # base: 2 forward and 2 for the gradient to its input; adapter: 2 forward, 2 to its input, 2 to its weights
    return tokens * (4 * base + 6 * adapter) + labelled * 4 * head[0] * head[1]


def linear_shapes(work: BenchWork) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """(inputs, outputs) of every linear of the base but its head, and those of the head; read from a model without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(work.files.folder, local_files_only=True))
    head = model.get_output_embeddings()
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    return [(one.in_features, one.out_features) for one in linears], (head.in_features, head.out_features)


def best_rate(shapes: Sequence[tuple[int, int]], tokens: int, precision: str, device: str) -> float:
    """FLOPs a second of the fastest `linear` among the step's own shapes (with `tokens` rows) and one of 2048 cubed."""
    every = sorted({*((tokens, inputs, outputs) for inputs, outputs in shapes), (CUBE, CUBE, CUBE)})
    return max(rate_of(*shape, precision, device) for shape in every)
