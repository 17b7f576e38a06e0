"""What others published on the memo's claims, to be set beside our numbers, each with what it leaves out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedResult:
    """One published result: whose, its numbers, what they leave out, where they stand."""

    claims: tuple[str, ...]
    whose: str
    numbers: str
    leaves_out: str
    source: str


RESULTS = (
    PublishedResult(
        ("M1", "M3", "M6"),
        "alpaca-lora, LLaMA 7B",
        '"within five hours on a consumer GPU" (2023-03-14), reworded to "within hours on a single RTX 4090" (2023-03-30)',
        "no cost and no benchmark; the adapter that was offered later had another rank, more targets and ten epochs",
        "tloen/alpaca-lora, README and its history",
    ),
    PublishedResult(
        ("M4", "M18"),
        "Stanford Alpaca, LLaMA 7B",
        "3 h on eight A100 of 80 GB, under 100 USD; its rows under 500 USD more",
        "full fine-tuning, and no consumer hardware; judged by the five authors",
        "crfm.stanford.edu/2023/03/13/alpaca.html",
    ),
    PublishedResult(
        ("M4", "M18"),
        "GPT4All, LoRA on LLaMA 7B",
        "some 100 USD for the last run, 8 h on eight A100; some 800 USD of GPUs and 500 USD of API in all",
        "the 100 USD that the memo repeats leave out every run but the last",
        "GPT4All paper, section 2.3",
    ),
    PublishedResult(
        ("M4", "M18"),
        "Vicuna, LLaMA 13B and 7B",
        "some 300 and 140 USD on spot instances, about a day on eight A100",
        'full fine-tuning; "fun and non-scientific evaluation with GPT-4" in its own words',
        "lmsys.org/blog/2023-03-30-vicuna",
    ),
    PublishedResult(
        ("M2",),
        "torchtune, Llama 3.1 8B on one RTX 4090",
        "LoRA 16.2 GiB and 3,083 tokens/s; QLoRA 7.4 GiB and 2,413; full 18.9 GiB and 1,650",
        "memory and speed without scores",
        "pytorch/torchtune, README",
    ),
    PublishedResult(
        ("M7", "M14"),
        "LoRA paper, GPT-3 175B",
        "10,000 times fewer trained parameters, a third of the GPU memory",
        "a base a thousand times as large as ours; no cost in money",
        "arXiv:2106.09685",
    ),
    PublishedResult(
        ("M8",),
        "PEFT's comparison, Llama 3.2 3B, GSM8K, one L40S",
        "LoRA of rank 32: 47.8 % in 942 s and 20.8 GiB; full fine-tuning: 47.2 % in 2,147 s and 36.2 GiB",
        "one seed each, each at its own best learning rate",
        "huggingface/peft, method_comparison/MetaMathQA",
    ),
    PublishedResult(
        ("M8",),
        "LitGPT, Llama 3.2 1B, Alpaca 2k, one A10G",
        "validation loss: LoRA 1.114 in 4.2 min, full 1.442 in 2.0 min",
        "LoRA ran two epochs and full fine-tuning one: no fair pair",
        "Lightning-AI/litgpt, config_hub/finetune",
    ),
    PublishedResult(
        ("M8",),
        "LoRA Without Regret (2025)",
        "LoRA equals full fine-tuning while the rows fit its capacity, at about 67 % of the computation",
        "no consumer hardware",
        "Schulman and Thinking Machines, 2025-09",
    ),
    PublishedResult(
        ("M8", "M10"),
        "LoRA Learns Less and Forgets Less (2024)",
        "low ranks stay well below full fine-tuning on code and mathematics, and forget less; full updates have 10 to 100 times the rank",
        "the counter-evidence",
        "arXiv:2405.09673",
    ),
    PublishedResult(
        ("M17",),
        "QLoRA, Guanaco",
        "33B: 97.8 % of ChatGPT on Vicuna's questions, under 12 h on one consumer GPU",
        '80 prompts with GPT-4 as the judge; in its own words "current chatbot benchmarks are not trustworthy"',
        "arXiv:2305.14314",
    ),
)


def results_for(claim: str) -> list[PublishedResult]:
    """Those that bear on a claim."""
    return [result for result in RESULTS if claim in result.claims]
