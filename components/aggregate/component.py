"""aggregate, and the choice of the final model, as Kubeflow Pipelines components."""

from kfp import dsl

from cycleqd.search.place import Place


@dsl.component(base_image=Place().image("aggregate"), install_kfp_package=False)
def aggregate(evolution: str, place: str) -> None:
    """Merge the archives' best elites into the aggregate, and the experts into the naive merge beside it."""
    from components.aggregate.stage import run

    run(evolution, place)


@dsl.component(base_image=Place().image("choose_final"), install_kfp_package=False)
def choose_final(evolution: str, place: str) -> list[str]:
    """Make the better of the aggregate and the best single model the final one; the models to score beside it."""
    from components.aggregate.stage import choose

    return choose(evolution, place)
