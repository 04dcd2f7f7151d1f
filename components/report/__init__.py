"""report: the evolution as one page, shown in Kubeflow."""
