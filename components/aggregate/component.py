"""aggregate as a Kubeflow Pipelines component."""

from kfp import dsl

from cycleqd.config import Place


@dsl.component(base_image=Place().image("aggregate"), install_kfp_package=False)
def aggregate(evolution: str, place: str) -> None:
    from components.aggregate.stage import run

    run(evolution, place)
