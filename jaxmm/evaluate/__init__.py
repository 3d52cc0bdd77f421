"""How good is it? Metrics that have the same value on any mesh and for any batch size.

A metric is accumulated as sums and counts: float32 on the device over one batch, float64 and Python
ints on the host over batches, so that padded rows, ragged tails and the number of devices cannot
move it.

Not here: what is differentiated in training (`jaxmm.core.losses`); the pass over a data set
(`jaxmm.batch_job`); comparing arms and seeds, verdicts (`jaxmm.studies`); figures and tables
(`jaxmm.report`).
"""
