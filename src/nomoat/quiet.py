"""Our own progress and messages only; libraries keep their errors. To be called before they are imported."""

from __future__ import annotations

import logging
import os
import warnings


def quieten() -> None:
    """Turn off other libraries' progress bars and advice that does not concern the user of a recipe."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("bitsandbytes", "peft", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft asks transformers for the old name
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
