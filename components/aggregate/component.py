"""aggregate, and the choice of the final model, as Kubeflow Pipelines components."""

from kfp import dsl

from cycleqd.search.place import Place


@dsl.component(base_image=Place().image("aggregate"), install_kfp_package=False)
def aggregate(evolution: str, profile: str, model: dsl.Output[dsl.Model]) -> None:
    """Merge the archives' best elites into the aggregate, and the experts into the baselines beside it.

    Args:
        evolution: Name of the evolution.
        profile: The profile that this runs under, by name and sha256.
        model: The aggregate, which may be the final model: where it is in S3, its digest, what it is made of.
    """
    from components import shown
    from components.aggregate.stage import run

    run(evolution, profile)
    shown.model(model, evolution)


@dsl.component(base_image=Place().image("choose_final"), install_kfp_package=False)
def choose_final(evolution: str, profile: str, model: dsl.Output[dsl.Model]) -> list[str]:
    """Choose task arithmetic's best factor, and of aggregate and best single model the better one as the final model.

    Args:
        evolution: Name of the evolution.
        profile: The profile that this runs under, by name and sha256.
        model: The final model: where it is in S3, its digest, what it is made of.

    Returns:
        Ids of the models to score, the final one among them.
    """
    from components import shown
    from components.aggregate.stage import choose

    compared = choose(evolution, profile)
    shown.model(model, evolution, chosen=True)
    return compared
