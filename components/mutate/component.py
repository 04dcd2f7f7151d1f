"""mutate as Kubeflow Pipelines components: of one child inside a loop, and of all children of a generation."""

from kfp import dsl

from cycleqd.search.place import Place


@dsl.component(base_image=Place().image("mutate"), install_kfp_package=False)
def mutate(evolution: str, item: str, place: str) -> str:
    """Mutate a merged child; nothing is left to do where merging did that already."""
    from components.mutate.stage import run

    run(evolution, [item], place)
    return item


@dsl.component(base_image=Place().image("mutate"), install_kfp_package=False)
def mutate_children(evolution: str, children: list[str], place: str) -> list[str]:
    """Mutate the merged cores of all children of a generation."""
    from components.mutate.stage import run

    run(evolution, children, place)
    return children
