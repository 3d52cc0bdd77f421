"""MEGABYTE (`jaxmm.models.megabyte`) on bytes: configs."""
