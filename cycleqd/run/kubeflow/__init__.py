"""Running on Kubeflow Pipelines: its API, its runs, and the pods behind them."""
