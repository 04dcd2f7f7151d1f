"""seed as a Kubeflow Pipelines component."""

from kfp import dsl

from cycleqd.search.place import Place


@dsl.component(base_image=Place().image("seed"), install_kfp_package=False)
def seed(evolution: str, config: str, profile: str) -> None:
    """Copy the base, the experts, task data and plug-ins to S3, with their digests and the frozen configuration.

    Args:
        evolution: Name of the evolution.
        config: The configuration, by name and sha256.
        profile: The profile that this runs under, by name and sha256.
    """
    from components.seed.stage import run

    run(evolution, config, profile)
