"""The plain decoder LM (`jaxmm.models.lm`) on text: configs and page."""
