"""select_parents as a Kubeflow Pipelines component."""

from kfp import dsl

from cycleqd.search.place import Place


@dsl.component(base_image=Place().image("select_parents"), install_kfp_package=False)
def select_parents(evolution: str, generation: int, offset: int) -> list[str]:
    """Choose the parents of a generation's children, draw their crossovers and mutations, and store that as its plan.

    Args:
        evolution: Name of the evolution.
        generation: The run's first generation; -1: the next after HEAD.
        offset: Position in the run, from 0.

    Returns:
        A loop item a child.
    """
    from components import items
    from components.select_parents.stage import run

    return items.for_loop(run(evolution, items.absolute(generation, offset)))
