"""Will it fit, and how fast, on a machine that is not here?

The trainer's own step is compiled ahead of time for a named TPU topology, its compiled text is read
(memory, products, collectives), and a roofline says what the step would take. Every number is an
estimate for a machine that nobody has rented yet; the assumptions are constants in `roofline`.

Not here: the step itself (`jaxmm.train.step`), rule tables and meshes (`jaxmm.sharding`), the Task
and its settings (`jaxmm.studies.pod_plan` hands them in), the page (`jaxmm.report.pod_page`).
"""
