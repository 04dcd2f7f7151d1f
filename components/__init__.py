"""The stages of the pipelines: a folder each, component.py declares it to Kubeflow and stage.py does it."""
