"""basis as a Kubeflow Pipelines component."""

from kfp import dsl

from cycleqd.search.place import Place


@dsl.component(base_image=Place().image("basis"), install_kfp_package=False)
def basis(evolution: str, place: str) -> None:
    """Make the basis of the experts' adapters and the experts' cores; extract adapters from full checkpoints first."""
    from components.basis.stage import run

    run(evolution, place)
