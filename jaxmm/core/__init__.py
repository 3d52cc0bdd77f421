"""core: HOW is it computed?

Layers, masks, attention, the one transformer, convolution nets, losses, decoding: mathematics only.
No paper (that is `models` and `tokenizers`), no mesh (`jaxmm.sharding`), no file
(`jaxmm.checkpoint`, `data`).
"""
