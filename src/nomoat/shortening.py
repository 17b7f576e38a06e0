"""The same model with fewer layers, from its configuration: what takes long on all of them can be learnt from a few."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any


def shortened(config: Any, layers: int) -> Any:
    """The configuration of the same model with only its first `layers` layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return config


def over_layers(config: Any, count: Callable[[Any], Counter[str]]) -> Counter[str]:
    """`count` of the whole model, from two short ones where all layers are alike: each further layer then adds the same.

    Layers of several kinds count as alike in periods of them. Whether layers are alike is seen from their parameters.
    """
    layers = config.get_text_config().num_hidden_layers
    period = _period(config)
    one = max(2, period)
    two = one + period
    if layers <= two or (layers - one) % period:
        return count(config)
    few, more, all_of = (_parameters(each) for each in (shortened(config, one), shortened(config, two), config))
    if (more - few) * (layers - one) != (all_of - few) * (two - one):
        return count(config)
    least, most = count(shortened(config, one)), count(shortened(config, two))
    return Counter({key: least[key] + (most[key] - least[key]) * (layers - one) // (two - one) for key in {*least, *most}})


def _period(config: Any) -> int:
    kinds = list(getattr(config.get_text_config(), "layer_types", None) or [""])
    return next(length for length in range(1, len(kinds) + 1) if all(kind == kinds[place % length] for place, kind in enumerate(kinds)))


def _parameters(config: Any) -> int:
    from nomoat.outlines import outline

    return sum(parameter.numel() for parameter in outline(config, "float32").parameters())
