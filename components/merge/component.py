"""merge as a Kubeflow Pipelines component."""

from kfp import dsl

from cycleqd.search.place import Place


@dsl.component(base_image=Place().image("merge"), install_kfp_package=False)
def merge(evolution: str, item: str, place: str) -> str:
    """Merge the parents' task vectors into a child; with `place.fused`, mutate it on the way."""
    from components.merge.stage import run

    run(evolution, item, place)
    return item
