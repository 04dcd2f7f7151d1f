"""evaluate as Kubeflow Pipelines components: of one child inside a loop, and of a list of models."""

from kfp import dsl

from cycleqd.search.place import Place


@dsl.component(base_image=Place().image("evaluate"), install_kfp_package=False)
def evaluate_child(evolution: str, item: str, tasks: str, split: str, place: str) -> str:
    """Score one child on a group of tasks; what has a record already is not evaluated again."""
    from components import items
    from components.evaluate.stage import run

    run(evolution, items.models([item]), tasks, split, place)
    return item


@dsl.component(base_image=Place().image("evaluate"), install_kfp_package=False)
def evaluate_models(evolution: str, models: list[str], tasks: str, split: str, place: str) -> None:
    """Score several models on a group of tasks, in one process with one engine."""
    from components import items
    from components.evaluate.stage import run

    run(evolution, items.models(models), tasks, split, place)
