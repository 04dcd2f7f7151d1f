"""merge as Kubeflow Pipelines components: of one child inside a loop, and of all children of a generation."""

from kfp import dsl

from cycleqd.search.place import Place


@dsl.component(base_image=Place().image("merge"), install_kfp_package=False)
def merge(evolution: str, item: str, place: str) -> str:
    """Merge the parents' task vectors into a child; with `place.fused` and dense weights, mutate on the way."""
    from components.merge.stage import run

    run(evolution, [item], place)
    return item


@dsl.component(base_image=Place().image("merge"), install_kfp_package=False)
def merge_children(evolution: str, children: list[str], place: str) -> list[str]:
    """Merge the parents' cores into all children of a generation."""
    from components.merge.stage import run

    run(evolution, children, place)
    return children
