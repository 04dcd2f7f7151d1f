"""aggregate, and the choice of the final model, as Kubeflow Pipelines components."""

from kfp import dsl

from cycleqd.search.place import Place


@dsl.component(base_image=Place().image("aggregate"), install_kfp_package=False)
def aggregate(evolution: str, place: str) -> None:
    """Merge the archives' best elites into the aggregate, and the experts into the baselines beside it."""
    from components.aggregate.stage import run

    run(evolution, place)


@dsl.component(base_image=Place().image("choose_final"), install_kfp_package=False)
def choose_final(evolution: str, place: str) -> list[str]:
    """Choose the best λ and the better of the aggregate and the best single model; the models to score held out."""
    from components.aggregate.stage import choose

    return choose(evolution, place)
