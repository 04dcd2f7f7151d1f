"""mutate as a Kubeflow Pipelines component: of all children of a generation."""

from kfp import dsl

from cycleqd.search.place import Place


@dsl.component(base_image=Place().image("mutate"), install_kfp_package=False)
def mutate(evolution: str, children: list[str], profile: str, summary: dsl.Output[dsl.Markdown]) -> list[str]:
    """Mutate all merged children of a generation, each by its plan's mutation and seed.

    Args:
        evolution: Name of the evolution.
        children: Loop items of the children, from "merge".
        profile: The profile that this runs under, by name and sha256.
        summary: Of each child its parents, omega and operators.

    Returns:
        The same loop items.
    """
    from components import shown
    from components.mutate.stage import run

    run(evolution, children, profile)
    shown.making(summary, evolution, children)
    return children
