"""Fast CPU paths of attention, linear layers, loss and KV cache, exact up to rounding.

Each has a plain alternative (peft's layers, torch's attention and loss) that `hardware.kernels: plain` selects.
Needs torch, transformers and peft, and nothing else of nomoat. Begin with linear.py.
"""
