"""seed as a Kubeflow Pipelines component."""

from kfp import dsl

from cycleqd.config import Place


@dsl.component(base_image=Place().image("seed"), install_kfp_package=False)
def seed(config: str, place: str) -> None:
    from components.seed.stage import run

    run(config, place)
