"""experiments: configs, claims and pages, one folder a paper; installed as `jaxmm.experiments`."""
