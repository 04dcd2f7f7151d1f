"""aggregate as a Kubeflow Pipelines component."""

from kfp import dsl

from cycleqd.config import Place


@dsl.component(base_image=Place().image("aggregate"), install_kfp_package=False)
def aggregate(evolution: str, place: str) -> None:
    """Merge the archives' best elites into the final model, and the experts into the naive merge beside it."""
    from components.aggregate.stage import run

    run(evolution, place)
