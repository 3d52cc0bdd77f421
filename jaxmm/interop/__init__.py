"""How do other people's weights come in and go out? Published names and layouts, both ways.

Here: reading files of weights (safetensors, npz, PyTorch's without PyTorch) and mapping their names
and axes to a model's parameters, and back.

Not here: the networks themselves (`jaxmm.tokenizers`, `jaxmm.models`); this library's own
checkpoints of runs (`jaxmm.checkpoint`).
"""
