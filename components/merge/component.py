"""merge as Kubeflow Pipelines components: of all children of a generation, and of one with its mutation."""

from kfp import dsl

from cycleqd.search.place import Place


@dsl.component(base_image=Place().image("merge"), install_kfp_package=False)
def merge(evolution: str, children: list[str], profile: str, summary: dsl.Output[dsl.Markdown]) -> list[str]:
    """Merge the parents' task vectors into all children of a generation, each by its plan's crossover.

    Args:
        evolution: Name of the evolution.
        children: Loop items of the children, from "select parents".
        profile: The profile that this runs under, by name and sha256.
        summary: Of each child its parents, omega and operators.

    Returns:
        The same loop items.
    """
    from components import shown
    from components.merge.stage import run

    run(evolution, children, profile)
    shown.making(summary, evolution, children)
    return children


@dsl.component(base_image=Place().image("merge"), install_kfp_package=False)
def merge_and_mutate(evolution: str, item: str, profile: str, summary: dsl.Output[dsl.Markdown]) -> str:
    """Merge the parents' task vectors into one large child and mutate it on the way, tensor by tensor.

    Args:
        evolution: Name of the evolution.
        item: The child's loop item, from "select parents".
        profile: The profile that this runs under, by name and sha256.
        summary: The child's parents, omega and operators.

    Returns:
        The same loop item.
    """
    from components import shown
    from components.merge.stage import run

    run(evolution, [item], profile, fused=True)
    shown.making(summary, evolution, [item])
    return item
