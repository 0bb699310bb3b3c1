"""Names of layouts and stages, for the banner and `loopmdm plan`. Imports no torch."""

from model.placement import Stage
from pretrain.config.run_plan import RunPlan


def layout_name(plan: RunPlan) -> str:
    """Such as `DP4 x TP2 + SP x PP2, ZeRO-1, recompute loop`."""
    p, data = plan.settings.parallel, plan.data_parallel_size
    groups = [
        f"DP{data}" if data > 1 else "",
        f"TP{p.tensor}{' + SP' if p.sequence else ''}" if p.tensor > 1 else "",
        f"PP{p.pipeline}" if p.pipeline > 1 else "",
    ]
    recompute = "" if p.recompute == "none" else f", recompute {p.recompute}"
    return f"{' x '.join(group for group in groups if group) or '1 rank'}, ZeRO-{p.zero_stage}{recompute}"


def stage_contents(stage: Stage) -> str:
    """Such as `embedding; head 0; mid 1, copy 2 of 2; tail 3,7`."""
    copy = f", copy {stage.replica + 1} of {stage.replicas}" if stage.replicas > 1 else ""
    parts = [
        "embedding" if stage.first else "",
        _numbers("head", [i for layers in stage.head for i in layers]),
        _numbers("mid", list(stage.mid)) + (copy if stage.mid else ""),
        _numbers("tail", [i for layers in stage.tail for i in layers]),
        "norm, LM head" if stage.last else "",
    ]
    return "; ".join(part for part in parts if part) or "no layers"


def _numbers(phase: str, layers: list[int]) -> str:
    return f"{phase} {','.join(map(str, layers))}" if layers else ""
