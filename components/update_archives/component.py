"""update_archives as a Kubeflow Pipelines component."""

from kfp import dsl

from cycleqd.search.place import Place


@dsl.component(base_image=Place().image("update_archives"), install_kfp_package=False)
def update_archives(
    evolution: str,
    children: list[str],
    profile: str,
    archives: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Offer a generation's scored children to the archives, write the next snapshot, and clean up.

    Args:
        evolution: Name of the evolution.
        children: Loop items of the children; none after seeding, when base and experts are offered.
        profile: The profile that this runs under, by name and sha256.
        archives: The archives as heat maps.
        summary: The generation: parents, omega, scores, and which archives each child entered.
    """
    from components import items, shown
    from components.update_archives.stage import run

    generation = items.generation(children)
    run(evolution, generation, profile)
    shown.update(archives, summary, evolution, generation)
