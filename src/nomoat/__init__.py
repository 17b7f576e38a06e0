"""nomoat: fine-tune a small open model with LoRA, and measure what it cost and what it gained."""

__version__ = "0.1.0"
