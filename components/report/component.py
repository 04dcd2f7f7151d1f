"""report as a Kubeflow Pipelines component. It has no stage: it leaves nothing but what it shows."""

from kfp import dsl

from cycleqd.search.place import Place


@dsl.component(base_image=Place().image("report"), install_kfp_package=False)
def report(evolution: str, page: dsl.Output[dsl.HTML]) -> None:
    """Show the report: scores with intervals, verdicts, archives, curves, the final model's family tree, costs.

    Args:
        evolution: Name of the evolution.
        page: The report, as `cycleqd report` writes it.
    """
    from components import shown

    shown.report(page, evolution)
