"""Fine-tune a chat model with LoRA in about 100 lines: plain transformers and peft, nothing of this project, read from top to bottom.

    python train/minimal.py MODEL_FOLDER rows.jsonl
    python train/minimal.py MODEL_FOLDER rows.jsonl --epochs 3 --batch-rows 8 --out my-adapter

MODEL_FOLDER holds a model with a chat template, as save_pretrained writes it; a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct
works too. Each line of rows.jsonl is a JSON object with "prompt" and "completion". The adapter goes to adapter/ and loads with
PeftModel.from_pretrained(model, "adapter").

`make train` makes the same updates: given the same rows in the same steps, its losses are these to five digits in float32 (a test
compares them). What it adds is speed, checkpoints, held-out scores and a report. `--batches steps.json`, a list with the row numbers
of each step (from 0), repeats the steps of another run.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup, set_seed

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("rows", type=Path)
parser.add_argument("--out", default="adapter")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--batch-rows", type=int, default=16)
parser.add_argument("--batches", type=Path)
parser.add_argument("--learning-rate", type=float, default=1e-3)
parser.add_argument("--rank", type=int, default=16)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

WARMUP = 0.05  # share of the steps in which the learning rate rises
MAX_GRAD_NORM = 1.0
IGNORED = -100  # the label of a token that has no part in the loss

# 1. The model, and an adapter on every linear layer except the head. B starts at zero: the adapted model starts as the base.
tokenizer = AutoTokenizer.from_pretrained(options.model)
base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
set_seed(options.seed)
config = LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(base, config)
model.print_trainable_parameters()


# 2. Rows as token ids. The chat template renders the prompt up to where the assistant's answer begins; the answer follows, closed by
#    the token that the template puts behind it. Labels are the answer's ids: the model learns to answer and not to ask.
def tokenise(text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def encode(row: dict[str, str]) -> tuple[list[int], list[int]]:
    """Input ids and labels of a row."""
    question = {"role": "user", "content": row["prompt"]}
    answer = {"role": "assistant", "content": row["completion"]}
    prompt = tokenise(tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True))
    behind = tokenizer.apply_chat_template([question, answer], tokenize=False).rpartition(row["completion"])[2]
    completion = tokenise(row["completion"]) + tokenise(behind)[:1]
    return prompt + completion, [IGNORED] * len(prompt) + completion


def collate(examples: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """Examples side by side, padded on the right to the longest."""
    longest = max(len(ids) for ids, _ in examples)
    return {
        "input_ids": torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in examples]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in examples]),
        "labels": torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in examples]),
    }


examples = [encode(json.loads(line)) for line in options.rows.read_text(encoding="utf-8").splitlines()]

# 3. The steps: each epoch in another order, or as another run made them.
batches: list[list[int]] = json.loads(options.batches.read_text()) if options.batches else []
for epoch in range(0 if batches else options.epochs):
    order = random.Random(options.seed + epoch).sample(range(len(examples)), len(examples))
    batches += [order[start : start + options.batch_rows] for start in range(0, len(order), options.batch_rows)]

# 4. Train the adapter: the loss is the mean cross-entropy over the answers' tokens of the batch.
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=0.0)
schedule = get_cosine_schedule_with_warmup(optimizer, round(WARMUP * len(batches)), len(batches))
model.train()
for step, numbers in enumerate(batches, start=1):
    loss = model(**collate([examples[number] for number in numbers])).loss
    loss.backward()
    clip_grad_norm_(trained, MAX_GRAD_NORM)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    print(f"step {step}/{len(batches)}  loss {loss.item():.6f}", flush=True)

# 5. Save adapter_model.safetensors and adapter_config.json, and the tokenizer with its template beside them.
model.save_pretrained(options.out)
tokenizer.save_pretrained(options.out)
print(f"the adapter is in {options.out}/")
