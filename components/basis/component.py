"""basis as a Kubeflow Pipelines component."""

from kfp import dsl

from cycleqd.search.place import Place


@dsl.component(base_image=Place().image("basis"), install_kfp_package=False)
def basis(evolution: str, profile: str) -> None:
    """Make the basis of the experts' adapters and the experts' cores; extract adapters from full checkpoints first.

    Args:
        evolution: Name of the evolution.
        profile: The profile that this runs under, by name and sha256.
    """
    from components.basis.stage import run

    run(evolution, profile)
