"""seed as a Kubeflow Pipelines component."""

from kfp import dsl

from cycleqd.search.place import Place


@dsl.component(base_image=Place().image("seed"), install_kfp_package=False)
def seed(config: str, place: str) -> None:
    """Copy the base, the experts, task data and plug-ins to S3, with their digests and the frozen configuration."""
    from components.seed.stage import run

    run(config, place)
