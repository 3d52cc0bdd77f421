"""Which published model is this? One file is one paper's network and its Task.

Here: the network's shape and sizes by name, its loss, how it generates, its Task for the trainer.

Not here: the transformer, attention, convolutions, decoding loops (`jaxmm.core`); how a signal
becomes ids or latents (`jaxmm.tokenizers`); reading and writing other people's weights
(`jaxmm.interop`); optimizers and steps (`jaxmm.train`); how good a model is (`jaxmm.evaluate`).
"""
