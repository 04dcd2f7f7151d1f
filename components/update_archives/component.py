"""update_archives as a Kubeflow Pipelines component."""

from kfp import dsl

from cycleqd.search.place import Place


@dsl.component(base_image=Place().image("update_archives"), install_kfp_package=False)
def update_archives(evolution: str, children: list[str], place: str) -> None:
    """Offer a generation's scored children to the archives, write the next snapshot, and clean up."""
    from components import items
    from components.update_archives.stage import run

    run(evolution, items.generation(children), place)
