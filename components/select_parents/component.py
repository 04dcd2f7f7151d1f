"""select_parents as a Kubeflow Pipelines component."""

from kfp import dsl

from cycleqd.search.place import Place


@dsl.component(base_image=Place().image("select_parents"), install_kfp_package=False)
def select_parents(evolution: str, generation: int, offset: int, place: str) -> list[str]:
    """Choose the parents of a generation's children; one loop item a child."""
    from components import items
    from components.select_parents.stage import run

    return items.for_loop(run(evolution, items.absolute(generation, offset), place))
