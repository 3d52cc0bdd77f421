"""How does a signal become ids or latents, and back?

Text tokenizers, vector quantisation, image autoencoders with codes or continuous latents, the scale
of these, and what only their training needs: the patch discriminator, the perceptual distance, the
causal regularizer, the Tasks that put them into one loss.

Not here: a model that reads the ids (`jaxmm.models`); layers that know no signal (`jaxmm.core`);
loading other people's checkpoints (`jaxmm.interop`); turning a data set into stored ids
(`jaxmm.batch_job`); scores of finished reconstructions (`jaxmm.evaluate`).
"""
